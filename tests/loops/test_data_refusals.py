"""What cannot be told from outside is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import CALLBACKS, Reading, assert_undisturbed, checks, ours, plain, told
from _lightning import fit, images
from test_monitor import Watch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_cx import ComplexityMonitor, ProbeSet


class Fetching(Reading):
    """Takes batches out of the loader itself."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:
        x, y = next(dataloader_iter)[0]
        self.calls += 1
        self.seen.append(float(x.sum()))
        return F.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("name", CALLBACKS)
def test_dataloader_iter_is_refused_by_name(name: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> pl.Trainer:
        return fit(Fetching(), callbacks, tmp_path, data=DataLoader(images(150), batch_size=32))

    trainer, words = told(lambda: assert_undisturbed(run, ours(name)))
    assert trainer.global_step == 10
    fetched = "training_step cannot be run again, training_step fetches its own batches (dataloader_iter); or pass "
    assert fetched in words[0]
    if name == "ComplexityMonitor":
        assert words[1] == (
            "lightning_cx: per-example gradients are off: training_step fetches its own batches (dataloader_iter), so "
            "the examples of a loss cannot be determined from outside: let training_step take the batch"
        )
    assert len(words) == (2 if name == "ComplexityMonitor" else 1)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.filterwarnings("ignore:lightning_cx. per-example gradients are off. training_step fetches its own")
def test_under_dataloader_iter_residuals_are_measured_with_a_loss_of_the_user(tmp_path: Path) -> None:
    def losses(module: Any, batch: Any) -> Tensor:
        return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")

    def probe() -> ProbeSet:
        return ProbeSet(size=128, loss_fn=losses)

    def run(callbacks: list[Any]) -> pl.Trainer:
        return fit(Fetching(), callbacks, tmp_path, data=plain())

    watch = Watch()
    told(lambda: assert_undisturbed(run, ComplexityMonitor([watch], every_n_steps=1, probe=probe())))
    steps = [o.step for o in watch.seen if o.probe is not None]
    assert steps == list(range(10))
    callback = ours("ComplexityEarlyStopping", probe=probe(), strict=True)
    assert_undisturbed(run, callback)
    assert checks(callback) == list(range(11))


class Alone(Reading):
    """Learns from one example at a time, without an axis for examples."""

    def __init__(self) -> None:
        super().__init__(lambda item: (item[0][None], item[1][None]), net=torch.nn.Linear(5, 5))


@pytest.mark.parametrize("name", CALLBACKS)
def test_examples_without_an_axis_for_examples_are_told_of(name: str, tmp_path: Path) -> None:
    x, y = images().tensors

    def run(callbacks: list[Any]) -> pl.Trainer:
        data = torch.utils.data.TensorDataset(x[:, 0, 0, :5], y)
        return fit(Alone(), callbacks, tmp_path, data=DataLoader(data, batch_size=None), max_epochs=1)

    trainer, words = told(lambda: assert_undisturbed(run, ours(name)))
    assert trainer.global_step == 160
    if name == "ComplexityMonitor":
        refused = "per-example gradients are off: unsupported: the batch cannot be split into examples (4 of its"
        assert any(refused in text for text in words)
    assert any("residuals cannot be found" in text for text in words)
    assert not {tag for tag in trainer.callback_metrics if "/" in tag} - {"complexity/overhead"}
