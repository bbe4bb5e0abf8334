"""What samples of a stable law look like, drawn: the null of the tests that ask for one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tails.ecf import SHAPE_POINTS, decay_of, frequencies, squared_modulus, standardised
from lightning_cx.functional.tails.pooling import grouped_sums, indices_of_sums
from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable

_GRID = 0.05  # the null is drawn for the nearest multiple: it changes by far less than its own scatter in between
_LOWEST = 0.4  # below it a draw may overflow, and nothing changes any more
_NUMBERS = 1 << 19  # about how many random numbers a null takes: .1 s
_MOST, _FEWEST = 199, 99  # draws; a p-value of .01 is then still possible
_OF_SEVERAL = 63  # draws of 16 projections, which take 16 times as long; enough for a p-value below .02
_LARGEST, _LARGEST_OF_SEVERAL = 1 << 14, 1 << 11  # samples drawn of one law, for the same reason
_ONE = 0.8  # projections correlated so strongly scatter as one
_MIXING = 0.1  # correlations are rounded to multiples, so that nulls are found again
_AT_ONCE = 1 << 17  # complex numbers that stay in the cache


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


def stable_null(
    alpha: float, n: int, size: int, seed: int, projections: int = 1, correlation: float = 1.0
) -> StableNull:
    """Draw the null of `stable_test` and `aggregation_test`, or take it from the last few that were drawn.

    Of many samples fewer are drawn: sums of stable variables have their law, so that sums of fewer, as many as before,
    scatter alike; and distances fall as 1 / n.

    Args:
        alpha: Index of the law; the nearest multiple of .05 is drawn.
        n: Number of samples.
        size: How many of them a sum adds up.
        seed: Seed of the draws.
        projections: Number of projections over which the median is taken.
        correlation: Mean squared correlation between two projections.
    """
    several = projections > 1 and correlation < _ONE
    drawn = min(n, _LARGEST_OF_SEVERAL if several else _LARGEST)
    mixing = round(correlation**0.5 / _MIXING) if several else 0
    shape = (drawn, max(1, round(size * drawn / n)), projections if several else 1)
    null = _draw_null(round(max(alpha, _LOWEST) / _GRID), shape, mixing, seed)
    return StableNull(null.distances * drawn / n, null.shifts)


@lru_cache(maxsize=16)
def _draw_null(steps: int, shape: tuple[int, int, int], mixing: int, seed: int) -> StableNull:
    n, size, projections = shape
    alpha = min(steps * _GRID, 2.0)
    count = _OF_SEVERAL if projections > 1 else min(max(_NUMBERS // n, _FEWEST), _MOST)
    generator = Generator().manual_seed(seed)
    far, shifts = [], []
    for some in torch.arange(count).split(max(1, _AT_ONCE // (n * projections))):
        drawn = _draw(alpha, len(some), n, projections, mixing * _MIXING, generator)
        modulus = squared_modulus(standardised(drawn), SHAPE_POINTS).double()
        summed = indices_of_sums(grouped_sums(drawn, size, seed)).double()
        far.append(distances(modulus).quantile(0.5, dim=-1))
        shifts.append(summed.quantile(0.5, dim=-1) - decay_of(modulus)[0].quantile(0.5, dim=-1))
    return StableNull(torch.cat(far), torch.cat(shifts))


def _draw(alpha: float, count: int, n: int, projections: int, mixing: float, generator: Generator) -> Tensor:
    """Samples ``[count, projections, n]``; for several projections those of a vector, with equal correlations."""
    if projections == 1:
        return symmetric_stable(alpha, (count, 1, n), generator, torch.float32)
    vectors = elliptical_stable(alpha, count * n, projections + 1, generator).float()
    mixed = (1 - mixing) ** 0.5 * vectors[:, 1:] + mixing**0.5 * vectors[:, :1]
    return mixed.view(count, n, projections).transpose(1, 2)


def _p_value(null: Tensor, statistic: float) -> float:
    return (1 + int((null >= statistic).sum())) / (1 + len(null))
