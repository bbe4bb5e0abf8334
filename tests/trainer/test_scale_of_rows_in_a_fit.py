"""Losses that are sums: by how much they are larger than a mean is found out from examples that can show it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.instruments import GradientNoise

pytestmark = [
    pytest.mark.filterwarnings("ignore:lightning_cx. .*gradient/noise_scale"),
    pytest.mark.filterwarnings("ignore:lightning_cx. per-example gradients. the loss is a sum over examples"),
]
SIZE = 8


class Summed(pl.LightningModule):
    """A hinge loss, added up; it is met where the margin is below -50."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.layer.weight.data.copy_(torch.tensor([[0.3, -0.2, 0.5]]))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, margin = batch
        return F.relu(self.layer(x) + margin).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Norms(pl.Callback):
    """Notes what was measured, and the norm of the mean gradient of each batch."""

    def __init__(self) -> None:
        self.measured: list[float] = []
        self.true: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.true.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        self.measured.append(float(trainer.callback_metrics.get("gradient/norm", torch.tensor(math.nan))))


def fit(batches: list[list[int]], margin: Tensor, folder: Path) -> Norms:
    norms = Norms()
    x = torch.tensor(np.random.default_rng(0).normal(size=(len(margin), 3))).float()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[ComplexityMonitor([GradientNoise()], every_n_steps=1), norms],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        max_epochs=1,
        default_root_dir=folder,
    )
    trainer.fit(Summed(), DataLoader(TensorDataset(x, margin[:, None]), batch_sampler=batches))
    return norms


def test_a_first_batch_of_one_example_does_not_make_later_sums_means(tmp_path: Path) -> None:
    batches = [[0], *(list(range(start, start + SIZE)) for start in (1, 1 + SIZE))]
    norms = fit(batches, torch.full((1 + 2 * SIZE,), 5.0), tmp_path)
    assert norms.measured == pytest.approx(norms.true, rel=1e-5)


def test_a_first_batch_without_gradients_does_not_make_later_sums_means(tmp_path: Path) -> None:
    margin = torch.tensor([-100.0] * SIZE + [5.0] * SIZE)
    norms = fit([list(range(SIZE)), list(range(SIZE, 2 * SIZE))], margin, tmp_path)
    assert norms.measured == pytest.approx(norms.true, rel=1e-5)
    assert norms.measured[0] == 0.0


def test_a_batch_whose_compared_examples_have_no_gradient_is_passed_over_by_name(tmp_path: Path) -> None:
    margin = torch.tensor([-100.0] * (2 * SIZE))
    margin[[1, SIZE + 1]] = 5.0  # one of eight
    with pytest.warns(
        UserWarning, match="a sum over examples cannot be distinguished from a mean; such batches are skipped"
    ):
        norms = fit([list(range(SIZE)), list(range(SIZE, 2 * SIZE))], margin, tmp_path)
    assert all(math.isnan(measured) for measured in norms.measured)
