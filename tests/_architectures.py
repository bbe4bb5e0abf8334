"""Networks of the kinds that people train, with losses of their own, and the gradients of their examples one by one.

Every network has `loss(batch)`. What it draws at random it draws through `Draws`, so that the naive loop can play the
same numbers back to one example at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import Dataset, TensorDataset

from lightning_cx.batch import take

COUNT, BATCH, CLASSES = 160, 20, 4


class Draws(nn.Module):
    """Random numbers that can be played back."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.play: list[Tensor] | None = None

    def forward(self, draw: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.play is not None:
            return self.play.pop(0)
        self.kept.append(draw(*arguments))
        return self.kept[-1]


class Network(nn.Module):
    """Something with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = Draws()

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)


def one_by_one(network: Network, batch: Any, examples: int) -> Tensor:
    """[N, P] gradients of the examples' own losses in float64, each with its part of what was drawn for the batch."""
    double, drawn = copy.deepcopy(network).double(), network.draws.kept
    batch = to_double(batch)
    for part in double.modules():
        if isinstance(part, parametrizations._SpectralNorm):
            part.eval()  # its vectors are those of the training's own pass by now, and move no further
    parameters = [p for p in double.parameters() if p.requires_grad]
    rows = []
    for i in range(examples):
        double.draws.play = [to_double(draw[i : i + 1]) for draw in drawn]
        found = torch.autograd.grad(double.loss(take(batch, i, i + 1, examples)), parameters, allow_unused=True)
        rows.append(torch.cat([flat(g, p) for g, p in zip(found, parameters, strict=True)]))
    return torch.stack(rows)


def flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if gradient is None else gradient.to_dense()).flatten()


def to_double(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: to_double(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(map(to_double, batch))
    return batch.double() if isinstance(batch, Tensor) and batch.is_floating_point() else batch


class Training(pl.LightningModule):
    """Trains a network, and keeps the naive Gram matrix of every batch."""

    def __init__(self, network: Network, optimizer: str = "SGD", watched: bool = True) -> None:
        super().__init__()
        self.network, self.optimizer, self.watched = network, optimizer, watched
        self.truth: list[Tensor] = []
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.network.draws.kept.clear()
        loss = self.network.loss(batch)
        self.seen.append(loss.item())
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        if self.watched:
            batch, examples = self.batch_now
            rows = one_by_one(self.network, batch, examples)
            self.truth.append(rows @ rows.T)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        leaf = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        self.batch_now = batch, len(leaf)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.optimizer)([p for p in self.parameters() if p.requires_grad], lr=1e-2)


# Data


class Rows(Dataset):
    """A dictionary for each example, as data sets of texts have them."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def numbers(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, high, shape))


def images(channels: int = 1, size: int = 8) -> TensorDataset:
    labels = numbers(CLASSES, COUNT)
    x = drawn(COUNT, channels, size, size)
    x[torch.arange(COUNT), 0, labels] += 2
    return TensorDataset(x, labels)


def vectors(width: int = 6) -> TensorDataset:
    x = drawn(COUNT, width)
    return TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


def texts(length: int = 7, ragged: bool = False, vocabulary: int = 11) -> Rows:
    ids = (numbers(vocabulary, COUNT, 1) + torch.arange(length)) % vocabulary  # what follows can be learned
    lengths = numbers(length - 2, COUNT, seed=2) + 3 if ragged else torch.full((COUNT,), length)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return Rows(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
