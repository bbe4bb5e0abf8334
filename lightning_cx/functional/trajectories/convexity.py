"""Do gradients point back to the centre of the place where training dwells?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

MIN_PAIRS = 32
"""Two in each of 16 groups: an error of the error of 18%."""

GROUPS = 16
"""Neighbouring pairs resemble each other, so the error is read off sums of groups of neighbours."""

WARM_UP = 8
"""The mean of so many earlier points is the first that is taken for a centre, or that of an eighth of all."""


@dataclass(frozen=True)
class PointConvexity:
    """How strongly gradients point away from a centre, so that descent returns to it.

    Attributes:
        value: ``sum <g, w - c> / sum |w - c|^2``, in units of curvature; nan where it is not known.
        standard_error: Of the value, from groups of neighbouring pairs.
        pairs: How many pairs of a gradient and a point were used.
        reason: Why it is nan; empty where it is not.
    """

    value: float
    standard_error: float
    pairs: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"one-point convexity unknown: {self.reason}"
        return f"one-point convexity {self.value:.3g} +- {self.standard_error:.2g} ({self.pairs} pairs)"


def one_point_convexity(gradients: Any, weights: Any, center: Any = None) -> PointConvexity:
    """Estimate whether a place attracts: ``sum <g_t, w_t - c> / sum |w_t - c|^2``, the curvature on the way back to c.

    Positive: gradients point back to the centre on average, as in a valley (for a quadratic ``h |w|^2 / 2`` it is h).
    About zero: nothing pulls, training wanders. Negative: the place repels.

    Without a centre each point is compared with the mean of those before it. A mean over all points knows what the
    noise of each gradient did afterwards, and finds ``3 / (eta T)`` in a random walk of T steps that nothing pulls.

    Args:
        gradients: ``[T, k]`` gradients at the points, in order of time; noisy ones will do.
        weights: ``[T, k]`` points. Both may be sketches on the same random directions.
        center: ``[k]``, or one for each point ``[T, k]``; None takes the mean of the earlier points.

    Returns:
        PointConvexity; nan, with the reason, for fewer than 32 pairs, where entries are not finite, or where the points
        do not differ from the centre.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Kleinberg, Li & Yuan 2018, "An alternative view: when does SGD escape local minima?", assumption 1.

    Example:
        >>> import numpy as np
        >>> w = np.random.default_rng(0).standard_normal((400, 5))
        >>> print(one_point_convexity(0.5 * w, w, center=np.zeros(5)))
        one-point convexity 0.5 +- 0 (400 pairs)
    """
    gradients, weights = (as_tensor(values).detach().double().cpu() for values in (gradients, weights))
    if gradients.ndim != 2 or gradients.shape != weights.shape:
        shapes = f"{list(gradients.shape)} and {list(weights.shape)}"
        raise ValueError(f"gradients and points are both [T, k], got {shapes}.")
    if center is None:
        gradients, apart = _from_earlier(gradients, weights)
    else:
        center = as_tensor(center).detach().double().cpu()
        if center.shape not in (weights.shape, weights.shape[1:]):
            raise ValueError(f"a centre is [k], or [T, k] like the points, got {list(center.shape)}.")
        apart = weights - center
    pairs = len(apart)
    if pairs < MIN_PAIRS:
        return PointConvexity(math.nan, math.nan, pairs, f"{pairs} pairs of a gradient and a point, {MIN_PAIRS} needed")
    along, squares = (gradients * apart).sum(1), apart.square().sum(1)
    if not bool((along.isfinite() & squares.isfinite()).all()):
        return PointConvexity(math.nan, math.nan, pairs, "a gradient or a point is not finite")
    if not float(squares.sum()) > 0:
        return PointConvexity(math.nan, math.nan, pairs, "the points do not differ from the centre")
    value = along.sum() / squares.sum()
    left = torch.stack([group.sum() for group in (along - value * squares).tensor_split(GROUPS)])
    error = (left.square().sum() * GROUPS / (GROUPS - 1)).sqrt() / squares.sum()
    return PointConvexity(float(value), float(error), pairs)


def _from_earlier(gradients: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from each point the mean of those before it, as soon as there are some."""
    first = max(WARM_UP, len(weights) // 8)
    if len(weights) <= first:
        return gradients[:0], weights[:0]
    before = weights.cumsum(0)[first - 1 : -1] / torch.arange(first, len(weights), dtype=torch.float64)[:, None]
    return gradients[first:], weights[first:] - before
