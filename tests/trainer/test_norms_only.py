"""An instrument that needs norms alone is shown norms alone, without a Gram matrix and its price."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from _lightning import Classifier, fingerprint, fit

from lightning_cx import ComplexityMonitor
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Needs, Reading


class LargestNorm(Instrument):
    def __init__(self) -> None:
        self.seen: list[GradientSample] = []

    @property
    def needs(self) -> Needs:
        return Needs(norms=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        self.seen.append(gradients)
        assert gradients.squared_norms is not None
        return Reading({"complexity/largest_norm": gradients.squared_norms.max().sqrt().item()})

    def reset(self) -> None:
        self.seen.clear()


@pytest.mark.filterwarnings("ignore:lightning_cx")
@pytest.mark.parametrize("beside_a_gram", [False, True])
def test_norms_come_alone_unless_somebody_needs_more(beside_a_gram: bool, tmp_path: Path) -> None:
    norms = LargestNorm()
    instruments: list[Instrument] = [norms, GradientNoise()] if beside_a_gram else [norms]
    torch.manual_seed(0)
    module = Classifier()
    twin = copy.deepcopy(module)
    trainer = fit(module, [ComplexityMonitor(instruments, every_n_steps=2)], tmp_path)
    plain = fit(twin, [], tmp_path)
    assert fingerprint(trainer) == fingerprint(plain)
    samples = norms.seen
    assert len(samples) >= 4
    assert all((sample.gram is not None) == beside_a_gram for sample in samples)
    assert all(sample.squared_norms is not None and sample.squared_norms.shape == (32,) for sample in samples)
    assert trainer.callback_metrics["complexity/largest_norm"] > 0
