"""What it takes to interrupt a run and to go on: data that resume in the middle of an epoch, and a log in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Dataset, Sampler


class Shuffled(Sampler):
    """Batches of indices in an order that depends on the epoch alone, from where a checkpoint left off.

    Args:
        examples: In the data set.
        size: Of a batch.
    """

    def __init__(self, examples: int, size: int) -> None:
        self.examples, self.batch_size = examples, size
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(self.epoch).permutation(self.examples).tolist()
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield order[start : start + self.batch_size]
        self.epoch, self.position = self.epoch + 1, 0


class Resumable(DataLoader):
    """A loader with a state, which Lightning keeps in its checkpoints."""

    def __init__(self, data: Dataset, size: int = 32) -> None:
        super().__init__(data, batch_sampler=Shuffled(len(data), size))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batch_sampler.epoch, "position": self.batch_sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.epoch, self.batch_sampler.position = state["epoch"], state["position"]


class Memory(Logger):
    """Keeps what is logged: `rows` holds step, tag and value in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, float]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Of no account."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows += [(step or 0, tag, float(value)) for tag, value in metrics.items()]
