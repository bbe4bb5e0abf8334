"""The path of the parameters: its geometry, how far it was driven against its noise, and whether a place attracts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.complexity.spectrum import theil_sen
from lightning_cx.functional.inputs import as_tensor


def spanning_tree_length(points: Any, alpha: float = 1.0) -> Tensor:
    """Measure the length of the minimum spanning tree, ``sum of edges^alpha``: a path's length without retracing.

    The tree of least total length that joins all points. Its edges are the lifetimes of the connected components in
    persistent homology of degree 0, hence the name of alpha-weighted lifetime sum, ``E_alpha``. It grows with the
    number of points: T points of a random walk over the same stretch have a tree of order ``T^(1/2)``, those on a
    straight line one of their distance, whatever T. Compare at the same number of points only.

    Args:
        points: ``[T, d]`` real, in any order: the parameters at T steps, or sketches of them.
        alpha: Positive power of the edges; the tree is the same for all.

    Returns:
        ``[]`` float64, non-negative, in the unit of the points to the power alpha. 0 for a single point or equal ones;
        nan for none, or if any entry is not finite.

    Raises:
        ValueError: If the points are not a matrix, or `alpha` is not positive.

    References:
        Andreeva, Dupuis et al. 2024, "Topological generalization bounds for discrete-time stochastic optimization
        algorithms", section 3 (E_alpha); Prim 1957 for the tree.

    Example:
        >>> float(spanning_tree_length([[0, 0], [3, 0], [3, 4]]))
        7.0
    """
    if not alpha > 0:
        raise ValueError(f"the power of the edges is positive, got alpha={alpha}.")
    distances = pairwise_distances(points)
    if len(distances) == 0 or not bool(distances.isfinite().all()):
        return distances.new_full((), torch.nan)
    return _tree_edges(distances).pow(alpha).sum()


def positive_magnitude(points: Any, scale: float) -> Tensor:
    """Count the points that are far apart at a scale: 1 where all are close together, T where none is near another.

    With D the distances, the magnitude weights beta solve ``exp(-scale D) beta = 1``; their sum is the magnitude of the
    set, an effective number of points, and the sum of those that are positive its positive magnitude.

    Args:
        points: ``[T, d]`` real, in any order; equal ones count as one. (Nearly equal ones need not: one of the two
            may get a negative weight, which the positive part leaves out.)
        scale: Positive, in points per unit of distance: distances far above ``1 / scale`` separate. Andreeva, Dupuis et
            al. take the root of the number of training examples, or a small number.

    Returns:
        ``[]`` float64, at least 1 up to rounding; 2 / (1 + exp(-scale d)) for two points at a distance d. For
        ``scale -> inf`` it is the number of different points. For ``scale -> 0`` the magnitude is 1, and so is the
        positive magnitude where no weight stays negative, as on a line. nan for no points, if any entry is not finite,
        or where points lie so close together that float64 cannot solve for the weights.

    Raises:
        ValueError: If the points are not a matrix, or `scale` is not positive and finite.

    References:
        Andreeva, Dupuis et al. 2024, "Topological generalization bounds for discrete-time stochastic optimization
        algorithms", section 3 (PMag); Leinster 2013, "The magnitude of metric spaces".

    Example:
        >>> round(float(positive_magnitude([[0.0], [3.0]], scale=1.0)), 6)
        1.905148
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"the scale of the magnitude is positive and finite, got scale={scale}.")
    distances = pairwise_distances(points)
    if len(distances) == 0 or not bool(distances.isfinite().all()):
        return distances.new_full((), torch.nan)
    first = (distances == 0).int().argmax(1)  # of equal points the first one stands for all
    kept = first == torch.arange(len(distances), device=distances.device)
    return _magnitude_weights(scale * distances[kept][:, kept]).clamp_min(0.0).sum()


@dataclass(frozen=True, eq=False)
class DistanceFromStart:
    """How far a path has come and how its distance grew; tensors are float64 on the device of the points.

    Attributes:
        distances: ``[T]`` distance of each point from the first, in the unit of the points.
        exponent: ``[]`` p of ``distance ~ (steps since the start)^p``: 1 straight ahead, 1/2 a random walk, near 0
            where it stays. nan with fewer than 9 points after the start, or a distance that is 0 or not finite.
        low: ``[]`` lowest of the exponents of the first half, the second half (of the logarithm of time) and the whole.
        high: ``[]`` highest of them. Where the two differ much the growth is no power law.
    """

    distances: Tensor
    exponent: Tensor
    low: Tensor
    high: Tensor

    def __str__(self) -> str:
        if not len(self.distances):
            return "no points"
        far = f"{self.distances[-1]:.4g} from the start"
        if not bool(self.exponent.isfinite()):
            return far
        return f"{far}, grows as t^{self.exponent:.2f} (parts between {self.low:.2f} and {self.high:.2f})"


MIN_POINTS_OF_GROWTH = 9
"""A slope of each half needs five points, of which the halves share one."""


def distance_from_start(points: Any, steps: Any = None) -> DistanceFromStart:
    """Measure how far the parameters have moved, and whether they still go somewhere or wander about.

    The distance of each point from the first one, and the Theil-Sen slope of its logarithm against that of the steps
    since. The exponents of the halves show whether one power describes the path; they are no confidence interval.

    Args:
        points: ``[T, d]`` real, in the order of time; the first is the start.
        steps: ``[T]`` ascending step numbers of the points; None counts the points.

    Returns:
        DistanceFromStart.

    Raises:
        ValueError: If the points are not a matrix, or the steps not one for each point and ascending.

    References:
        Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", section 3, on ultra-slow growth.

    Example:
        >>> print(distance_from_start([[2.0 * t] for t in range(20)]))
        38 from the start, grows as t^1.00 (parts between 1.00 and 1.00)
    """
    points = _matrix(points)
    times = torch.arange(len(points)) if steps is None else as_tensor(steps)
    times = times.to(points.device).double()
    if times.shape != points.shape[:1] or not bool((times.diff() > 0).all()):
        raise ValueError(f"each of {len(points)} points has a step, ascending; got steps of shape {list(times.shape)}.")
    distances = _norms(points - points[:1])
    x, y = (times[1:] - times[:1]).log(), distances[1:].log()
    if len(x) < MIN_POINTS_OF_GROWTH or not bool(y.isfinite().all()):
        unknown = distances.new_full((), torch.nan)
        return DistanceFromStart(distances, unknown, unknown, unknown)
    middle = min(max(int((x <= (x[0] + x[-1]) / 2).sum()), 5), len(x) - 4)  # at least five points in each part
    whole = theil_sen(x, y)
    exponents = torch.stack([whole, theil_sen(x[:middle], y[:middle]), theil_sen(x[middle - 1 :], y[middle - 1 :])])
    return DistanceFromStart(distances, whole, exponents.min(), exponents.max())


def bound_index(
    alpha: Any,
    sigma: Any,
    steps: Any,
    step_size: Any,
    squared_gradient: Any,
    examples: int,
    parameters: int,
    radius: float = 1.0,
) -> Tensor:
    """Compare runs by how far gradients drove the weights against how much noise blurred them. An index, not a bound.

    ``100 sqrt(K T eta g^2 / (2 n R^(2 - alpha) sigma^alpha))`` with K of `levy_dimension_constant`. SGD is read as the
    Euler scheme of ``dW = -grad F dt + sigma dL`` with isotropic alpha-stable noise L, whose characteristic function is
    ``exp(-t |u|^alpha)``. The theorem behind it caps the expected gap between training and test error, in percent of
    the loss's range, up to constants and a confidence term. Its assumptions (isotropic noise of one scale, no momentum)
    do not hold for networks, and its size means nothing: 84 to 148% were measured against gaps of 4 to 8%.

    Args:
        alpha: Tail index of the noise, between 1 and 2: a number or ``[...]``.
        sigma: Scale of the noise of one coordinate, positive; its standard deviation is ``sqrt(2) sigma`` at alpha = 2.
        steps: Number T of optimizer steps.
        step_size: Learning rate eta, its mean over the steps.
        squared_gradient: Mean of ``|g|^2`` over the steps, g the gradient of the whole training loss.
        examples: Number n of training examples, at least 1.
        parameters: Number d of trainable parameters, at least 1.
        radius: R, a length in the space of the parameters that the theorem leaves to the reader. It drops out at
            alpha = 2.

    Returns:
        ``[...]`` float64 in percent; nan where alpha is not in [1, 2], sigma is not positive, another quantity is
        negative, or any is not finite.

    Raises:
        ValueError: If `examples` or `parameters` is below 1, or `radius` is not positive.

    References:
        Dupuis & Simsekli 2024, "Generalization bounds for heavy-tailed SDEs through the fractional Fokker-Planck
        equation"; THEORY section 7.

    Example:
        >>> f"{bound_index(2.0, 0.1, 1000, 0.01, 0.5, 50_000, 10_000):.1f}"  # 100 sqrt(.5 * 1000 * .01 * .5 / 1000)
        '5.0'
    """
    if examples < 1:
        raise ValueError(f"a training set holds at least one example, got examples={examples}.")
    if not radius > 0:
        raise ValueError(f"the radius is a positive length, got radius={radius}.")
    alpha, sigma, steps, step_size, squared_gradient = (
        as_tensor(value).double() for value in (alpha, sigma, steps, step_size, squared_gradient)
    )
    drive = levy_dimension_constant(alpha, parameters) * steps * step_size * squared_gradient
    blur = 2 * examples * float(radius) ** (2 - alpha) * sigma.clamp_min(0.0) ** alpha
    known = (steps >= 0) & (step_size >= 0) & (squared_gradient >= 0) & (sigma > 0) & blur.isfinite()
    return torch.where(known & drive.isfinite(), 100 * (drive / blur).sqrt(), torch.nan)


def levy_dimension_constant(alpha: Any, parameters: int) -> Tensor:
    """Compute how much the dimension counts under noise of a tail index: K of the bound index.

    ``K = (2 - alpha) Gamma(1 - alpha/2) d^(1 - alpha/2) / (alpha 2^(alpha/2))``, computed as
    ``2 Gamma(2 - alpha/2) ...``, which has no singularity: K = 1/2 at alpha = 2, where the dimension drops out.

    Args:
        alpha: Tail index between 1 and 2, a number or ``[...]``.
        parameters: Number d of trainable parameters, at least 1.

    Returns:
        ``[...]`` float64, positive; nan where alpha is not in [1, 2].

    Raises:
        ValueError: If there is no parameter.

    References:
        Dupuis & Simsekli 2024, "Generalization bounds for heavy-tailed SDEs through the fractional Fokker-Planck
        equation" (K_{alpha, d}); THEORY section 7.

    Example:
        >>> round(float(levy_dimension_constant(1.6, 45258)), 9), float(levy_dimension_constant(2.0, 45258))
        (5.625324654, 0.5)
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, got parameters={parameters}.")
    alpha = as_tensor(alpha).double()
    half = alpha / 2
    constant = 2 * torch.lgamma(2 - half).exp() * float(parameters) ** (1 - half) / (alpha * 2**half)
    return torch.where((alpha >= 1) & (alpha <= 2), constant, torch.nan)


def pairwise_distances(points: Any) -> Tensor:
    """Compute distances ``[T, T]`` of all pairs of points, exact also for near copies far from the origin."""
    points = _matrix(points)
    if not points.numel():  # no points, or points without a coordinate, which coincide
        return points.new_zeros(len(points), len(points))
    points = points - points[:1]
    size = points.abs().max().clamp_min(torch.finfo(torch.float64).tiny)  # squares of 1e200 would overflow
    return torch.cdist(points / size, points / size, compute_mode="donot_use_mm_for_euclid_dist") * size


def _matrix(points: Any) -> Tensor:
    points = as_tensor(points).detach()
    if points.ndim != 2:
        raise ValueError(f"points are a matrix [T, d], one row each, got shape {list(points.shape)}.")
    return points.double()


def _tree_edges(distances: Tensor) -> Tensor:
    """Return the edges of the minimum spanning tree by Prim: join the nearest outsider, T - 1 times; zeros count."""
    away = distances[0].clone()  # of each outsider from the tree
    outside = torch.ones_like(away, dtype=torch.bool)
    outside[0] = False
    edges = []
    for _ in range(len(distances) - 1):
        nearest = away.where(outside, torch.inf).argmin()
        edges.append(away[nearest])
        outside[nearest] = False
        away = torch.minimum(away, distances[nearest])
    return torch.stack(edges) if edges else distances.new_zeros(0)


MAX_RESIDUAL = 1e-6
"""By how much the equations of the magnitude weights may be missed; points that nearly coincide cannot be told apart in
float64 beyond that."""


def _magnitude_weights(scaled: Tensor) -> Tensor:
    """Solve ``exp(-scaled) beta = 1`` for different points; nan where float64 cannot.

    ``exp(-scaled)`` nears the singular matrix of ones where all points are close. So solve ``M u = 1`` with
    ``M = 1 - exp(-scaled)``, which does not care for the scale, and ``beta = u / (sum u - 1)``.
    """
    if len(scaled) == 1:
        return torch.ones_like(scaled[0])
    gaps = -torch.expm1(-scaled)
    size = gaps.max()
    u, trouble = torch.linalg.solve_ex(gaps / size, torch.ones_like(gaps[0]))
    beta = u / (u.sum() - size)
    missed = (beta.sum() - gaps @ beta - 1).abs().max()
    sound = (trouble == 0) & (missed < MAX_RESIDUAL)
    return torch.where(sound, beta, torch.nan)


def _norms(rows: Tensor) -> Tensor:
    size = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) if rows.numel() else rows
    return (rows / size).norm(dim=1) * size.squeeze(1) if rows.numel() else rows.new_zeros(len(rows))


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
