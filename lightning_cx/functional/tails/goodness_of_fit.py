"""What the samples rule out: a normal law, any stable law, and sums that keep the shape of what is summed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.tails.ecf import (
    PROJECTIONS,
    SHAPE_POINTS,
    decay_of,
    indices,
    mean_squared_correlation,
    project,
    squared_modulus,
    standardised,
)
from lightning_cx.functional.tails.fit import samples_of, why_degenerate, why_not
from lightning_cx.functional.tails.pooling import grouped_sums, indices_of_sums, sum_size
from lightning_cx.functional.tails.stable_null import distances, stable_null
from lightning_cx.functional.tails.verdict import in_words


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
    """Ask whether samples could come from a normal law whose mean and variance are not known.

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


def stable_test(samples: Any, projections: int | None = PROJECTIONS, seed: int = 0) -> TailTest:
    """Ask whether samples could come from any symmetric stable law: a parametric bootstrap.

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
    """Ask whether sums keep the tail index of what is summed, as those of a stable law do and no others.

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
    """Corrected Anderson-Darling statistic along the last axis of ``[..., n]``."""
    n = samples.shape[-1]
    z = ((samples - samples.mean(-1, keepdim=True)) / samples.std(-1, keepdim=True)).sort(-1).values
    weight = 2 * torch.arange(1, n + 1, dtype=z.dtype, device=z.device) - 1
    statistic = -n - (weight * (torch.special.log_ndtr(z) + torch.special.log_ndtr(-z.flip(-1)))).mean(-1)
    return statistic * (1 + 0.75 / n + 2.25 / n**2)


def normality_p_value(statistic: float) -> float:
    """p-value of the corrected statistic for unknown mean and variance, by the fits of D'Agostino and Stephens."""
    a = min(statistic, 13.0)  # beyond, the fit turns round; p is below 1e-30
    if a < 0.2:
        return 1 - math.exp(-13.436 + 101.14 * a - 223.73 * a**2)
    if a < 0.34:
        return 1 - math.exp(-8.318 + 42.796 * a - 59.938 * a**2)
    if a < 0.6:
        return math.exp(0.9177 - 4.279 * a - 1.38 * a**2)
    return math.exp(1.2937 - 5.709 * a + 0.0186 * a**2)


def _kind(projected: Tensor) -> tuple[int, float]:
    """Number of projections, and their mean squared correlation."""
    return projected.shape[1], mean_squared_correlation(standardised(projected.T))


def _projected(samples: Any, projections: int | None, seed: int) -> tuple[Tensor, str]:
    samples = samples_of(samples)
    reason = why_not(samples)
    if reason:
        return samples.new_zeros(samples.shape[0], 1), reason
    projected = project(samples, projections, seed)
    return projected, why_degenerate(standardised(projected.T))


def _result(statistic: float, p_value: float, like: Tensor) -> TailTest:
    numbers = torch.tensor([statistic, p_value], dtype=torch.float64).to(like.device)
    return TailTest(*numbers.unbind(), n=len(like))


def _refused(like: Tensor, reason: str) -> TailTest:
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=like.device)
    return TailTest(nothing, nothing, len(like), reason)
