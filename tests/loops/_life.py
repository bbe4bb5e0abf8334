"""A classifier with all entry points and a Trainer around it, for tests of a callback's life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from _lightning import Classifier, loader
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader


class Complete(Classifier):
    """Trains, validates, tests and predicts, and draws random numbers each time.

    Args:
        size: Of a training batch.
    """

    def __init__(self, size: int = 32, **options: Any) -> None:
        torch.manual_seed(0)
        super().__init__(**{"dropout": 0.1, **options})
        self.size, self.lr = size, 3e-3

    def train_dataloader(self) -> DataLoader:
        return loader(160, self.size)

    def val_dataloader(self) -> DataLoader:
        return loader(64, shuffle=False)

    test_dataloader = predict_dataloader = val_dataloader

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]) + torch.rand(())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.predict_step(batch, batch_idx), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self.predict_step(batch, batch_idx), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def trainer(callbacks: list[Any], folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )


def measured(fitted: pl.Trainer) -> set[str]:
    """Tags of ours among what other callbacks can monitor, without the time that it took."""
    return {tag for tag in fitted.callback_metrics if "/" in tag} - {"complexity/overhead"}
