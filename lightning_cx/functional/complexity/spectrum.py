"""Spectra: how the energy of a function is spread over complexity, and where its middle lies."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis
from lightning_cx.functional.complexity.levels import EXACT_TOLERANCE, merge_levels
from lightning_cx.functional.inputs import as_tensor

BORDER = 1e-12
"""A cumulative share this close to one half counts as one half, so that rounding cannot choose the side."""


def energy_spectrum(basis: Basis, values: Tensor) -> Tensor:
    """Measure how much of a function lies in each basis function.

    ``e_k = sum_c <phi_k, f_c>^2`` (Parseval: on a complete basis the energies add up to ``sum f^2``).

    Args:
        basis: Basis on n examples.
        values: ``[n]`` or ``[n, C]``, one row per example; outputs add up. Computed in float64.

    Returns:
        ``[K]`` float64, in the square of the unit of the values. NaN in, NaN out.

    Raises:
        ValueError: If the number of rows is not that of the basis.

    Example:
        >>> from lightning_cx.functional import cosine_basis
        >>> energy_spectrum(cosine_basis(3), torch.ones(3)).round(decimals=9).tolist()
        [3.0, 0.0, 0.0]
    """
    values = as_tensor(values)
    n = basis.vectors.shape[0]
    if values.ndim == 0 or values.shape[0] != n:
        raise ValueError(f"the basis lives on {n} examples, but the values have shape {list(values.shape)}.")
    values = values.detach().double().reshape(n, -1)
    return (basis.vectors.T @ values).square().sum(1)


def median_complexity(energy: Tensor, complexity: Tensor, tol: float = EXACT_TOLERANCE) -> Tensor:
    """Say how complex a function is, in one number: half of its energy is simpler than this.

    Equal complexities are merged into levels, the continuous median index M of the level energies is found
    (`median_index`), and the complexity is interpolated linearly at M, held constant beyond the first and last
    level.

    Args:
        energy: ``[..., L]`` energies per basis function.
        complexity: ``[L]``, ascending, for example cycles per unit interval.
        tol: Relative gap below which two complexities are one level; ``basis.tolerance`` for graph bases.

    Returns:
        ``[...]`` float64 in the unit of the complexity; nan where there is no energy or it is not finite.

    Raises:
        ValueError: If the complexities are not ascending or their number is not that of the energies.

    References:
        Ishii, low-complexity interference principle of gradients (seed 000), part 1.

    Example:
        >>> energy = torch.tensor([1., 2., 3., 4.])
        >>> round(float(median_complexity(energy, torch.tensor([0., 1., 4., 9.]))), 6)
        4.833333
    """
    energy, complexity = merge_levels(energy, complexity, tol)
    return interpolate_at(complexity, median_index(energy))


def median_index(energy: Tensor) -> Tensor:
    """Find the place on the axis of levels that has as much energy below as above.

    Level k fills the cell ``[k - 1/2, k + 1/2)`` evenly; M halves the area. Where an empty plateau separates two
    halves, M is the middle between the levels that hold energy on its two sides. Nothing is merged here.

    Args:
        energy: ``[..., L]`` non-negative energies per level, any float dtype; rows are independent.

    Returns:
        ``[...]`` float64 in ``[-1/2, L - 1/2]``: 0 would be the first level. Flat energies give ``(L - 1) / 2``.
        nan where the energy is zero, negative in sum, or not finite.

    Example:
        >>> median_index(torch.tensor([[1., 1., 1.], [2., 1., 1.], [0., 0., 0.]])).tolist()
        [1.0, 0.5, nan]
    """
    energy = as_tensor(energy)
    if energy.shape[-1] == 0:
        return energy.new_full(energy.shape[:-1], torch.nan, dtype=torch.float64)
    share, total = _shares(energy)
    cell, crossed, is_border = _median_cell(share)
    levels = torch.arange(energy.shape[-1], device=energy.device)
    holds_more = (levels > cell[..., None]) & (share > BORDER)
    next_level = torch.where(holds_more.any(-1), holds_more.int().argmax(-1), cell + 1)
    index = torch.where(is_border, (cell + next_level) / 2, cell - 0.5 + crossed)
    return torch.where(total > 0, index, torch.nan)


def low_weights(energy: Tensor) -> Tensor:
    """Split a spectrum at its median: the weight of each level on the simple side.

    1 below the median's cell, the crossed fraction within it, 0 above, so that ``sum w e`` is half of ``sum e``.

    Args:
        energy: ``[..., L]`` non-negative energies per level.

    Returns:
        ``[..., L]`` float64 in ``[0, 1]``; nan where the median is nan.

    Example:
        >>> low_weights(torch.tensor([1., 2., 1.])).tolist()
        [1.0, 0.5, 0.0]
    """
    energy = as_tensor(energy)
    if energy.shape[-1] == 0:
        return energy.double()
    share, total = _shares(energy)
    cell, crossed, _ = _median_cell(share)
    levels = torch.arange(energy.shape[-1], device=energy.device)
    weights = (crossed[..., None] + cell[..., None] - levels).clamp(0, 1)
    return torch.where(total[..., None] > 0, weights, torch.nan)


def interpolate_at(table: Tensor, index: Tensor) -> Tensor:
    """Read a table ``[L]`` at real positions ``[...]``: linear between entries, constant beyond, nan at nan."""
    if table.numel() == 0:
        return torch.full_like(index, torch.nan)
    position = index.nan_to_num(0.0).clamp(0, table.numel() - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp_max(table.numel() - 1)
    value = torch.lerp(table[lower], table[upper], position - lower)
    return torch.where(index.isnan(), torch.nan, value)


def _shares(energy: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by the sum, by way of the maximum: a sum of large energies overflows where the median exists."""
    energy = energy.double()
    relative = energy / energy.amax(-1, keepdim=True)
    # A negative maximum would make negative energies look positive; inf / inf and 0 / 0 are nan already.
    total = torch.where(energy.amax(-1) > 0, relative.sum(-1), torch.nan)
    return relative / total[..., None], total


def _median_cell(share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first cell whose cumulative share reaches 1/2, the part of it below, and if 1/2 is its end."""
    cumulative = share.cumsum(-1)
    cell = (cumulative >= 0.5 - BORDER).int().argmax(-1)
    at_cell = cell[..., None]
    reached, inside = cumulative.gather(-1, at_cell)[..., 0], share.gather(-1, at_cell)[..., 0]
    is_border = (reached - 0.5).abs() <= BORDER
    crossed = torch.where(is_border, 1.0, 1 - (reached - 0.5) / inside)
    return cell, crossed.clamp(0, 1), is_border
