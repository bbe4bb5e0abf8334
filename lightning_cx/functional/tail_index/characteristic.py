"""The empirical characteristic function of standardised samples, and the tail index that its decay shows."""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 0.1
"""Spacing of the frequencies, in units of 1 / (half the interquartile range). All are multiples of it, so that one
complex exponential and its powers give the whole function."""

FIT_POINTS = 10
"""Frequencies .1 to 1 tell the index: beyond, |phi|^2 drowns in its own error; THEORY section 6."""

SHAPE_POINTS = 25
"""Frequencies .1 to 2.5 tell whether the law is stable at all."""

_FLOOR, _CEILING = 1e-9, 1 - 1e-12


def standardised(samples: Tensor) -> Tensor:
    """Take off the median and divide by half the interquartile range, along the last axis; inf or nan where that is 0.

    Args:
        samples: ``[..., n]`` floating.

    Returns:
        ``[..., n]`` of the same dtype.
    """
    low, middle, high = quartiles(samples)
    return (samples - middle) / ((high - low) / 2)


def quartiles(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three quartiles along the last axis, each ``[..., 1]``, interpolated linearly between order statistics."""
    ordered = samples.sort(-1).values  # torch.quantile refuses more than 16 million numbers
    n = samples.shape[-1]

    def at(share: float) -> Tensor:
        place = share * (n - 1)
        below = int(place)
        above = min(below + 1, n - 1)
        return torch.lerp(ordered[..., below], ordered[..., above], place - below)[..., None]

    return at(0.25), at(0.5), at(0.75)


def squared_modulus(standard: Tensor, points: int) -> Tensor:
    """Estimate ``|phi(t)|^2`` at ``t = .1, .2, ...`` without the bias that n samples bring.

    ``(n |mean exp(i t x)|^2 - 1) / (n - 1)``: the pairs of different samples alone.

    Args:
        standard: ``[..., n]`` standardised samples.
        points: Number of frequencies.

    Returns:
        ``[..., points]``, kept within (0, 1).
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

    Args:
        modulus: ``[..., points]`` at ``t = .1, .2, ...``, at least `FIT_POINTS`.

    Returns:
        The slope alpha, at most 2 since no law has more, and the intercept that goes with it, both ``[...]``.
    """
    log_t = frequencies(FIT_POINTS, modulus).log()
    height = modulus[..., :FIT_POINTS].log().neg().log()
    centred = log_t - log_t.mean()
    slope = ((height * centred).sum(-1) / centred.square().sum()).clamp(max=2.0)
    return slope, height.mean(-1) - slope * log_t.mean()


def frequencies(points: int, like: Tensor) -> Tensor:
    """The frequencies ``.1, .2, ...``, ``[points]`` with dtype and device of `like`."""
    return STEP * torch.arange(1, points + 1, dtype=like.dtype, device=like.device)


def indices(samples: Tensor) -> Tensor:
    """Tail index along the last axis: the regression of Koutrouvelis on the standardised characteristic function.

    Args:
        samples: ``[..., n]`` floating.

    Returns:
        ``[...]`` in about (0, 2]; nan where the quartiles are equal or a sample is not finite.
    """
    return decay_of(squared_modulus(standardised(samples), FIT_POINTS))[0]
