"""Kernels whose eigenvalues are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def circle_angles(n: int) -> Tensor:
    return 2 * math.pi * torch.arange(n, dtype=torch.float64) / n


def circle_ntk(n: int) -> Tensor:
    """The tangent kernel of a wide two-layer ReLU network on n equally spaced points of the unit circle."""
    offset = torch.arange(n)
    # Angles from distances in integers: the arccos of a rounded cosine near 1 has half the digits.
    steps = (offset[:, None] - offset).abs()
    angle = 2 * math.pi * torch.minimum(steps, n - steps).double() / n
    return (angle.cos() + 1) * (math.pi - angle) / (4 * math.pi)


def circle_eigenvalue(k: int) -> float:
    """Eigenvalue of frequency k >= 1, as a function of the angle with respect to d theta / pi (Basri et al. 2019).

    On n points that measure is 2 / n at each: this is 2 / n times the eigenvalue of the Gram matrix.
    """
    if k == 1:
        return 1 / math.pi**2 + 1 / 8
    if k % 2:
        return 1 / (math.pi * k) ** 2
    return (k**2 + 1) / (math.pi * (k**2 - 1)) ** 2


def circle_eigenvalue_on_grid(k: int, n: int) -> float:
    """The same for n points (n even) exactly: the eigenvalues of k + n m for all integers m add up.

    sum_m (k + n m)^-2 = (pi / n)^2 / sin(pi k / n)^2, and an even frequency has the mean of its two neighbours.
    """

    def odd(k: int) -> float:
        return 1 / (n * math.sin(math.pi * k / n)) ** 2

    constant = {0: 1 / 4, 1: 1 / 8, n - 1: 1 / 8}.get(k % n, 0.0)  # what the mean of pi - angle brings
    return constant + (odd(k) if k % 2 else (odd(k - 1) + odd(k + 1)) / 2)
