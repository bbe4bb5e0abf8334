"""No tag is a folder that holds another: loggers that write a file for each tag would lose a whole batch of values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fit
from test_two_optimizers import BATCH, SIZE, Gan
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import (
    GradientNoise,
    Interference,
    Kernel,
    Neurons,
    Series,
    SpectralBias,
    TailIndex,
    quantities,
)


def folders_of(tags: Iterable[str]) -> set[str]:
    return {"/".join(parts[:k]) for parts in (tag.split("/") for tag in tags) for k in range(1, len(parts))}


def all_tags() -> set[str]:
    """Every tag that there is a name for, of layers, blocks, optimizers, backwards, controls and named instruments."""
    plain = {value for name, value in vars(quantities).items() if name.isupper() and isinstance(value, str)}
    per_band = (quantities.residual_band, quantities.fitted_fraction, quantities.decay_rate, quantities.half_life)
    plain |= {tag_of(number) for tag_of in per_band for number in range(12)}
    plain |= {quantities.on_probe(tag) for tag in plain if tag.startswith("kernel/")}
    blocks = {tag for tag in plain if "block_share" in tag}
    parts = {quantities.of_block(tag, "layers.0") for tag in blocks}
    parts |= {quantities.of_layer(tag, "net.0.weight") for tag in plain - blocks}
    every = (plain - blocks) | parts
    every |= {quantities.shuffled(tag) for tag in every}
    series = [Series(1), Series(1, 2), Series(0, 1)]
    every |= {one.of(tag) for tag in every for one in series}
    return every | {quantities.suffixed(tag, "wide") for tag in every}


def test_no_tag_that_can_be_made_is_a_folder_of_another() -> None:
    tags = all_tags()
    assert len(tags) > 1000
    assert not folders_of(tags) & tags


@pytest.mark.filterwarnings("ignore:lightning_cx")
def test_no_tag_of_a_fit_with_two_optimizers_layers_and_names_is_a_folder_of_another(tmp_path: Path) -> None:
    instruments: list[Any] = [
        GradientNoise(),
        Interference(per_layer=True, control="shuffle"),
        Interference(per_layer=True, name="second"),
        TailIndex(per_layer=True),
        Kernel(blocks={"generator": "generator"}),
    ]
    data = DataLoader(TensorDataset(torch.randn(6 * BATCH, SIZE)), BATCH)
    monitor = ComplexityMonitor(instruments, every_n_steps=1)
    trainer = fit(Gan(), [monitor], tmp_path, data, max_epochs=1)
    tags = {tag for tag in trainer.callback_metrics if "/" in tag}
    assert {"gradient/norm", "gradient/norm-optimizer_1", "gradient/interference-second"} <= tags
    assert any(tag.startswith("gradient/interference_layers/") for tag in tags)
    assert not folders_of(tags) & tags


@pytest.mark.filterwarnings("ignore:lightning_cx")
def test_no_tag_of_a_fit_with_bands_neurons_and_a_stopping_rule_is_a_folder_of_another(tmp_path: Path) -> None:
    callbacks: list[pl.Callback] = [
        ComplexityMonitor(
            [SpectralBias(per_band=True, control="shuffle"), Neurons(per_layer=True, examples=64)],
            every_n_steps=2,
            probe=ProbeSet(size=128),
        ),
        ComplexityEarlyStopping(every_n_steps=2, name="b"),
    ]
    trainer = fit(Classifier(), callbacks, tmp_path, max_epochs=1)
    tags = {tag for tag in trainer.callback_metrics if "/" in tag}
    assert {"complexity/residual_median", "complexity/residual_median_shuffled"} <= tags
    assert not folders_of(tags) & tags
