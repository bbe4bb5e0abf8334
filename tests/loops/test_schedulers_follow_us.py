"""Learning rate schedulers beside us, and those that follow what we log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fit
from _loops import run, undisturbed
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from lightning_cx import ComplexityMonitor, ProbeSet


class Scheduled(Classifier):
    """With a schedule of the caller's."""

    def __init__(self, make: Any, **options: Any) -> None:
        super().__init__()
        self.make, self.options = make, options

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), **self.options}}


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_goes_its_way_beside_us(interval: str, tmp_path: Path) -> None:
    seen = undisturbed(
        lambda: Scheduled(lambda optimizer: CosineAnnealingLR(optimizer, 7), interval=interval),
        tmp_path,
        front=lambda: [LearningRateMonitor()],
    )
    assert seen.trainer.lr_scheduler_configs[0].scheduler.last_epoch == (10 if interval == "step" else 2)
    assert len(seen.samples) == 10
    assert seen.told == []


@pytest.mark.parametrize("monitor", ["complexity/residual_energy", "gradient/norm", "stopping/risk"])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_plateau_is_looked_for_in_what_we_log(interval: str, monitor: str, tmp_path: Path) -> None:
    values: list[float] = []

    class Noting(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            values.append(float(metrics))
            super().step(metrics)

    def make() -> pl.LightningModule:
        return Scheduled(
            lambda optimizer: Noting(optimizer, patience=0, threshold=10.0, factor=0.5),  # nothing is good enough
            interval=interval,
            monitor=monitor,
        )

    seen = run(make, tmp_path)
    steps = 10 if interval == "step" else 2
    assert len(values) == steps
    assert values[-1] == pytest.approx(float(seen.trainer.callback_metrics[monitor]))
    assert len(set(values)) == steps  # not one value over and over
    assert seen.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3 * 0.5**steps)
    assert seen.told == []


def test_a_value_that_was_never_measured_is_named_by_lightning(tmp_path: Path) -> None:
    def make() -> pl.LightningModule:
        return Scheduled(ReduceLROnPlateau, monitor="gradient/norm")

    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="metric gradient/norm which is not"):
        fit(make(), [ComplexityMonitor(probe=ProbeSet(size=128))], tmp_path)  # the budget allows nothing so early
    run(make, tmp_path)  # a period of at most an epoch has the value in time
