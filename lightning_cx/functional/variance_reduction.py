"""How gradient noise could be reduced: by a larger batch, or by gradients at an older point (SVRG)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.noise import CONFIDENCE, NoiseScale


@dataclass(frozen=True, eq=False)
class SvrgGain:
    """What is left of the gradient noise with an older point as a control variate; every tensor is ``[]`` float64.

    Attributes:
        ratio: Var(g - g~) / Var(g), at least 0: coefficient 1, as SVRG has it. Under 1 it reduces the noise, over 1 it
            adds to it.
        low: Lower end of the 95% interval of the ratio.
        high: Upper end.
        best: The same with the best coefficient, ``1 - cov^2 / (Var(g) Var(g~))``, 0 to 1.
        coefficient: That coefficient, cov / Var(g~).
        examples: How many examples were compared.
        reason: Why there is no number, in words; empty where there is.
    """

    ratio: Tensor
    low: Tensor
    high: Tensor
    best: Tensor
    coefficient: Tensor
    examples: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"SVRG gain unknown: {self.reason}"
        interval = f"95% between {self.low:.3g} and {self.high:.3g}"
        best = f"best coefficient {self.coefficient:.2f} leaves {self.best:.3g}"
        return f"SVRG leaves {self.ratio:.3g} of the gradient noise ({interval}); {best}"


def svrg_gain(now: Tensor, snapshot: Tensor, directions: bool = True) -> SvrgGain:
    """Estimate how much of the gradient noise SVRG would leave: ``Var(g - g~) / Var(g)``.

    g are the gradients of single examples at the weights, g~ those of the same examples at a snapshot of older weights;
    a variance is the trace of the covariance over examples. SVRG steps along ``g - g~ + mean g~``, whose noise is that
    of the difference at any batch size. It costs two gradients per example and a pass over the data for each snapshot:
    only under 1/2 does it beat a batch of twice the size.

    Projected on random directions R with ``E <g, R>^2 = |g|^2``, numerator and denominator are both unbiased. The
    interval is of the logarithm, whose error adds up those of leaving out each example and, for random directions, each
    direction in turn; Student's t, of the fewer of the two less one.

    Args:
        now: ``[n, k]`` gradients of n examples at the weights: all k = P entries, or k projections.
        snapshot: ``[n, k]`` of the same examples and directions at the snapshot.
        directions: Whether the columns are random directions, which are uncertain too, rather than all entries.

    Returns:
        SvrgGain. All nan with the reason for fewer than 8 examples (or 2 random directions), entries that are not
        finite, or no noise at the weights. Equal weights give 0.

    Raises:
        ValueError: If the shapes are not equal ``[n, k]``.

    References:
        Johnson & Zhang 2013, "Accelerating stochastic gradient descent using predictive variance reduction"; Defazio &
        Bottou 2019, "On the ineffectiveness of variance reduced optimization for deep learning" (the ratio); Yin
        et al. 2025, "A coefficient makes SVRG effective" (the best coefficient).

    Example:
        >>> now = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> gain = svrg_gain(now, 0.5 * now, directions=False)  # half of each gradient is known
        >>> f"{gain.ratio:.3f} {gain.best:.3f} {gain.coefficient:.3f}"
        '0.250 0.000 2.000'
    """
    now, snapshot = (as_tensor(rows).detach().double() for rows in (now, snapshot))
    if now.ndim != 2 or now.shape != snapshot.shape:
        raise ValueError(f"gradients are two matrices [n, k], got {list(now.shape)} and {list(snapshot.shape)}.")
    n = len(now)
    reason = _why_not(now, snapshot, directions)
    unknown = now.new_full((), torch.nan)
    if reason:
        return SvrgGain(unknown, unknown, unknown, unknown, unknown, n, reason)
    scale = now.abs().max()  # squares of very small or large gradients leave the range of a double
    now, snapshot = now / scale, snapshot / scale
    now, snapshot = now - now.mean(0), snapshot - snapshot.mean(0)
    squares = [a * b for a, b in ((now, now), (snapshot, snapshot), (now, snapshot))]
    own, older, product = (square.sum() for square in squares)
    if not bool(own > 0):
        return SvrgGain(unknown, unknown, unknown, unknown, unknown, n, "the examples have one gradient: no noise")
    ratio = (now - snapshot).square().sum() / own
    low, high = _interval(now - snapshot, now, ratio, directions)
    coefficient = product / older
    best = (1 - product**2 / (own * older)).clamp(0, 1)
    if not bool(older > 0):  # a constant corrects nothing
        coefficient, best = torch.zeros_like(own), torch.ones_like(own)
    return SvrgGain(ratio, low, high, best, coefficient, n)


MIN_EXAMPLES = 8
"""Fewer examples, left out one at a time, give an interval of no use: Student's t over 2.4, on a skewed statistic."""


def _why_not(now: Tensor, snapshot: Tensor, directions: bool) -> str:
    n, k = now.shape
    if n < MIN_EXAMPLES:
        return f"{n} examples show too little of the noise: {MIN_EXAMPLES} are needed"
    if k < (2 if directions else 1):
        return f"{k} directions show too little of a gradient: 2 are needed"
    if not bool(now.isfinite().all() & snapshot.isfinite().all()):
        return "a gradient is not finite (NaN or inf in the data, or an overflow)"
    return ""


def _interval(difference: Tensor, now: Tensor, ratio: Tensor, directions: bool) -> tuple[Tensor, Tensor]:
    """Leave out each row of the centred ``[n, k]``, and each column if these are random, for an interval."""
    n, k = now.shape
    without: list[Callable[[Tensor], Tensor]] = [_without_each_example]
    if directions:
        without.append(lambda centred: centred.square().sum() - centred.square().sum(0))
    if not bool(ratio > 0):
        return ratio, ratio
    squared_error = ratio.new_zeros(())
    for leave_out in without:
        logs = (leave_out(difference) / leave_out(now)).log()
        squared_error = squared_error + (len(logs) - 1) / len(logs) * (logs - logs.mean()).square().sum()
    fewest = min(n, k) if directions else n
    reach = (float(stdtrit(fewest - 1, (1 + CONFIDENCE) / 2)) * squared_error.sqrt()).nan_to_num(torch.inf, torch.inf)
    return ratio * (-reach).exp(), ratio * reach.exp()


def _without_each_example(centred: Tensor) -> Tensor:
    """Return the sum of squares about the mean without each row in turn; the mean of the rows is 0."""
    n = len(centred)
    squares = centred.square().sum(1)
    return (squares.sum() - n / (n - 1) * squares).clamp_min(0.0)


@dataclass(frozen=True)
class BatchAdvice:
    """What a larger batch would buy.

    Attributes:
        speedup: How many times fewer steps twice the batch needs, 1 (nothing) to 2 (half the steps); nan where the
            noise scale has no upper end.
        low: Lower end of the 95% interval; 1 where nothing is known.
        high: Upper end; 2 where the signal is not distinguishable from zero.
        batch_size: The present batch size.
        sentence: What to do, in words.
    """

    speedup: float
    low: float
    high: float
    batch_size: int
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def batch_size_advice(noise: NoiseScale, batch_size: int) -> BatchAdvice:
    """Estimate whether a larger batch is worth it: how many times fewer steps twice the batch would need.

    With noise scale B, the steps to a given loss at batch size b are proportional to ``1 + B / b``, each with the step
    size that suits it. Twice the batch needs ``(1 + B / b) / (1 + B / (2 b)) = 2 (b + B) / (2 b + B)`` times fewer: 2
    where b is far below B, 4/3 at b = B, 1 far above. It rises with B, so the ends of B's interval give its own.

    The noise scale is that of the present weights, and it takes curvature for the same in all directions: within a
    factor of a few, and larger later in training.

    Args:
        noise: The noise scale, best pooled over several batches.
        batch_size: Examples that one optimizer step takes its mean over, accumulated batches and processes included.

    Returns:
        BatchAdvice; nan with the interval [low, 2] where the signal is not distinguishable from zero, [1, 2] where
        nothing is known.

    Raises:
        ValueError: If `batch_size` is not positive.

    References:
        McCandlish et al. 2018, "An empirical model of large-batch training", section 2.3.

    Example:
        >>> from lightning_cx.functional import noise_scale
        >>> rows = 1 + torch.randn(500, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> print(batch_size_advice(noise_scale(rows @ rows.T), batch_size=64))
        batches larger than 1.06 examples buy little; twice your 64 would need 1.01 times fewer steps (95% 1.01 to 1.01)
    """
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one example, got batch_size={batch_size}.")
    value, low, high = (_speedup(float(scale), batch_size) for scale in (noise.value, noise.low, noise.high))
    low, high = 1.0 if low != low else low, 2.0 if high != high else high
    if not bool(noise.high.isfinite()):  # a value without an upper end may be anything
        value = torch.nan
    return BatchAdvice(value, low, high, batch_size, _sentence(noise, batch_size, value, low, high))


def _speedup(scale: float, batch_size: int) -> float:
    if scale == torch.inf:
        return 2.0
    return 2 * (batch_size + scale) / (2 * batch_size + scale)


NEARLY_LINEAR, LITTLE = 1.5, 4 / 3
"""Speed-up of the doubled batch at B = 2 b and at B = b, half and a third of the way from nothing to twice the speed:
where more pays well, and where noise no longer is the larger part of a batch gradient."""


def _sentence(noise: NoiseScale, batch_size: int, value: float, low: float, high: float) -> str:
    if not bool(noise.noise.isfinite()):
        return "nothing is known of the noise: it takes at least 2 finite gradients"
    if value != value:
        return (
            f"noise hides the gradient: batches buy little only beyond more than {float(noise.low):.3g} examples; "
            f"twice your {batch_size} would need at least {low:.2f} times fewer steps"
        )
    fewer = f"twice your {batch_size} would need {value:.2f} times fewer steps (95% {low:.2f} to {high:.2f})"
    if low >= NEARLY_LINEAR:
        return f"a larger batch pays, up to about {float(noise.value):.3g} examples; {fewer}"
    if high <= LITTLE:
        return f"batches larger than {float(noise.value):.3g} examples buy little; {fewer}"
    return f"larger batches buy little beyond about {float(noise.value):.3g} examples; {fewer}"
