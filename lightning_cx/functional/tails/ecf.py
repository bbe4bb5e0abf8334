"""The tail index of noise from its empirical characteristic function, with an interval from simulated laws."""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_cx.functional.inputs import as_tensor

PROJECTIONS = 16
"""Directions on which vectors are projected; the second half of the table `quantiles.csv` is made for their median."""


def alpha_ecf(samples: Any, projections: int | None = PROJECTIONS, seed: int = 0) -> TailFit:
    """Estimate the tail index of noise under an alpha-stable law: 2 is Gaussian, 1 is Cauchy's.

    Samples are standardised by median and half their interquartile range. With n of them the characteristic function
    has ``|phi(t)|^2 = (n |mean exp(i t x)|^2 - 1) / (n - 1)`` without bias, and a stable law has
    ``log(-log |phi(t)|^2) = log(2 c) + alpha log t``: the slope over ``t = .1, .2, ..., 1``, at most 2, is the index.
    It knows neither location nor skewness. Vectors are projected onto fixed Gaussian directions, since every
    projection of a stable vector is stable with the same index, and the median over the projections is taken.
    Coordinates are never pooled: on Gaussian noise whose coordinates have different scales, that reads as heavy.

    The 95% interval is that of a simulated table of stable laws (`quantiles.csv`, written by
    `benchmarks/tail_quantiles.py`), for one projection or 16 as far as these are correlated. Under laws that are not
    stable the index still describes how the characteristic function falls, but no property of the tail: see
    `tail_report`.

    Args:
        samples: ``[n]`` numbers or ``[n, d]`` vectors, any real dtype; tensor, array or list. Independent draws.
        projections: Number of random directions for vectors; None takes the columns as projections already made.
        seed: Seed of the directions.

    Returns:
        TailFit with `index` in (0, 2]. Refused, with nan and a reason, for fewer than 128 samples, for samples of
        which any is NaN or infinite, and where more than half are the same (zeros, constants).

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``, or `projections` is not positive.

    References:
        Koutrouvelis 1980, "Regression-type estimation of the parameters of stable laws"; Kogon & Williams 1998 for
        the standardisation and the frequencies; THEORY section 6.

    Example:
        >>> from lightning_cx.functional.tails import elliptical_stable
        >>> noise = elliptical_stable(1.5, 2048, 50, torch.Generator().manual_seed(0))
        >>> fit = alpha_ecf(noise)
        >>> f"{fit.index:.1f}", bool(fit.low < 1.5 < fit.high)
        ('1.5', True)
        >>> print(alpha_ecf(torch.zeros(512)))
        unknown: degenerate: 100% of the samples are the same number
    """
    samples = samples_of(samples)
    n = samples.shape[0]
    reason = why_not(samples)
    if reason:
        return refused(n, reason, samples)
    standard = standardised(project(samples, projections, seed).T)
    reason = why_degenerate(standard)
    return refused(n, reason, samples) if reason else fit_standardised(standard, n)


_BLOCK = 1 << 22  # entries of the samples that are turned into float64 at once


def project(samples: Tensor, projections: int | None, seed: int) -> Tensor:
    """Project vectors onto fixed Gaussian directions, a block of columns at a time; scalars stay what they are.

    Returns:
        ``[n, k]`` float64; k = 1 for scalars.
    """
    if projections is not None and projections < 1:
        raise ValueError(f"vectors are projected onto at least one direction, got projections={projections}.")
    if samples.ndim == 1:
        return samples.double()[:, None]
    if projections is None:
        return samples.double()
    n = samples.shape[0]
    generator = Generator().manual_seed(seed)
    total = torch.zeros(n, projections, dtype=torch.float64, device=samples.device)
    for block in samples.split(max(1, _BLOCK // max(1, n)), dim=1):
        directions = torch.randn(block.shape[1], projections, generator=generator, dtype=torch.float64, device="cpu")
        total += block.double() @ directions.to(samples.device)
    return total


FIT_POINTS = 10
"""Frequencies .1 to 1 tell the index: beyond, |phi|^2 drowns in its own error; THEORY section 6."""


def fit_standardised(standard: Tensor, n: int) -> TailFit:
    """Fit ``[k, n]`` standardised projections; n is the number of independent samples among them."""
    index = float(torch.quantile(decay_of(squared_modulus(standard, FIT_POINTS))[0], 0.5))
    low, high = interval(index, n, len(standard), mean_squared_correlation(standard))
    return tail_fit(index, low, high, n, standard)


def mean_squared_correlation(standard: Tensor) -> float:
    """Average squared correlations between rows of median 0, from signs, since a heavy tail has no covariance.

    For elliptical laws the correlation is ``sin(pi / 2 E sign(x) sign(y))``; signs of independent rows still agree a
    little in n samples, which is taken off.
    """
    k, n = standard.shape
    if k == 1:
        return 1.0
    signs = standard.sign()
    agreement = (signs @ signs.T / n).clamp(-1, 1)
    squared = torch.sin(math.pi / 2 * agreement).square()
    mean = (float(squared.sum()) - k) / (k * (k - 1))
    by_chance = (math.pi / 2) ** 2 / n
    return min(max((mean - by_chance) / (1 - by_chance), 0.0), 1.0)


def standardised(samples: Tensor) -> Tensor:
    """Subtract the median and divide by half the interquartile range, along the last axis; inf or nan where that is 0.

    Args:
        samples: ``[..., n]`` floating.

    Returns:
        ``[..., n]`` of the same dtype.
    """
    low, middle, high = quartiles(samples)
    return (samples - middle) / ((high - low) / 2)


def quartiles(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three quartiles along the last axis, each ``[..., 1]``, interpolated between order statistics."""
    ordered = samples.sort(-1).values  # torch.quantile refuses more than 16 million numbers
    n = samples.shape[-1]

    def at(share: float) -> Tensor:
        place = share * (n - 1)
        below = int(place)
        above = min(below + 1, n - 1)
        return torch.lerp(ordered[..., below], ordered[..., above], place - below)[..., None]

    return at(0.25), at(0.5), at(0.75)


STEP = 0.1
"""Spacing of the frequencies, in units of 1 / (half the interquartile range). All are multiples of it, so that one
complex exponential and its powers give the whole function."""

_FLOOR, _CEILING = 1e-9, 1 - 1e-12


def squared_modulus(standard: Tensor, points: int) -> Tensor:
    """Estimate ``|phi(t)|^2`` at ``t = .1, .2, ...`` without the bias that n samples bring; kept within (0, 1).

    ``(n |mean exp(i t x)|^2 - 1) / (n - 1)``: the pairs of different samples alone.
    """
    n = standard.shape[-1]
    first = torch.polar(torch.ones_like(standard), STEP * standard)
    power = first.clone()
    means = [power.mean(-1)]
    for _ in range(points - 1):
        power *= first
        means.append(power.mean(-1))
    modulus = torch.stack(means, -1).abs().square()
    return ((n * modulus - 1) / (n - 1)).clamp(_FLOOR, _CEILING)


def decay_of(modulus: Tensor) -> tuple[Tensor, Tensor]:
    """Fit ``log(-log |phi|^2) = log(2 c) + alpha log t`` over the frequencies up to 1, by least squares.

    Returns the slope alpha, at most 2 since no law has more, and the intercept that goes with it.
    """
    log_t = frequencies(FIT_POINTS, modulus).log()
    height = modulus[..., :FIT_POINTS].log().neg().log()
    centred = log_t - log_t.mean()
    slope = ((height * centred).sum(-1) / centred.square().sum()).clamp(max=2.0)
    return slope, height.mean(-1) - slope * log_t.mean()


def frequencies(points: int, like: Tensor) -> Tensor:
    """Return the frequencies ``.1, .2, ...``, ``[points]`` with dtype and device of `like`."""
    return STEP * torch.arange(1, points + 1, dtype=like.dtype, device=like.device)


def indices(samples: Tensor) -> Tensor:
    """Estimate the tail index along the last axis; nan where the quartiles are equal or a sample is not finite."""
    return decay_of(squared_modulus(standardised(samples), FIT_POINTS))[0]


def interval(index: float, n: int, projections: int, correlation: float) -> tuple[float, float]:
    """Invert the table: the lowest and the highest true index under which `index` lies within 95% of all fits.

    The variance of a median over k projections whose squared correlations are c on average is that of one projection
    times ``s + (1 - s) (1 - (1 - c)(1 - 1 / k))``, where s comes from the scale that all projections share; the two
    halves of the table (one projection; 16 without correlation) leave no unknown in it. Beyond the table, scatter falls
    with the square root of n; below its lowest index, .4, the lower end is 0.
    """
    apart = (1 - correlation) * (1 - 1 / projections)
    share = max(0.0, 1 - apart / (1 - 1 / PROJECTIONS))  # how far the scatter is that of a single projection
    alphas, one, many = _deviations(n)
    lows, highs = [], []
    for alpha, (below, above), (below_many, above_many) in zip(alphas, one, many, strict=True):
        lows.append(alpha - math.sqrt(share * below**2 + (1 - share) * below_many**2))
        highs.append(min(2.0, alpha + math.sqrt(share * above**2 + (1 - share) * above_many**2)))
    low = _inverse_of(highs, alphas, index) if index >= highs[0] else 0.0
    return low, max(_inverse_of(lows, alphas, index), low)


@cache
def _deviations(n: int) -> tuple[list[float], list[tuple[float, float]], list[tuple[float, float]]]:
    """Return indices and, for both kinds of samples, the distances of the quantiles below and above at this n."""
    by_kind, sizes = _read_table()
    place = min(max(math.log2(n / sizes[0]), 0.0), len(sizes) - 1.0)  # sizes double from one to the next
    below = min(int(place), len(sizes) - 2)
    share = place - below
    kinds = []
    for cells in by_kind.values():
        deviations = []
        for _, of_alpha in sorted(cells.items()):
            first, second = of_alpha[below], of_alpha[below + 1]
            scaled = [(1 - share) * a + share * b for a, b in zip(first, second, strict=True)]
            deviations.append((scaled[0] / math.sqrt(n), scaled[1] / math.sqrt(n)))
        kinds.append(deviations)
    alphas = sorted(next(iter(by_kind.values())))
    return alphas, kinds[0], kinds[1]


TABLE = Path(__file__).with_name("quantiles.csv")
"""The 2.5% and 97.5% quantile of the fitted index for each true index and sample size, as that script drew them."""


@cache
def _read_table() -> tuple[dict[int, dict[float, list[tuple[float, float]]]], list[int]]:
    """Read deviations of the quantiles times sqrt(n), by kind and index, in the order of sizes; and the sizes."""
    cells: dict[int, dict[float, list[tuple[float, float]]]] = {1: {}, PROJECTIONS: {}}
    sizes: list[int] = []
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            n, alpha = int(row["n"]), float(row["alpha"])
            deviation = (alpha - float(row["low"])) * math.sqrt(n), (float(row["high"]) - alpha) * math.sqrt(n)
            cells[int(row["projections"])].setdefault(alpha, []).append(deviation)
            if n not in sizes:
                sizes.append(n)
    return cells, sizes


def _inverse_of(values: list[float], alphas: list[float], target: float) -> float:
    """Find where a rising, piecewise linear function first reaches a value; the last place if it never does."""
    rising = [max(values[: i + 1]) for i in range(len(values))]
    above = bisect_left(rising, target)
    if above == 0:
        return alphas[0]
    if above == len(rising):
        return alphas[-1]
    share = (target - rising[above - 1]) / (rising[above] - rising[above - 1])
    return alphas[above - 1] + share * (alphas[above] - alphas[above - 1])


MIN_SAMPLES = 128
"""Fewer show the tail of nothing: at 64 the 95% interval of a normal law reaches down to 1.8; THEORY section 6."""

EXPLORATORY = 512
"""Below this many samples a number is a first look."""

SOME_TIES = 0.2
"""So many equal samples (gradients that are zero) narrow the quartiles, in whose units heaviness is told."""

_TIED = 1e-6  # of half the interquartile range: two float32 gradients of the same example differ by less


@dataclass(frozen=True, eq=False)
class TailFit:
    """One number about a tail, with its uncertainty.

    Attributes:
        index: ``[]`` float64, the estimate: a tail index alpha (`alpha_ecf`, `hill`; small is heavy) or an extreme
            value index xi (`xi_dedh`; large is heavy, 0 is light). nan where it is refused.
        low: ``[]`` float64, lower end of the 95% interval.
        high: ``[]`` float64, upper end.
        n: Number of samples it was read from.
        reason: Why there is no number, in words; empty where there is one.
    """

    index: Tensor
    low: Tensor
    high: Tensor
    n: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"unknown: {self.reason}"
        look = ", exploratory" if self.n < EXPLORATORY else ""
        return f"{self.index:.2f} (95% between {self.low:.2f} and {self.high:.2f}; n = {self.n}{look})"


def tail_fit(index: float, low: float, high: float, n: int, like: Tensor) -> TailFit:
    """Return three numbers as float64 tensors on the device of the samples."""
    numbers = torch.tensor([index, low, high], dtype=torch.float64).to(like.device)
    return TailFit(*numbers.unbind(), n=n)


def refused(n: int, reason: str, like: Tensor) -> TailFit:
    """Return a fit without a number."""
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=like.device)
    return TailFit(nothing, nothing, nothing, n, reason)


def samples_of(values: object) -> Tensor:
    """Return samples ``[n]`` or ``[n, d]`` in a floating dtype; a single column counts as scalars."""
    samples = as_tensor(values).detach()
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] == 0):
        raise ValueError(f"samples are [n] numbers or [n, d] vectors, got shape {list(samples.shape)}.")
    if not samples.is_floating_point():
        samples = samples.double()
    return samples[:, 0] if samples.ndim == 2 and samples.shape[1] == 1 else samples


def why_not(samples: Tensor) -> str:
    """Return why no tail can be read from these samples, in words; empty if nothing speaks against it."""
    n = samples.shape[0]
    if n < MIN_SAMPLES:
        return f"{n} samples are too few to show a tail: {MIN_SAMPLES} are needed"
    finite = samples.isfinite()
    bad = int((~finite).reshape(n, -1).any(1).sum())
    return f"{bad} of {n} samples are not finite (NaN or inf)" if bad else ""


def why_degenerate(standard: Tensor) -> str:
    """Return why standardised samples say nothing, namely that more than half of them are the same; else empty.

    Where the quartiles meet, the samples that are the median are nan.
    """
    share = tied_share(standard)
    return f"degenerate: {share:.0%} of the samples are the same number" if share >= 0.5 else ""


def tied_share(standard: Tensor) -> float:
    """Return the share of standardised samples ``[..., n]`` that are the median, the largest over the rows."""
    return float(((standard.abs() <= _TIED) | standard.isnan()).double().mean(-1).max())
