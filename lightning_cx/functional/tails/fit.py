"""A tail index with its interval, and the reasons for which there is none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

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
    """Return samples ``[n]`` or ``[n, d]`` in a floating dtype; a single column counts as scalars.

    Raises:
        ValueError: If they have another number of axes, or are vectors of no entries.
    """
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

    Args:
        standard: ``[..., n]`` standardised samples. Where the quartiles meet, those that are the median are nan.
    """
    share = tied_share(standard)
    return f"degenerate: {share:.0%} of the samples are the same number" if share >= 0.5 else ""


def tied_share(standard: Tensor) -> float:
    """Return the share of standardised samples ``[..., n]`` that are the median, the largest over the rows."""
    return float(((standard.abs() <= _TIED) | standard.isnan()).double().mean(-1).max())
