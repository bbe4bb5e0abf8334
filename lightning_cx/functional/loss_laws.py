"""Shapes that the end of a loss curve can have, and their least-squares fits to its logarithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize_scalar

Array: TypeAlias = NDArray[Any]

RESOLUTION = 1e-3
"""To this the logarithm of a loss is taken to follow a law at all, and deviations below it favour none. Laws of a
network hold to first order: gradient descent on a tanh teacher, without any noise, bends by 1e-4 to 1e-3 of its loss
from the exponential that it ends in, and a criterion that believed in float64 found floors there."""

SHORTEST = 1e-6
"""Time scales, of the length of the tail, from which on a power law's offset is told from no offset: one step of a
run of a million."""

LONGEST = 8.0
"""Time scales, of the length of the tail, up to which a law with a scale of its own is told from one without."""


@dataclass(frozen=True)
class Fit:
    """One law, fitted.

    Attributes:
        parameters: Its parameters, [k].
        deviations: Law less log-loss, [n].
        jacobian: How the law changes with its parameters, [n, k].
    """

    parameters: Array
    deviations: Array
    jacobian: Array

    @property
    def squares(self) -> float:
        """Sum of the squared deviations, not below what a law is taken to hold to."""
        return max(float(self.deviations @ self.deviations), len(self.deviations) * RESOLUTION**2)


# The laws, on time u that runs from 0 to 1 over the tail. Parameter 0 is the logarithm of the size, 1 the rate, or its
# logarithm where it must be positive; 2 the logarithm of the floor over the size, or of the power law's offset.


def _flat(p: Array, u: Array) -> Array:
    return np.full_like(u, p[0])


def _exponential(p: Array, u: Array) -> Array:
    return p[0] - p[1] * u


def _with_floor(p: Array, u: Array) -> Array:
    return p[0] + np.logaddexp(-np.exp(p[1]) * u, p[2])


def _power(p: Array, u: Array) -> Array:
    return p[0] - np.exp(p[1]) * np.log(u + np.exp(p[2]))


LAWS: dict[str, Callable[[Array, Array], Array]] = {
    "flat": _flat,
    "exponential": _exponential,
    "exponential with floor": _with_floor,
    "power": _power,
}


def _fit_flat(u: Array, y: Array) -> Fit:
    return Fit(np.array([y.mean()]), y.mean() - y, np.ones((len(u), 1)))


def _fit_exponential(u: Array, y: Array) -> Fit:
    design = np.stack([np.ones_like(u), -u], 1)
    parameters = np.linalg.lstsq(design, y, rcond=None)[0]
    return Fit(parameters, design @ parameters - y, design)


def _fit_with_floor(u: Array, y: Array) -> Fit:
    # From each of a grid of rates, the floor that the last readings show; the size follows.
    depth = max(float(y[0] - y[-1]), 0.1)
    starts = [
        np.array([0.0, math.log(rate), -share * depth - 0.1])
        for rate in np.geomspace(1 / LONGEST, 300, 12)
        for share in (0.5, 1.0, 1.5)
    ]
    return _refined(_with_floor, starts, u, y, (math.log(1 / LONGEST), math.log(1e4)), (-60.0, 60.0))


def _fit_power(u: Array, y: Array) -> Fit:
    def line(log_offset: float) -> tuple[float, float, float]:
        x = np.log(u + math.exp(log_offset))
        slope = -float(((x - x.mean()) * y).sum()) / float(((x - x.mean()) ** 2).sum())
        squares = float((((y - y.mean()) + slope * (x - x.mean())) ** 2).sum())
        return squares, slope, float(y.mean() + slope * x.mean())

    ends = (math.log(SHORTEST), math.log(LONGEST))
    grid = np.linspace(*ends, 40)
    nearest = grid[int(np.argmin([line(place)[0] for place in grid]))]
    around = (max(nearest - 0.3, ends[0]), min(nearest + 0.3, ends[1]))
    place = _lowest(lambda x: line(x)[0], around)
    _, slope, size = line(place)
    start = np.array([size, math.log(max(slope, 1e-6)), place])
    return _refined(_power, [start], u, y, (-14.0, 10.0), ends)


def _lowest(curve: Callable[[float], float], ends: tuple[float, float]) -> float:
    found: Any = minimize_scalar(curve, bounds=ends, method="bounded")
    return float(found.x)


def _refined(
    law: Callable[[Array, Array], Array],
    starts: list[Array],
    u: Array,
    y: Array,
    rates: tuple[float, float],
    thirds: tuple[float, float],
) -> Fit:
    """Least squares from the best of the starts, each with the size that suits it."""
    sized = [start + np.array([(y - law(start, u)).mean(), 0, 0]) for start in starts]
    best = min(sized, key=lambda p: float(((law(p, u) - y) ** 2).sum()))
    bounds = ([-np.inf, rates[0], thirds[0]], [np.inf, rates[1], thirds[1]])
    best = np.clip(best, np.add(bounds[0], 1e-9), np.subtract(bounds[1], 1e-9))
    found = least_squares(lambda p: law(p, u) - y, best, bounds=bounds, x_scale="jac", xtol=1e-12, ftol=1e-12)
    return Fit(found.x, found.fun, found.jac)


FITS: dict[str, Callable[[Array, Array], Fit]] = {
    "flat": _fit_flat,
    "exponential": _fit_exponential,
    "exponential with floor": _fit_with_floor,
    "power": _fit_power,
}
