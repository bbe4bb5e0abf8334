"""Levels: basis functions of equal complexity are one level, levels gather in octaves."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

EXACT_TOLERANCE = 1e-9
"""Complexities closer than this share of the largest are one level: rounding of a closed formula."""

GRAPH_TOLERANCE = 1e-6
"""The same for eigenvalues of a graph, where symmetry makes ties that `eigh` returns less exactly."""


def merge_levels(energy: Tensor, complexity: Tensor, tol: float = EXACT_TOLERANCE) -> tuple[Tensor, Tensor]:
    """Gather the energies of equally complex basis functions into one energy per level.

    A sine and a cosine of one frequency are equally complex, and how energy divides between them depends on
    where the axis begins. Neighbours in complexity that differ by at most ``tol * max |complexity|`` share a
    level: their energies add and their complexities average.

    Args:
        energy: ``[..., L0]``, one energy per basis function; computed in float64.
        complexity: ``[L0]``, ascending.
        tol: Relative gap below which two complexities are the same.

    Returns:
        ``([..., L], [L])`` in float64: energy and complexity of the ``L <= L0`` levels.

    Raises:
        ValueError: If the complexities are not ascending or their number is not that of the energies.

    Example:
        >>> energy, complexity = merge_levels(torch.tensor([1., 2., 3.]), torch.tensor([0., 1., 1.]))
        >>> energy.tolist(), complexity.tolist()
        ([1.0, 5.0], [0.0, 1.0])
    """
    energy, complexity = as_tensor(energy), as_tensor(complexity)
    if complexity.ndim != 1 or energy.shape[-1:] != complexity.shape:
        raise ValueError(
            f"each energy needs one complexity: the last dimension of energy {tuple(energy.shape)} must be "
            f"that of complexity {tuple(complexity.shape)}."
        )
    index = level_index(complexity, tol)
    levels = int(index[-1]) + 1 if index.numel() else 0
    return sum_by_level(energy, index, levels), mean_by_level(complexity, index, levels)


def level_index(complexity: Tensor, tol: float = EXACT_TOLERANCE) -> Tensor:
    """Say which level each basis function belongs to.

    Args:
        complexity: ``[L0]``, ascending.
        tol: Relative gap below which two neighbours share a level.

    Returns:
        ``[L0]`` int64, ascending from 0 without gaps; empty for an empty input.

    Raises:
        ValueError: If the complexities descend anywhere, or are not finite.

    Example:
        >>> level_index(torch.tensor([0., 1., 1., 2.])).tolist()
        [0, 1, 1, 2]
    """
    complexity = complexity.double()
    if complexity.numel() == 0:
        return torch.zeros(0, dtype=torch.long, device=complexity.device)
    gaps = complexity.diff()
    # `not all` rather than `any(gaps < 0)`, so that a NaN is refused too.
    if not bool((gaps >= 0).all() & complexity.isfinite().all()):
        raise ValueError("complexity must be finite and ascending: sort the basis by complexity first.")
    opens_a_level = gaps > tol * complexity.abs().max()
    return torch.cat([opens_a_level.new_zeros(1), opens_a_level]).cumsum(0)


def sum_by_level(energy: Tensor, index: Tensor, levels: int) -> Tensor:
    """Add up ``[..., L0]`` energies into ``[..., levels]``."""
    energy = energy.double()
    return energy.new_zeros(*energy.shape[:-1], levels).index_add_(-1, index, energy)


def mean_by_level(complexity: Tensor, index: Tensor, levels: int) -> Tensor:
    """Average ``[L0]`` complexities into ``[levels]``."""
    ones = torch.ones_like(complexity, dtype=torch.float64)
    return sum_by_level(complexity, index, levels) / sum_by_level(ones, index, levels)


def octave_bands(levels: int) -> list[tuple[int, int]]:
    """Divide the level index into octaves: [0, 1), [1, 2), [2, 4), [4, 8), ...

    Args:
        levels: Number of levels.

    Returns:
        Half-open ranges ``(start, stop)`` that cover ``0 .. levels - 1``; the last one is clipped.

    Raises:
        ValueError: If the number of levels is negative.

    Example:
        >>> octave_bands(7)
        [(0, 1), (1, 2), (2, 4), (4, 7)]
    """
    if levels < 0:
        raise ValueError(f"the number of levels cannot be negative, got {levels}.")
    borders = [0] + [1 << octave for octave in range(max(levels - 1, 0).bit_length())]
    return [(start, min(max(1, 2 * start), levels)) for start in borders if start < levels]


def band_energies(energy: Tensor, bands: list[tuple[int, int]]) -> Tensor:
    """Add up level energies band by band.

    Args:
        energy: ``[..., L]`` energies per level.
        bands: Half-open ranges of the level index, as from `octave_bands`.

    Returns:
        ``[..., len(bands)]`` float64.

    Raises:
        ValueError: If a band reaches outside ``0 .. L``.

    Example:
        >>> band_energies(torch.ones(7), octave_bands(7)).tolist()
        [1.0, 1.0, 2.0, 3.0]
    """
    energy = as_tensor(energy)
    levels = energy.shape[-1]
    outside = [band for band in bands if not 0 <= band[0] <= band[1] <= levels]
    if outside:
        raise ValueError(f"band {outside[0]} reaches outside the {levels} levels of the spectrum.")
    energy = energy.double()
    sums = [energy[..., start:stop].sum(-1) for start, stop in bands]
    return torch.stack(sums, dim=-1) if sums else energy.new_zeros(*energy.shape[:-1], 0)
