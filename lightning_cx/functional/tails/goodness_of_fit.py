"""Tests of what samples rule out: a normal law, any stable law, and sums that keep the shape of their terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tails.ecf import (
    PROJECTIONS,
    decay_of,
    frequencies,
    indices,
    mean_squared_correlation,
    project,
    samples_of,
    squared_modulus,
    standardised,
    why_degenerate,
    why_not,
)
from lightning_cx.functional.tails.pooling import grouped_sums, indices_of_sums, sum_size
from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable


@dataclass(frozen=True, eq=False)
class TailTest:
    """What one test says; a small p-value rules its hypothesis out, a large one proves nothing.

    Attributes:
        statistic: ``[]`` float64; for vectors the median over the projections.
        p_value: ``[]`` float64 in (0, 1]; how often the hypothesis would give a statistic as extreme.
        n: Number of samples.
        reason: Why there is no number; empty where there is one.
    """

    statistic: Tensor
    p_value: Tensor
    n: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"unknown: {self.reason}"
        return f"statistic {self.statistic:.3g}, {in_words(float(self.p_value))} (n = {self.n})"


def anderson_darling(samples: Any, projections: int | None = PROJECTIONS, seed: int = 0) -> TailTest:
    """Test whether samples could come from a normal law whose mean and variance are not known.

    ``A^2 = -n - mean((2 i - 1) (log F(z_i) + log(1 - F(z_(n+1-i)))))`` of the sorted, standardised samples, times
    ``1 + .75 / n + 2.25 / n^2``. Of all such tests it looks hardest at the tails.

    Args:
        samples: ``[n]`` numbers or ``[n, d]`` vectors, any real dtype.
        projections: Number of random directions for vectors; None takes the columns as projections already made. The
            median over them is conservative: a normal law is ruled out in less than p of all cases.
        seed: Seed of the directions.

    Returns:
        TailTest; refused for the same samples as `alpha_ecf`.

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``.

    References:
        Anderson & Darling 1954; D'Agostino & Stephens 1986, "Goodness-of-fit techniques", table 4.9, for the p-value.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> bool(anderson_darling(torch.randn(512, generator=draw)).p_value > 0.05)
        True
        >>> from lightning_cx.functional.tails import symmetric_stable
        >>> bool(anderson_darling(symmetric_stable(1.7, (512,), draw)).p_value < 1e-3)
        True
    """
    projected, reason = _projected(samples, projections, seed)
    if reason:
        return _refused(projected, reason)
    statistic = float(torch.quantile(normality_statistics(standardised(projected.T)), 0.5))
    return _result(statistic, normality_p_value(statistic), projected)


SHAPE_POINTS = 25
"""Frequencies .1 to 2.5 tell whether the law is stable at all."""


def stable_test(samples: Any, projections: int | None = PROJECTIONS, seed: int = 0) -> TailTest:
    """Test whether samples could come from any symmetric stable law, by a parametric bootstrap.

    The statistic is the mean squared distance, over ``t = .1, ..., 2.5``, between ``|phi(t)|^2`` and the stable
    ``exp(-2 c t^alpha)`` fitted to it up to 1. Its null is that of 63 to 199 samples of the fitted law, each fitted
    again.

    Args:
        samples: ``[n]`` numbers or ``[n, d]`` vectors, any real dtype.
        projections: As for `anderson_darling`; the median over them is compared with that of as many projections of
            elliptical stable vectors, as correlated as these are.
        seed: Seed of directions and null.

    Returns:
        TailTest; refused for the same samples as `alpha_ecf`.

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``.

    References:
        Koutrouvelis & Kellermeier 1981, "A goodness-of-fit test based on the empirical characteristic function when
        parameters must be estimated"; THEORY section 6.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> from lightning_cx.functional.tails import symmetric_stable
        >>> bool(stable_test(symmetric_stable(1.5, (2048,), draw)).p_value > 0.05)
        True
        >>> scale = torch.where(torch.rand(2048, generator=draw) < 0.1, 10.0, 1.0)
        >>> bool(stable_test(scale * torch.randn(2048, generator=draw)).p_value < 0.05)
        True
    """
    projected, reason = _projected(samples, projections, seed)
    if reason:
        return _refused(projected, reason)
    modulus = squared_modulus(standardised(projected.T), SHAPE_POINTS)
    alpha = float(torch.quantile(decay_of(modulus)[0], 0.5))
    statistic = float(torch.quantile(distances(modulus), 0.5))
    null = stable_null(alpha, len(projected), 2, seed, *_kind(projected))
    return _result(statistic, null.p_distance(statistic), projected)


def aggregation_test(
    samples: Any, batch_size: int = 16, projections: int | None = PROJECTIONS, seed: int = 0
) -> TailTest:
    """Test whether sums keep the tail index of what is summed, as those of a stable law do and no others.

    The statistic is the index of sums of `batch_size` samples, grouped at random, less the index of single ones. Where
    it is above 0, heaviness averages away. The null is that of the fitted stable law; the p-value is one-sided.

    Args:
        samples: ``[n]`` numbers or ``[n, d]`` vectors, any real dtype.
        batch_size: How many are summed; fewer where that would leave less than 64 sums. A law whose smaller sums are
            normal has normal larger ones.
        projections: As for `anderson_darling`.
        seed: Seed of directions, groups and null.

    Returns:
        TailTest; refused for the same samples as `alpha_ecf`.

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``, or the batch size is below 1.

    References:
        THEORY section 6.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> scale = torch.where(torch.rand(2048, generator=draw) < 0.1, 10.0, 1.0)
        >>> mixture = aggregation_test(scale * torch.randn(2048, generator=draw))
        >>> bool(mixture.statistic > 0.3), bool(mixture.p_value < 0.05)
        (True, True)
        >>> from lightning_cx.functional.tails import symmetric_stable
        >>> bool(aggregation_test(symmetric_stable(1.5, (2048,), draw)).p_value > 0.05)
        True
    """
    projected, reason = _projected(samples, projections, seed)
    size = sum_size(batch_size, len(projected))
    if reason:
        return _refused(projected, reason)
    single = indices(projected.T)
    summed = indices_of_sums(grouped_sums(projected.T, size, seed))
    statistic = float(torch.quantile(summed, 0.5) - torch.quantile(single, 0.5))
    null = stable_null(float(torch.quantile(single, 0.5)), len(projected), size, seed, *_kind(projected))
    return _result(statistic, null.p_shift(statistic), projected)


def normality_statistics(samples: Tensor) -> Tensor:
    """Compute the corrected Anderson-Darling statistic along the last axis of ``[..., n]``."""
    n = samples.shape[-1]
    z = ((samples - samples.mean(-1, keepdim=True)) / samples.std(-1, keepdim=True)).sort(-1).values
    weight = 2 * torch.arange(1, n + 1, dtype=z.dtype, device=z.device) - 1
    statistic = -n - (weight * (torch.special.log_ndtr(z) + torch.special.log_ndtr(-z.flip(-1)))).mean(-1)
    return statistic * (1 + 0.75 / n + 2.25 / n**2)


def normality_p_value(statistic: float) -> float:
    """Return the p-value of the corrected statistic for unknown mean and variance, by D'Agostino and Stephens."""
    a = min(statistic, 13.0)  # beyond, the fit turns round; p is below 1e-30
    if a < 0.2:
        return 1 - math.exp(-13.436 + 101.14 * a - 223.73 * a**2)
    if a < 0.34:
        return 1 - math.exp(-8.318 + 42.796 * a - 59.938 * a**2)
    if a < 0.6:
        return math.exp(0.9177 - 4.279 * a - 1.38 * a**2)
    return math.exp(1.2937 - 5.709 * a + 0.0186 * a**2)


_SMALLEST = 1e-6  # approximations of p-values say no more than "smaller" beyond


def in_words(p_value: float) -> str:
    """Format a p-value as ``p = 0.03`` or ``p < 1e-06``."""
    return f"p < {_SMALLEST:.0e}" if p_value < _SMALLEST else f"p = {p_value:.2g}"


def _projected(samples: Any, projections: int | None, seed: int) -> tuple[Tensor, str]:
    samples = samples_of(samples)
    reason = why_not(samples)
    if reason:
        return samples.new_zeros(samples.shape[0], 1), reason
    projected = project(samples, projections, seed)
    return projected, why_degenerate(standardised(projected.T))


def _refused(like: Tensor, reason: str) -> TailTest:
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=like.device)
    return TailTest(nothing, nothing, len(like), reason)


def _result(statistic: float, p_value: float, like: Tensor) -> TailTest:
    numbers = torch.tensor([statistic, p_value], dtype=torch.float64).to(like.device)
    return TailTest(*numbers.unbind(), n=len(like))


def _kind(projected: Tensor) -> tuple[int, float]:
    """Return the number of projections and their mean squared correlation."""
    return projected.shape[1], mean_squared_correlation(standardised(projected.T))


@dataclass(frozen=True, eq=False)
class StableNull:
    """What samples of one stable law give: distances from the fitted law, and how far sums shift the index."""

    distances: Tensor
    shifts: Tensor

    def p_distance(self, statistic: float) -> float:
        """Return how often a stable law lies at least as far from its own fit."""
        return _p_value(self.distances, statistic)

    def p_shift(self, statistic: float) -> float:
        """Return how often the sums of a stable law look at least as much lighter."""
        return _p_value(self.shifts, statistic)

    @property
    def largest_shift(self) -> float:
        """What 95% of the shifts stay below."""
        return float(torch.quantile(self.shifts, 0.95))


_ONE = 0.8  # projections correlated so strongly scatter as one
_LARGEST, _LARGEST_OF_SEVERAL = 1 << 14, 1 << 11  # samples drawn of one law; 16 projections take 16 times as long
_MIXING = 0.1  # correlations are rounded to multiples, so that nulls are found again
_LOWEST = 0.4  # below it a draw may overflow, and nothing changes any more
_GRID = 0.05  # the null is drawn for the nearest multiple: it changes by far less than its own scatter in between


def stable_null(
    alpha: float, n: int, size: int, seed: int, projections: int = 1, correlation: float = 1.0
) -> StableNull:
    """Draw the null of `stable_test` and `aggregation_test`, for the nearest multiple of .05, or return a cached one.

    Of many samples fewer are drawn: sums of stable variables have their law, so that sums of fewer, as many as before,
    scatter alike; and distances fall as 1 / n.
    """
    several = projections > 1 and correlation < _ONE
    drawn = min(n, _LARGEST_OF_SEVERAL if several else _LARGEST)
    mixing = round(correlation**0.5 / _MIXING) if several else 0
    shape = (drawn, max(1, round(size * drawn / n)), projections if several else 1)
    null = _draw_null(round(max(alpha, _LOWEST) / _GRID), shape, mixing, seed)
    return StableNull(null.distances * drawn / n, null.shifts)


def distances(modulus: Tensor) -> Tensor:
    """Compute the mean squared distance ``[...]`` of ``|phi|^2`` from the stable law fitted to it."""
    slope, intercept = decay_of(modulus)
    log_t = frequencies(modulus.shape[-1], modulus).log()
    fitted = torch.exp(-torch.exp(intercept[..., None] + slope[..., None] * log_t))
    return (modulus - fitted).square().mean(-1)


def _p_value(null: Tensor, statistic: float) -> float:
    return (1 + int((null >= statistic).sum())) / (1 + len(null))


_OF_SEVERAL = 63  # draws of 16 projections, which take 16 times as long; enough for a p-value below .02
_NUMBERS = 1 << 19  # about how many random numbers a null takes: .1 s
_MOST, _FEWEST = 199, 99  # draws; a p-value of .01 is then still possible
_AT_ONCE = 1 << 17  # complex numbers that stay in the cache


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
    """Draw samples ``[count, projections, n]``; several projections are those of a vector, equally correlated."""
    if projections == 1:
        return symmetric_stable(alpha, (count, 1, n), generator, torch.float32)
    vectors = elliptical_stable(alpha, count * n, projections + 1, generator).float()
    mixed = (1 - mixing) ** 0.5 * vectors[:, 1:] + mixing**0.5 * vectors[:, :1]
    return mixed.view(count, n, projections).transpose(1, 2)
