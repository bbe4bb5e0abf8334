"""What pooling the coordinates of gradients finds, beside what it finds where nothing is heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tails.fit import samples_of

MIN_VALUES = 1024
"""Of fewer pooled values the estimate scatters beyond use: two samples of 100 gave 4.2."""


@dataclass(frozen=True, eq=False)
class CoordinateTail:
    """The tail index that pooled coordinates pretend to have.

    Attributes:
        index: ``[]`` float64, the index of all coordinates of all samples pooled; nan where it is refused.
        control: ``[]`` float64, the same of normal noise in which each coordinate has the scale it has here. What the
            two have in common is not the tail but the unequal scales. Where they differ,
            coordinates are correlated or not normal by themselves, which is no heavy tail of the noise either.
        reason: Why there is no number; empty where there is one.
    """

    index: Tensor
    control: Tensor
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"coordinate tail unknown: {self.reason}"
        return f"pooled coordinates: index {self.index:.2f}; normal noise with the same scales: {self.control:.2f}"


def coordinate_tail(samples: Any, seed: int = 0) -> CoordinateTail:
    """Show what the tail index of pooled coordinates is worth: beside it, that of normal noise with the same scales.

    Much of the literature pools all coordinates of gradient noise and reads a tail index off them. Coordinates of a
    network differ in scale, and a mixture of scales looks heavy: normal noise whose log scales have a standard
    deviation of 0, .5, 1 and 2 gives 2.0, 1.9, 1.6 and 1.0. Noise that is heavy as a whole, such as elliptical
    1.5-stable vectors, gives 2.0. Never read the index without the control; `alpha_ecf` has neither fault.

    With K pooled values in blocks of ``m = sqrt(K)``, ``1 / index = (mean log|block sum| - mean log|value|) / log m``.

    Args:
        samples: ``[n, d]`` gradients less their mean, one row per example, at d coordinates; any real dtype.
        seed: Seed of the control.

    Returns:
        CoordinateTail; refused for fewer than 2 samples or 1024 values in all, for NaN or inf among them, where more
        than half of the values are zero, and where all sums cancel.

    Raises:
        ValueError: If the shape is not ``[n, d]`` or ``[n]``.

    References:
        Mohammadi, Mohammadpour & Ogata 2015, "On estimating the tail index and the spectral measure of multivariate
        alpha-stable distributions", corollary 2.4, as used by Simsekli et al. 2019; THEORY section 6.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> normal = torch.randn(500, 200, generator=draw) * torch.randn(200, generator=draw).exp()
        >>> print(coordinate_tail(normal))
        pooled coordinates: index 1.55; normal noise with the same scales: 1.57
    """
    samples = samples_of(samples)
    samples = samples.double().flatten(1) if samples.ndim > 1 else samples.double()[:, None]
    reason = _why_not(samples)
    if reason:
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=samples.device)
        return CoordinateTail(nothing, nothing, reason)
    noise = torch.randn(samples.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
    index, control = _pooled_index(samples), _pooled_index(noise.to(samples.device) * samples.std(0))
    if not bool(index.isfinite() & control.isfinite()):
        return CoordinateTail(index * torch.nan, index * torch.nan, "degenerate: all sums of coordinates cancel")
    return CoordinateTail(index, control)


def _pooled_index(samples: Tensor) -> Tensor:
    pooled = samples.flatten()
    m = math.isqrt(len(pooled))
    blocks = pooled[: len(pooled) // m * m].view(-1, m).sum(1).abs()
    growth = blocks[blocks > 0].log().mean() - pooled[pooled != 0].abs().log().mean()
    return math.log(m) / growth


def _why_not(samples: Tensor) -> str:
    n = len(samples)
    if n < 2 or samples.numel() < MIN_VALUES:
        return f"{n} samples of {samples.shape[1]} coordinates are too few: 2 and {MIN_VALUES} values are needed"
    if not bool(samples.isfinite().all()):
        return "samples are not finite (NaN or inf)"
    zeros = float((samples == 0).double().mean())
    return f"degenerate: {zeros:.0%} of the values are zero" if zeros > 0.5 else ""
