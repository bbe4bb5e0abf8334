"""Random numbers of stable laws: what noise is if sums of it keep its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def symmetric_stable(
    alpha: float, size: Sequence[int], generator: Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Draw symmetric alpha-stable noise, of characteristic function ``exp(-|t|^alpha)``: sums keep its shape.

    ``sin(alpha U) / cos(U)^(1/alpha) (cos((1 - alpha) U) / W)^((1 - alpha) / alpha)`` with U uniform on
    ``(-pi/2, pi/2)`` and W exponential.

    Args:
        alpha: Tail index in (0, 2]; 2 is the normal law with variance 2, 1 is Cauchy's.
        size: Shape of the result.
        generator: Source of random numbers, on the CPU; the global one is left alone.
        dtype: Floating dtype of the result.

    Returns:
        Tensor of the shape `size`. An infinite value is possible where alpha is far below 1.

    Raises:
        ValueError: If alpha is not in (0, 2].

    References:
        Chambers, Mallows & Stuck 1976, "A method for simulating stable random variables", eq. 2.3.

    Example:
        >>> x = symmetric_stable(1.0, (100_001,), torch.Generator().manual_seed(0))
        >>> bool((x.abs().median() - 1).abs() < 0.02)  # half of a Cauchy variable lies within 1
        True
    """
    _check(alpha)
    # (U + 1/2) pi / (n + 1) style shifts are not needed: rand is below 1, and a U of exactly -pi/2 is kept off.
    angle = torch.rand(*size, generator=generator, dtype=dtype).sub_(0.5).mul_(math.pi * (1 - 1e-7))
    if alpha == 1:
        return angle.tan_()
    wait = torch.empty(*size, dtype=dtype).exponential_(generator=generator)
    bent = torch.cos((1 - alpha) * angle).div_(wait).pow_((1 - alpha) / alpha)
    return torch.sin(alpha * angle).div_(torch.cos(angle).pow_(1 / alpha)).mul_(bent)


def elliptical_stable(alpha: float, rows: int, columns: int, generator: Generator) -> Tensor:
    """Draw vectors ``[n, d]`` float64 of which every projection is alpha-stable: normal ones, each with a stable scale.

    ``sqrt(A) G`` with G normal of variance 2 and A positive ``alpha/2``-stable with Laplace transform
    ``exp(-s^(alpha/2))``.

    Args:
        alpha: Tail index in (0, 2], else ValueError.
        rows: Number of vectors n.
        columns: Dimension d. All directions have the same scale; multiply columns for another.
        generator: Source of random numbers, on the CPU.

    References:
        Samorodnitsky & Taqqu 1994, "Stable non-Gaussian random processes", proposition 2.5.2; Kanter 1975 for A.

    Example:
        >>> elliptical_stable(1.5, 4, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3])
    """
    _check(alpha)
    normal = math.sqrt(2) * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if alpha == 2:
        return normal
    half = alpha / 2
    angle = torch.rand(rows, generator=generator, dtype=torch.float64) * math.pi
    wait = torch.empty(rows, dtype=torch.float64).exponential_(generator=generator)
    scale = torch.sin(half * angle) / torch.sin(angle) ** (1 / half)
    scale = scale * (torch.sin((1 - half) * angle) / wait) ** ((1 - half) / half)
    return scale.sqrt()[:, None] * normal


def _check(alpha: float) -> None:
    if not 0 < alpha <= 2:
        raise ValueError(f"a stable law has its tail index in (0, 2], got alpha={alpha}.")
