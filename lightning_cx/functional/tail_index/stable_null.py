"""What samples of a stable law look like, drawn: the null of the tests that ask for one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tail_index.characteristic import (
    SHAPE_POINTS,
    decay_of,
    frequencies,
    squared_modulus,
    standardised,
)
from lightning_cx.functional.tail_index.stable import symmetric_stable
from lightning_cx.functional.tail_index.sums import grouped_sums, indices_of_sums

_GRID = 0.05  # the null is drawn for the nearest multiple: it changes by far less than its own scatter in between
_LOWEST = 0.4  # below it a draw may overflow, and nothing changes any more
_NUMBERS = 1 << 19  # about how many random numbers a null takes
_LARGEST = 1 << 14
_AT_ONCE = 1 << 17
_MOST, _FEWEST = 199, 99


def distances(modulus: Tensor) -> Tensor:
    """Mean squared distance of ``|phi|^2`` from the stable law fitted to it, ``[...]``."""
    slope, intercept = decay_of(modulus)
    log_t = frequencies(modulus.shape[-1], modulus).log()
    fitted = torch.exp(-torch.exp(intercept[..., None] + slope[..., None] * log_t))
    return (modulus - fitted).square().mean(-1)


@dataclass(frozen=True, eq=False)
class StableNull:
    """What samples of one stable law give: distances from the fitted law, and how far sums shift the index."""

    distances: Tensor
    shifts: Tensor

    def p_distance(self, statistic: float) -> float:
        """How often a stable law lies at least as far from its own fit."""
        return _p_value(self.distances, statistic)

    def p_shift(self, statistic: float) -> float:
        """How often the sums of a stable law look at least as much lighter."""
        return _p_value(self.shifts, statistic)

    @property
    def largest_shift(self) -> float:
        """What 95% of the shifts stay below."""
        return float(torch.quantile(self.shifts, 0.95))


def stable_null(alpha: float, n: int, size: int, seed: int) -> StableNull:
    """Draw the null of `stable_test` and `aggregation_test`, or take it from the last few that were drawn.

    Of many samples fewer are drawn: sums of stable variables have their law, so that sums of fewer, as many as before,
    scatter alike; and distances fall as 1 / n.
    """
    drawn = min(n, _LARGEST)
    null = _draw_null(round(max(alpha, _LOWEST) / _GRID), drawn, max(1, round(size * drawn / n)), seed)
    return StableNull(null.distances * drawn / n, null.shifts)


@lru_cache(maxsize=16)
def _draw_null(steps: int, n: int, size: int, seed: int) -> StableNull:
    alpha = min(steps * _GRID, 2.0)
    count = min(max(_NUMBERS // n, _FEWEST), _MOST)
    generator = Generator().manual_seed(seed)
    far, shifts = [], []
    for some in torch.arange(count).split(max(1, _AT_ONCE // n)):
        drawn = symmetric_stable(alpha, (len(some), n), generator, torch.float32)
        modulus = squared_modulus(standardised(drawn), SHAPE_POINTS).double()
        far.append(distances(modulus))
        shifts.append(indices_of_sums(grouped_sums(drawn, size, seed)).double() - decay_of(modulus)[0])
    return StableNull(torch.cat(far), torch.cat(shifts))


def _p_value(null: Tensor, statistic: float) -> float:
    return (1 + int((null >= statistic).sum())) / (1 + len(null))
