"""A neighbourhood graph over examples, scaled so that its Laplacian treats every example alike."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.linalg import eigh

LOCAL_SCALE_NEIGHBOR = 7
"""Which neighbour's distance sets an example's length scale (Zelnik-Manor & Perona 2004, section 2.1)."""

TIE = 1e-9
"""Neighbours this close (relatively) to the k-th are taken too, so that the order of examples never decides."""

ROW_SUM_TOLERANCE = 1e-12
"""The scaling stops once every row sums to 1 within this; rounding allows little better."""

MAX_SCALING_STEPS = 10_000
"""Ordinary graphs need 20 to 60 steps; this only bounds the time spent on a pathological one."""


def doubly_stochastic_graph(features: Tensor, n_neighbors: int) -> Tensor:
    """Connect each example with its nearest neighbours by weights that sum to one at every example.

    Args:
        features: ``[n, d]`` finite, any float dtype.
        n_neighbors: Neighbours per example; more than ``n - 1`` means all the others.

    Returns:
        ``[n, n]`` float64: symmetric, non-negative, rows summing to 1.
    """
    return sinkhorn(knn_affinity(distances(features), n_neighbors))


def distances(features: Tensor) -> Tensor:
    """Measure all pairwise Euclidean distances, up to one common factor.

    Differences are taken before squaring (`torch.pdist`), so that duplicates are at distance exactly zero,
    and no ``n x n x d`` array is formed.

    Args:
        features: ``[n, d]`` finite, any float dtype.

    Returns:
        ``[n, n]`` float64, symmetric; the unit is the largest absolute coordinate.
    """
    n = features.shape[0]
    # Without the division a feature of 1e200 would overflow when squared; the graph knows no unit of length.
    features = features.double()
    features = features / features.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    result = features.new_zeros(n, n)
    row, column = torch.triu_indices(n, n, offset=1, device=features.device)
    result[row, column] = torch.pdist(features)
    return result + result.T


def knn_affinity(distance: Tensor, n_neighbors: int) -> Tensor:
    """Weigh the union k-nearest-neighbour graph by self-tuning Gaussians.

    ``w_ij = exp(-d_ij^2 / (s_i s_j))`` where i is among the neighbours of j or j among those of i, 1 on the
    diagonal, 0 elsewhere; ``s_i`` is the distance of i to its 7th neighbour (Zelnik-Manor & Perona 2004,
    "Self-tuning spectral clustering"). Where more than 7 examples coincide that distance is 0, and the nearest
    example that is not a copy sets the scale instead.

    Args:
        distance: ``[n, n]`` float64, symmetric with zero diagonal.
        n_neighbors: Neighbours per example.

    Returns:
        ``[n, n]`` float64, symmetric.
    """
    n = distance.shape[0]
    if n == 1:
        return torch.ones_like(distance)
    others = distance.clone().fill_diagonal_(torch.inf)
    k, local = min(n_neighbors, n - 1), min(LOCAL_SCALE_NEIGHBOR, n - 1)
    nearest = others.topk(max(k, local), largest=False).values
    is_neighbor = others <= nearest[:, k - 1 : k] * (1 + TIE)
    scale = nearest[:, local - 1]
    nearest_other = others.masked_fill(others == 0, torch.inf).amin(1)
    scale = torch.where(scale > 0, scale, nearest_other)  # inf where all coincide: every weight is then 1
    # Two ratios rather than d^2 / (s_i s_j), which can underflow to 0 / 0.
    exponent = (distance / scale[:, None]) * (distance / scale[None, :])
    weights = torch.where(is_neighbor | is_neighbor.T, torch.exp(-exponent), 0.0)
    return weights.fill_diagonal_(1.0)


def sinkhorn(affinity: Tensor) -> Tensor:
    """Scale a symmetric non-negative matrix to row sums 1, keeping it symmetric: ``S = D W D``.

    The damped fixed point ``d <- d / sqrt(d * (W d))`` contracts at the rate ``(1 - smallest eigenvalue of S) / 2``;
    the undamped one oscillates (Knight, Ruiz & Ucar 2014, "A symmetry preserving algorithm for matrix scaling").

    Args:
        affinity: ``[n, n]`` float64, symmetric, non-negative, with a positive diagonal (a scaling then exists).

    Returns:
        ``[n, n]`` float64 doubly stochastic.
    """
    scale = affinity.sum(1).rsqrt()
    for _ in range(MAX_SCALING_STEPS):
        row_sums = scale * (affinity @ scale)
        if bool((row_sums - 1).abs().max() < ROW_SUM_TOLERANCE):
            break
        scale = scale / row_sums.sqrt()
    return affinity * scale[:, None] * scale[None, :]


def eigh_with_constant_first(laplacian: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonalise a Laplacian on the complement of the constant, and put the constant in front.

    `eigh` on the whole matrix returns an arbitrary rotation of the null space, and the constant mixed with
    every eigenvector of small eigenvalue.

    Args:
        laplacian: ``[n, n]`` float64, symmetric, rows summing to 0.

    Returns:
        Ascending eigenvalues ``[n]``, the first exactly 0, and orthonormal eigenvectors ``[n, n]``, the first
        exactly constant.
    """
    n = laplacian.shape[0]
    constant = laplacian.new_full((n, 1), n**-0.5)
    if n == 1:
        return laplacian.new_zeros(1), constant
    mirror = constant.clone()  # Householder: reflecting along e_0 + c swaps -e_0 and the constant c
    mirror[0] += 1.0
    mirror = mirror / mirror.norm()

    def reflect(matrix: Tensor) -> Tensor:
        return matrix - 2 * mirror @ (mirror.T @ matrix)

    inner = reflect(reflect(laplacian).T)[1:, 1:]
    eigenvalues, rotation = eigh((inner + inner.T) / 2)
    others = reflect(torch.cat([rotation.new_zeros(1, n - 1), rotation]))
    return torch.cat([eigenvalues.new_zeros(1), eigenvalues]), torch.cat([constant, others], dim=1)
