"""Some fixed entries of the gradient, for those who want to see single coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from zlib import crc32

import torch
from torch import Generator, Tensor

from lightning_cx.gradients.uses import Use


@dataclass(frozen=True)
class Entries:
    """Entries of one parameter that stand in a few of its rows, so that only a slab of each gradient is formed.

    Attributes:
        name: Name of the parameter.
        shape: Its shape.
        start: First row of the slab.
        stop: End of the slab.
        places: Flat places within the slab, [count].
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    places: Tensor

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.places)

    def of_use(self, use: Use) -> Tensor:
        """Pick the entries out of every example's gradient, [N, count]."""
        width = prod(self.shape[1:])
        if use.shape[1:] == self.shape and self.shape:
            slab = use.slab(self.start, self.stop)
        elif len(use.shape) == 2:  # the parameter as one long row
            slab = use.slab(self.start * width, self.stop * width)
        else:
            return self.of_rows(use.rows())
        return slab.flatten(1)[:, self.places.to(slab.device)]

    def of_rows(self, rows: Tensor) -> Tensor:
        """Pick the entries out of whole gradients [N, ...]: [N, count]."""
        width = prod(self.shape[1:])
        return rows.reshape(len(rows), -1)[:, self.start * width + self.places.to(rows.device)]


def spread(parameters: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Entries]:
    """Choose about `count` entries, as many of each parameter as its size says but one at least.

    Args:
        parameters: Parameters by name.
        count: Number of entries in all; 0 chooses none.
        seed: Seed of the choice; the same names and shapes give the same entries.
    """
    total = sum(p.numel() for p in parameters.values())
    if not count or not total:
        return {}
    chosen = {}
    for name, parameter in parameters.items():
        size = parameter.numel()
        if size:
            share = min(size, max(1, round(count * size / total)))
            chosen[name] = _choose(name, tuple(parameter.shape), share, seed)
    return chosen


def _choose(name: str, shape: tuple[int, ...], count: int, seed: int) -> Entries:
    # The generator reads only the low 32 bits of a seed, so name and seed are hashed into these.
    generator = Generator().manual_seed(crc32(f"{seed} {name} entries".encode()))
    rows, width = (shape[0] if shape else 1), prod(shape[1:])
    held = min(rows, ceil(count / width))
    start = int(torch.randint(rows - held + 1, (), generator=generator))
    places = torch.randperm(held * width, generator=generator)[:count]
    return Entries(name, shape, start, start + held, places)
