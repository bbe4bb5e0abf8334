"""Switches of the Trainer that change how a fit is run, and not what we see of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, images
from _loops import Truth, in_order, run, undisturbed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EXACT = 1e-5  # relative; float32 against float64


@pytest.fixture(autouse=True)
def _switches_are_put_back() -> Iterator[None]:
    """Lightning leaves what it switches on in torch."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


SWITCHES: dict[str, dict[str, Any]] = {
    "detect_anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "benchmark": {"benchmark": True},
    "inference_mode": {"inference_mode": False},
    "sync_batchnorm": {"sync_batchnorm": True},
    "barebones": {"barebones": True, "logger": None, "log_every_n_steps": None},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_gram_matrix_is_that_of_the_batch_under_every_switch(switch: str, tmp_path: Path) -> None:
    truth = Truth()
    seen = undisturbed(Classifier, tmp_path, front=lambda: [truth], data=in_order(), max_epochs=1, **SWITCHES[switch])
    del truth.grams[:5]
    assert max(seen.errors(truth)) < EXACT
    assert len(seen.readings) == 5
    assert seen.stopping.watch.begun
    assert {"gradient/norm", "complexity/residual_median", "stopping/risk"} <= set(seen.trainer.callback_metrics)
    assert seen.told == []


def test_synchronised_batch_norm_of_one_process_couples_the_examples_and_is_named(tmp_path: Path) -> None:
    def make() -> pl.LightningModule:
        return nn.SyncBatchNorm.convert_sync_batchnorm(Classifier(batch_norm=True))  # type: ignore[return-value]

    assert isinstance(make().net[0], nn.SyncBatchNorm)
    seen = undisturbed(make, tmp_path, strict=False, sync_batchnorm=True)
    assert {sample.status for sample in seen.samples} == {"contribution"}
    assert seen.told == [
        "lightning_cx: per-example gradients: rows are contributions, since BatchNorm in training mode couples the "
        "examples"
    ]
    assert not seen.readings[-1].coupled
    assert seen.stopping.watch.begun


def test_an_anomaly_ends_the_fit_where_it_would_without_us(tmp_path: Path) -> None:
    x, y = images(160).tensors
    x = x.clone()
    x[70] = torch.nan
    data = DataLoader(TensorDataset(x, y), batch_size=32)
    ended: list[tuple[int, str]] = []

    class Note(pl.Callback):
        def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
            ended.append((trainer.global_step, str(exception)))

    for us in (None, "the monitor and early stopping"):
        with pytest.raises(RuntimeError, match="returned nan values"):
            run(Classifier, tmp_path, us=us, front=[Note()], data=data, detect_anomaly=True, strict=False)
    assert ended[0] == ended[1]
    assert ended[0][0] == 2


def test_evaluation_without_inference_mode_is_no_concern_of_ours(tmp_path: Path) -> None:
    class Validated(Classifier):
        """Takes a gradient in its validation."""

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            with torch.enable_grad():
                x = batch[0].clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.net(x).sum(), x)
            self.log("val_slope", slope.norm())

    loaders = pl.LightningDataModule.from_datasets(images(160), images(64), batch_size=32)
    seen = undisturbed(Validated, tmp_path, data=loaders, inference_mode=False, val_check_interval=2)
    assert len(seen.samples) == len(seen.readings) == 10
    assert "val_slope" in seen.trainer.callback_metrics
    assert seen.told == []
