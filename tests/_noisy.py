"""Small problems with a known amount of noise, on which stopping in time can be seen."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def surface(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * x[:, :1]) + x[:, 1:2]


def regression(count: int = 256, noise: float = 0.5, seed: int = 1) -> TensorDataset:
    """A smooth surface that bends along two of five directions, and noise of a given standard deviation."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(-1, 1, (count, 5))
    y = surface(x) + noise * draw.normal(size=(count, 1))
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))


def blobs(count: int = 256, flipped: float = 0.3, seed: int = 0) -> TensorDataset:
    """Three clouds of points in four dimensions, with a share of the labels drawn anew."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count)
    x = 1.5 * np.eye(4)[labels] + 0.5 * draw.normal(size=(count, 4))
    labels = np.where(draw.random(count) < flipped, draw.integers(0, 3, count), labels)
    return TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(labels))


class Fit(pl.LightningModule):
    """A perceptron on either problem.

    Args:
        inputs: Features of an example.
        outputs: 1 for regression, the number of classes otherwise.
        optimizer: Of torch.optim.
        smoothing: Of labels.
        dropout: Share.
    """

    def __init__(
        self,
        inputs: int = 5,
        outputs: int = 1,
        optimizer: str = "Adam",
        smoothing: float = 0.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(inputs, 64), nn.Tanh(), nn.Dropout(dropout), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )
        self.classes, self.smoothing = outputs > 1, smoothing
        self.optimizer, self.options = optimizer, {"lr": 5e-3, **options}
        self.calls = 0

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        self.calls += 1
        if self.classes:
            return F.cross_entropy(self.net(x), y, label_smoothing=self.smoothing)
        return F.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)(self.parameters(), **self.options)


class ByHand(Fit):
    """Under manual optimisation, with two optimizers that take turns."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        chosen = optimizers[batch_idx % 2]
        chosen.zero_grad()
        self.manual_backward(self.loss(batch))
        chosen.step()

    def configure_optimizers(self):
        halves = [*self.net[0].parameters()], [*self.net[3].parameters(), *self.net[5].parameters()]
        return [torch.optim.Adam(half, lr=5e-3) for half in halves]


class Stream(IterableDataset):
    """Examples without an index."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self):
        return iter(self.data)


def batches(data: Any, batch_size: int = 64, shuffle: bool = True) -> DataLoader:
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle and not isinstance(data, IterableDataset))


def trainer(callbacks: list[Any], folder: Any, **options: Any) -> pl.Trainer:
    pl.seed_everything(7)
    return pl.Trainer(
        **{
            "max_steps": 1500,
            "max_epochs": -1,
            "accelerator": "cpu",
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "default_root_dir": folder,
            **options,
        }
    )


class Weights(pl.Callback):
    """Notes the weights after every step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._note(trainer, pl_module)

    def _note(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.after[trainer.global_step] = {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
