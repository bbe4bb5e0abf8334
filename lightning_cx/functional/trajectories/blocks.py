"""A path in bounded memory: means over equal ranges of steps, which widen as the path grows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cx.functional.trajectories.diffusion import CONFINED, Array

MAX_BLOCKS = 2048
"""When so many are full they are merged in pairs: between 1024 and 2048 of them, 1 MiB for 64 numbers."""

_FEW = 8  # blocks from which their filling is judged

FILLED = 2 / 3
"""Blocks widen too where samples are so sparse that fewer of the blocks have one in the block before: with samples at a
period, where a quarter of the blocks holds none. A gap in the path does not count."""


class PathBlocks:
    """Collects a path as block means; ranges without a sample are left out.

    Args:
        width: Steps that a block spans at first.
        limit: Blocks that are kept at most; None keeps all of the given width.

    Raises:
        ValueError: If `width` is less than 1 or `limit` less than 16.

    Example:
        >>> path = PathBlocks(limit=16)
        >>> for step in range(100):
        ...     path.add(step, torch.tensor([float(step)]))
        >>> path.width, len(path), path.blocks().means[:2, 0].tolist()
        (8, 13, [3.5, 11.5])
    """

    def __init__(self, width: int = 1, limit: int | None = MAX_BLOCKS) -> None:
        if width < 1 or (limit is not None and limit < 2 * _FEW):
            raise ValueError(f"blocks span a step, and 16 are kept, at least; got width={width}, limit={limit}.")
        self.width, self.limit = width, limit
        self._held: dict[int, tuple[int, int, int, Tensor]] = {}  # first and last step, samples, their sum
        self._followed = 0  # blocks of which the one before holds a sample too
        self._origin = torch.zeros(1, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, step: int, position: Tensor) -> None:
        """Add the position ``[k]`` at a step; steps come in ascending order."""
        position = position.detach().to("cpu", torch.float64, copy=True)
        if not self._held:
            self._origin = position
        self._put(step // self.width, (step, step, 1, position))
        while self.limit is not None and (len(self) > self.limit or self._is_sparse()):
            held, self._held, self.width, self._followed = self._held, {}, 2 * self.width, 0
            for number, block in held.items():
                self._put(number // 2, block)

    def _put(self, number: int, block: tuple[int, int, int, Tensor]) -> None:
        first, last, count, total = block
        if number in self._held:
            known = self._held[number]
            first, count, total = known[0], known[2] + count, known[3] + total
        else:
            self._followed += number - 1 in self._held
        self._held[number] = (first, last, count, total)

    def _is_sparse(self) -> bool:
        return len(self) >= _FEW and self._followed < FILLED * (len(self) - 1)

    def blocks(self) -> Blocks:
        """Return the path as it is known now."""
        held = list(self._held.values())
        means = [total / count for _, _, count, total in held]
        return Blocks(
            np.array([first for first, *_ in held], dtype=np.int64),
            np.array([last for _, last, *_ in held], dtype=np.int64),
            torch.stack(means).numpy() if means else np.empty((0, 1)),
            np.array([count for *_, count, _ in held], dtype=np.int64),
            self.width,
            self._origin.numpy(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        spans = {number: (first, last, count) for number, (first, last, count, _) in self._held.items()}
        sums = [total for *_, total in self._held.values()]
        return {
            "width": self.width,
            "spans": spans,
            "sums": torch.stack(sums) if sums else None,
            "origin": self._origin,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.width, self._origin = state["width"], state["origin"]
        sums = state["sums"] if state["spans"] else ()
        self._held = {
            number: (*span, total) for (number, span), total in zip(state["spans"].items(), sums, strict=True)
        }
        self._followed = sum(number - 1 in self._held for number in self._held)


@dataclass(frozen=True)
class Blocks:
    """Means ``[n, k]`` of a path over blocks of `width` steps, with the first and last sample and count of each."""

    first: np.ndarray
    last: np.ndarray
    means: Array
    counts: np.ndarray
    width: int
    origin: Array

    def coarser(self, factor: int) -> Blocks:
        """Return the same path in blocks that span so many times as many steps."""
        width = factor * self.width
        starts = np.flatnonzero(np.r_[True, np.diff(self.first // width) != 0])
        ends = np.r_[starts[1:], len(self.first)] - 1
        counts = np.add.reduceat(self.counts, starts)
        sums = np.add.reduceat(self.means * self.counts[:, None], starts)
        return Blocks(self.first[starts], self.last[ends], sums / counts[:, None], counts, width, self.origin)


MOST_UNCONFINED = 512
"""A path that no width shows confined is judged in so many blocks at most: there is nothing short to be seen."""

WIDENING = 4
"""Widths differ by so much: blocks of a width average the noise that hides a jump from the next finer ones."""


def widths(blocks: Blocks) -> list[Blocks]:
    """Return the path in blocks of the widths that are worth judging, the finest first.

    The finest is the first whose blocks forget: the median squared displacement, which jumps do not move, grows with an
    exponent below .5 from one block to four. Then come wider ones, of which there are 256 at least. Where no width
    forgets, that with at most 512 blocks alone.
    """
    while len(blocks.means) > MOST_UNCONFINED and _exponent(blocks.means) >= CONFINED:
        blocks = blocks.coarser(2)
    found = [blocks]
    while len(found[-1].means) > 2 * MOST_UNCONFINED:
        found.append(found[-1].coarser(WIDENING))
    return found


_LAG = 4  # blocks over which the displacement is compared with that over one


def _exponent(means: Array) -> float:
    """Fit the growth of the median squared displacement from one block to four."""
    means = means / (float(np.abs(means).max()) or 1.0)  # squares of huge numbers are none any more
    near, far = (float(np.median(np.square(means[lag:] - means[:-lag]).sum(1))) for lag in (1, _LAG))
    return math.log(far / near) / math.log(_LAG) if near > 0 and far > 0 else 0.0
