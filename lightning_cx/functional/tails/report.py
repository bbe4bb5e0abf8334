"""The report on the tail of noise: all numbers, one of four verdicts, and the reason in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.tails.ecf import (
    EXPLORATORY,
    PROJECTIONS,
    SOME_TIES,
    TailFit,
    fit_standardised,
    interval,
    mean_squared_correlation,
    project,
    quartiles,
    refused,
    samples_of,
    squared_modulus,
    standardised,
    tail_fit,
    tied_share,
    why_degenerate,
    why_not,
)
from lightning_cx.functional.tails.extremes import hill, xi_dedh
from lightning_cx.functional.tails.goodness_of_fit import (
    SHAPE_POINTS,
    StableNull,
    distances,
    in_words,
    normality_p_value,
    normality_statistics,
    stable_null,
)
from lightning_cx.functional.tails.pooling import grouped_sums, indices_of_sums, sum_size

Verdict = Literal["gaussian", "heavy-aggregates-to-gaussian", "stable", "indeterminate"]


@dataclass(frozen=True, eq=False)
class TailReport:
    """How heavy the tail of noise is, whether it stays so in sums, and what that rests on.

    All numbers are float64 tensors ``[]`` on the device of the samples, but for `n` and `sum_size`.

    Attributes:
        alpha: Tail index of single samples, `alpha_ecf`; 2 is Gaussian, less is heavier.
        alpha_low, alpha_high: Ends of its 95% interval.
        sum_alpha: Tail index of sums of `sum_size` samples.
        sum_alpha_low, sum_alpha_high: Ends of its 95% interval.
        sum_size: How many samples a sum adds up: the batch size, or less where that would leave under 64 sums.
        xi: Extreme value index of the magnitudes, `xi_dedh`: above 0 a power law, 0 a light tail.
        xi_low, xi_high: Ends of its 95% interval.
        hill: Index of the power law that the largest magnitudes would have, `hill`.
        hill_low, hill_high: Ends of its 95% interval.
        p_gaussian: p-value of a normal law for single samples (Anderson-Darling).
        p_sum_gaussian: The same for sums.
        p_stable: p-value of a stable law (parametric bootstrap); nan where a normal law is not ruled out at .05.
        p_shift: p-value of sums that keep the index, as those of a stable law do; nan likewise.
        n: Number of samples.
        verdict: ``"gaussian"``: nothing speaks for a heavy tail; ``"heavy-aggregates-to-gaussian"``: single samples are
            heavy, sums of them are not; ``"stable"``: sums are as heavy as what they sum; ``"indeterminate"``: the
            samples do not tell. A verdict is what is not ruled out, never a proof.
        reason: Why, in a sentence.
    """

    alpha: Tensor
    alpha_low: Tensor
    alpha_high: Tensor
    sum_alpha: Tensor
    sum_alpha_low: Tensor
    sum_alpha_high: Tensor
    sum_size: int
    xi: Tensor
    xi_low: Tensor
    xi_high: Tensor
    hill: Tensor
    hill_low: Tensor
    hill_high: Tensor
    p_gaussian: Tensor
    p_sum_gaussian: Tensor
    p_stable: Tensor
    p_shift: Tensor
    n: int
    verdict: Verdict
    reason: str

    @property
    def shift(self) -> Tensor:
        """``[]`` how much lighter sums are: their index less that of single samples."""
        return self.sum_alpha - self.alpha

    @property
    def exploratory(self) -> bool:
        """Whether there are fewer than 512 samples, so that this is no more than a first look."""
        return self.n < EXPLORATORY

    def __str__(self) -> str:
        if bool(self.alpha.isnan()):
            return f"tail of {self.n} samples: {self.verdict}, {self.reason}"
        tail = (
            "like a power law"
            if self.xi_low > 0
            else "no certain power law"
            if self.xi_high > 0
            else "they have an end"
        )
        if bool(self.xi.isnan()):
            tail = "unknown"
        lines = [
            f"tail of {self.n} samples: {self.verdict}",
            f"  because {self.reason}",
            f"  single samples: index {self.alpha:.2f} (95% {self.alpha_low:.2f} to {self.alpha_high:.2f}), normal law "
            f"{in_words(float(self.p_gaussian))}",
            f"  sums of {self.sum_size}: index {self.sum_alpha:.2f} (95% {self.sum_alpha_low:.2f} to "
            f"{self.sum_alpha_high:.2f}), normal law {in_words(float(self.p_sum_gaussian))}",
            f"  largest magnitudes: {tail}, xi {self.xi:+.2f} (95% {self.xi_low:+.2f} to {self.xi_high:+.2f})",
        ]
        return "\n".join(lines)


def tail_report(
    samples: Any, batch_size: int = 16, seed: int = 0, projections: int | None = PROJECTIONS, norms: Any = None
) -> TailReport:
    """Report whether noise is heavy-tailed, whether sums of a batch still are, and how sure that is.

    Single samples get their index (`alpha_ecf`) and a test for a normal law (`anderson_darling`), so do sums of
    `batch_size` samples grouped at random. Where a normal law is ruled out, a stable law is tried (`stable_test`), and
    whether sums keep the index, as only those of a stable law do (`aggregation_test`). The magnitudes of the samples
    less their mean get `xi_dedh` and `hill`. Then:

    - ``"gaussian"``: a normal law is not ruled out (at .001, or at .05 where the whole interval of the index lies below
      1.95); or it is, but the interval reaches 1.95 and sums are not distinguishable from normal: another
      shape, no heavy tail.
    - ``"heavy-aggregates-to-gaussian"``: the interval of the index lies below 1.95, sums are lighter than those of a
      stable law (p < .02) and not distinguishable from normal (p > .05, and their interval reaches 1.95).
    - ``"stable"``: neither a stable law (at .05) nor sums that keep the index (at .02) are ruled out, although there
      are enough of them to notice normal ones, and these sums are told from normal.
    - ``"indeterminate"``: anything else, with the reason.

    Args:
        samples: ``[n]`` numbers or ``[n, d]`` vectors, any real dtype; tensor, array or list. Independent draws,
            such as the gradients of single examples. For gradients of batches, a sum means several of these batches.
        batch_size: How many samples the sums add up. Fewer are taken where this would leave under 64 sums; a law whose
            smaller sums are normal has normal larger ones.
        seed: Seed of directions, groups and nulls: the same samples get the same report.
        projections: Number of random directions for vectors; None takes the columns as projections already made.
        norms: ``[n]`` magnitudes of the samples less their mean, where these are known better than by the samples;
            None takes them from the samples.

    Returns:
        TailReport. For fewer than 128 samples, any NaN or inf among them, or more than half of them the same (zeros,
        constants), all numbers are nan, the verdict is ``"indeterminate"`` and the reason says which. Below 512
        samples the reason begins with "exploratory".

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``, the batch size is below 1, or `projections` is not
            positive.

    References:
        THEORY section 6; Koutrouvelis 1980; Anderson & Darling 1954; Dekkers, Einmahl & de Haan 1989.

    Example:
        >>> from lightning_cx.functional.tails import symmetric_stable
        >>> draw = torch.Generator().manual_seed(0)
        >>> print(tail_report(torch.randn(2048, 50, generator=draw)))
        tail of 2048 samples: gaussian
          because a normal law is not ruled out (p = 0.46)
          single samples: index 2.00 (95% 1.99 to 2.00), normal law p = 0.46
          sums of 16: index 2.00 (95% 1.89 to 2.00), normal law p = 0.43
          largest magnitudes: no certain power law, xi -0.12 (95% -0.26 to +0.01)
        >>> tail_report(symmetric_stable(1.4, (4096,), draw)).verdict
        'stable'
        >>> scale = torch.where(torch.rand(4096, 1, generator=draw) < 0.1, 10.0, 1.0)  # one in ten is ten times larger
        >>> tail_report(scale * torch.randn(4096, 50, generator=draw), batch_size=64).verdict
        'heavy-aggregates-to-gaussian'
    """
    samples = samples_of(samples)
    n = samples.shape[0]
    size = sum_size(batch_size, n)
    reason = why_not(samples)
    if reason:
        return refused_report(n, size, reason, samples)
    projected = project(samples, projections, seed).T
    standard = standardised(projected)
    reason = why_degenerate(standard)
    if reason:
        return refused_report(n, size, reason, samples)
    magnitudes = _magnitudes(samples) if norms is None else as_tensor(norms).detach()
    if magnitudes.shape != (n,):
        raise ValueError(f"each of {n} samples has one norm, got shape {list(magnitudes.shape)}.")
    xi = xi_dedh(magnitudes)
    single, correlation = fit_standardised(standard, n), mean_squared_correlation(standard)
    summed = grouped_sums(projected, size, seed)
    sums = _fit_sums(summed, correlation)
    null = partial(stable_null, float(single.index), n, size, seed, len(standard), correlation)
    evidence = _evidence(standard, summed, single, sums, size, null)
    verdict, reason = decide(evidence)
    reason += _remarks(evidence, xi, standard)
    if n < EXPLORATORY:
        reason = f"exploratory, since {n} samples are fewer than {EXPLORATORY}: {reason}"
    return _assembled(single, sums, xi, hill(magnitudes), evidence, verdict, reason)


def refused_report(n: int, size: int, reason: str, like: Tensor) -> TailReport:
    """Return a report without numbers that gives the reason."""
    nothing = refused(n, reason, like)
    unknown = Evidence(math.nan, math.nan, math.nan, size, *[math.nan] * 5)
    return _assembled(nothing, nothing, nothing, nothing, unknown, "indeterminate", reason)


LEVEL = 0.05
"""Level of the tests that follow once the normal law is ruled out, and of that law too where the index speaks against
it as well."""

NORMAL_LEVEL = 0.001
"""A monitor asks some hundred times in a run: at 5% it would cry wolf every twenty readings. Any heavy tail that
matters has a p-value far below at 512 samples."""

LIGHT = 1.95
"""An interval that reaches so far up is no heavy tail to speak of: sums of a scale mixture come near 2 from below, and
with many samples their interval leaves it out long after they behave as normal ones."""


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on; p-values and shift are nan where the question did not arise."""

    index: float
    high: float
    p_gaussian: float
    sum_size: int
    sum_high: float
    p_sum_gaussian: float
    p_stable: float
    p_shift: float
    largest_shift: float

    @property
    def normal(self) -> bool:
        """Whether single samples cannot be told from normal ones."""
        return self.p_gaussian >= (LEVEL if self.heavy else NORMAL_LEVEL)

    @property
    def heavy(self) -> bool:
        """Whether the whole interval of the index is that of a heavy tail."""
        return self.high < LIGHT

    @property
    def sums_normal(self) -> bool:
        """Whether sums cannot be told from normal ones."""
        return self.p_sum_gaussian >= LEVEL and self.sum_high >= LIGHT

    @property
    def sums_heavy(self) -> bool:
        """Whether sums are certainly heavy."""
        return self.p_sum_gaussian < LEVEL and self.sum_high < LIGHT


SHIFT_LEVEL = 0.02
"""Level at which sums are said to be lighter: at 5% one stable law in twenty would lose its name to chance."""


def decide(evidence: Evidence) -> tuple[Verdict, str]:
    """Derive the verdict and its reason from the evidence."""
    e = evidence
    if e.normal:
        return "gaussian", f"a normal law is not ruled out ({in_words(e.p_gaussian)})"
    if not e.heavy:
        return _another_shape(e)
    if e.p_shift < SHIFT_LEVEL and e.sums_normal:
        return "heavy-aggregates-to-gaussian", (
            f"single samples are heavy (index {e.index:.2f}), sums of {e.sum_size} are not distinguishable from normal "
            f"({in_words(e.p_sum_gaussian)}): the heaviness averages away"
        )
    if e.p_stable >= LEVEL and e.p_shift >= SHIFT_LEVEL and e.largest_shift < 2 - e.index and not e.sums_normal:
        return "stable", (
            f"a stable law with index {e.index:.2f} is not ruled out ({in_words(e.p_stable)}), and sums of "
            f"{e.sum_size} keep the index ({in_words(e.p_shift)})"
        )
    return "indeterminate", f"single samples are heavy (index {e.index:.2f}), {_what_is_missing(e)}"


def _magnitudes(samples: Tensor) -> Tensor:
    """Compute norms of the centred samples; of numbers, distances from the median, which no tail carries away.

    They are right up to a factor, of which no index knows: squares of 1e200 would overflow.
    """
    largest = samples.abs().amax().double()
    if samples.ndim == 1:
        samples = samples.double() / largest
        return (samples - quartiles(samples)[1]).abs()
    mean = samples.mean(0, dtype=torch.float64)
    return torch.cat([((block.double() - mean) / largest).norm(dim=1) for block in samples.split(256)])


def _fit_sums(summed: Tensor, correlation: float) -> TailFit:
    """Fit sums ``[8, k, n / size]``; the table's scatter is that of one grouping, the mean over groupings has less."""
    projections, n = summed.shape[1:]
    index = float(torch.quantile(indices_of_sums(summed), 0.5))
    return tail_fit(index, *interval(index, n, projections, correlation), n, summed)


def _evidence(
    standard: Tensor, summed: Tensor, single: TailFit, sums: TailFit, size: int, null_of: Callable[[], StableNull]
) -> Evidence:
    p_gaussian = normality_p_value(float(torch.quantile(normality_statistics(standard), 0.5)))
    p_sum = normality_p_value(float(torch.quantile(normality_statistics(summed), 0.5)))
    p_stable = p_shift = largest = math.nan
    if p_gaussian < LEVEL:
        null = null_of()
        distance = torch.quantile(distances(squared_modulus(standard, SHAPE_POINTS)), 0.5)
        p_stable, p_shift = null.p_distance(float(distance)), null.p_shift(float(sums.index - single.index))
        largest = null.largest_shift
    return Evidence(
        index=float(single.index),
        high=float(single.high),
        p_gaussian=p_gaussian,
        sum_size=size,
        sum_high=float(sums.high),
        p_sum_gaussian=p_sum,
        p_stable=p_stable,
        p_shift=p_shift,
        largest_shift=largest,
    )


def _remarks(evidence: Evidence, xi: TailFit, standard: Tensor) -> str:
    """Return remarks on what the verdict leaves out."""
    remarks = ""
    if (evidence.normal or not evidence.heavy) and bool(xi.low > 0):
        remarks += f"; still, a few are far larger than the rest (xi {xi.index:+.2f}, above {xi.low:+.2f})"
    tied = tied_share(standard)
    if tied >= SOME_TIES:
        remarks += f"; {tied:.0%} of the samples are the same number, which the index takes for heaviness"
    return remarks


def _assembled(
    single: TailFit, sums: TailFit, xi: TailFit, power: TailFit, evidence: Evidence, verdict: Verdict, reason: str
) -> TailReport:
    e = evidence
    p_values = torch.tensor([e.p_gaussian, e.p_sum_gaussian, e.p_stable, e.p_shift], dtype=torch.float64)
    p_gaussian, p_sum_gaussian, p_stable, p_shift = p_values.to(single.index.device).unbind()
    return TailReport(
        alpha=single.index,
        alpha_low=single.low,
        alpha_high=single.high,
        sum_alpha=sums.index,
        sum_alpha_low=sums.low,
        sum_alpha_high=sums.high,
        sum_size=e.sum_size,
        xi=xi.index,
        xi_low=xi.low,
        xi_high=xi.high,
        hill=power.index,
        hill_low=power.low,
        hill_high=power.high,
        p_gaussian=p_gaussian,
        p_sum_gaussian=p_sum_gaussian,
        p_stable=p_stable,
        p_shift=p_shift,
        n=single.n,
        verdict=verdict,
        reason=reason,
    )


def _another_shape(e: Evidence) -> tuple[Verdict, str]:
    """Return the verdict on samples that are neither normal nor heavy."""
    shape = f"single samples are not normal in shape ({in_words(e.p_gaussian)})"
    if e.sums_normal:
        return "gaussian", (
            f"{shape}, but their tail is not heavy: the interval of the index reaches {e.high:.2f}, and sums of "
            f"{e.sum_size} are not distinguishable from normal"
        )
    if e.sums_heavy:
        return "indeterminate", (
            f"{shape}, and though most are not heavy, sums of {e.sum_size} are (95% up to {e.sum_high:.2f}): a few are "
            f"far larger than the rest"
        )
    return "indeterminate", (
        f"{shape}, nor are sums of {e.sum_size}, yet the interval of the index reaches {e.high:.2f}: another shape, "
        f"but not a heavy tail"
    )


def _what_is_missing(e: Evidence) -> str:
    """Explain why heavy samples get no verdict."""
    if e.p_shift >= SHIFT_LEVEL and e.p_stable < LEVEL and e.sums_heavy:
        return (
            f"and sums of {e.sum_size} too (95% up to {e.sum_high:.2f}): it does not average away at that size, though "
            f"no stable law fits single ones ({in_words(e.p_stable)})"
        )
    if e.p_shift < SHIFT_LEVEL:
        return f"sums of {e.sum_size} are lighter ({in_words(e.p_shift)}), but not normal yet: larger sums may be"
    if e.p_stable < LEVEL:
        return (
            f"no stable law fits them ({in_words(e.p_stable)}), and there are too few sums of {e.sum_size} to "
            f"see whether these are lighter"
        )
    return (
        f"and look stable, but sums of {e.sum_size} scatter so much (by {e.largest_shift:.2f}) that normal ones "
        f"would not be noticed: more samples are needed"
    )
