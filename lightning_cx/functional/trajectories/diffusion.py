"""Does a path stay, wander or drift: how its mean squared displacement grows with the lag."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_cx.functional.inputs import as_tensor

Array = NDArray[np.float64]

_FEWEST = 5  # points that have more than one lag up to their half

MIN_BLOCKS = 8
"""Fewer points have lags 1 to 3 at most: 29% of stretches of white noise of 8 points show an exponent over .5 where
lags end at 2, 11% where they end at 4."""

CONFINED = 0.5
"""Growth exponent of the mean squared displacement below which a stretch is a dwell; THEORY, section 7."""

CHANCE = 3.0
"""White noise of n blocks shows an exponent of 0 +- 3 / n (measured .4, .2 and .1 for n = 8, 16 and 32): so much over
`CONFINED` is no evidence against a dwell."""

LAGS = 8
"""Lags are spread evenly in logarithm from 1 to half of the path; more of them are nearly the same numbers."""

NULL_ERROR = 2.4
"""Standard deviation of the exponent of free diffusion, times sqrt(points x directions): 1.7 to 2.4 were measured for
8 to 128 points in 1 and 64 directions (1500 walks each)."""


@dataclass(frozen=True)
class DiffusionExponent:
    """How the mean squared displacement of a path grows with the lag.

    Attributes:
        value: 0 where the path is confined, 1 where it wanders freely, 2 where it drifts; nan where it cannot be told.
        standard_error: Of the exponent that free diffusion of this length would show, around 1.
        directions: How many independent directions the path moves in, at least 1.
    """

    value: float
    standard_error: float
    directions: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "diffusion exponent unknown: the path is too short or does not move"
        words = "confined" if self.value < 0.5 else "wandering" if self.value < 1.5 else "drifting"
        return (
            f"diffusion exponent {self.value:.2f}: {words} (free diffusion would show 1 +- {self.standard_error:.2f})"
        )


_UNKNOWN = DiffusionExponent(math.nan, math.nan, 1.0)


def diffusion_exponent(path: Any) -> DiffusionExponent:
    """Fit how a path spreads, staying, wandering or drifting: the slope of ``log E|x(t+l) - x(t)|^2`` over ``log l``.

    Lags run from 1 to half of the path. The error is that of a random walk of the same length, whose exponent is about
    1 (slightly more where points are averages over time); it shrinks with the number of points and of directions
    ``(tr C)^2 / tr C^2``, C the covariance of the steps.

    Args:
        path: ``[n, k]`` positions at equal distances in time, or ``[n]``; real.

    Returns:
        DiffusionExponent; nan for fewer than 8 points, where an entry is not finite, or where nothing moves.

    Raises:
        ValueError: If the shape is another one.

    References:
        Metzler & Klafter 2000, "The random walk's guide to anomalous diffusion", section 1.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal((400, 3))
        >>> walk = noise.cumsum(0)
        >>> [round(diffusion_exponent(path).value) for path in (noise, walk, walk.cumsum(0))]
        [0, 1, 2]
    """
    values = points(path)
    return growth_exponent(values) if len(values) >= MIN_BLOCKS else _UNKNOWN


def growth_exponent(values: Array) -> DiffusionExponent:
    """Fit the exponent of ``[n, k]`` positions, however few; see `diffusion_exponent`."""
    n = len(values)
    if n < _FEWEST or not np.isfinite(values).all():
        return _UNKNOWN
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = values - values.mean(0)
        values = values / np.abs(values).max()  # squares of tiny or huge numbers leave the range of doubles
        lags = np.unique(np.round(np.geomspace(1, n // 2, LAGS)).astype(int))
        growth = np.array([np.square(values[lag:] - values[:-lag]).sum(1).mean() for lag in lags])
    if not (np.isfinite(growth) & (growth > 0)).all():
        return _UNKNOWN
    over = np.log(lags) - np.log(lags).mean()
    directions = effective_directions(np.diff(values, axis=0))
    slope = float(over @ np.log(growth) / (over @ over))
    return DiffusionExponent(slope, NULL_ERROR / math.sqrt(n * directions), directions)


def is_confined(exponent: DiffusionExponent, points: int) -> bool:
    """Test whether the exponent of so many points is that of a path that stays in one place."""
    return exponent.value < CONFINED + CHANCE / points


def points(path: Any) -> Array:
    """Return a path as ``[n, k]`` float64."""
    values = as_tensor(path)
    if values.ndim not in (1, 2) or values.is_complex() or (len(values) and not values.numel()):
        raise ValueError(f"a path is real, [n, k] or [n], got {list(values.shape)} of {values.dtype}.")
    values = values.detach().double().cpu()
    return (values[:, None] if values.ndim == 1 else values).numpy()


def effective_directions(moves: Array) -> float:
    """Compute ``(tr C)^2 / tr C^2`` of the second moments of moves ``[m, k]``, 1 to k; 1 where nothing moves."""
    second = moves.T @ moves if moves.shape[1] <= len(moves) else moves @ moves.T  # the same eigenvalues
    squares = float(np.square(second).sum())
    return float(np.trace(second)) ** 2 / squares if squares > 0 else 1.0
