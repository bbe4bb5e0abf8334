"""Spectra: how the energy of a function is spread over complexity, and where its median lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import (
    EXACT_TOLERANCE,
    Basis,
    band_energies,
    merge_levels,
    octave_bands,
    sum_by_level,
)
from lightning_cx.functional.inputs import CONSTANT_FEATURE, as_tensor


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
    return (basis.vectors.T @ basis.rows(values)).square().sum(1)


def median_complexity(energy: Tensor, complexity: Tensor, tol: float = EXACT_TOLERANCE) -> Tensor:
    """Compute the complexity below which half of a function's energy lies.

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


BORDER = 1e-12
"""A cumulative share this close to one half counts as one half, so that rounding cannot choose the side."""


def median_index(energy: Tensor) -> Tensor:
    """Compute the position on the axis of levels that has as much energy below as above.

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


def median_position(basis: Basis, values: Tensor) -> Tensor:
    """Measure whether a function of the examples is simple or rough: 0 the simplest, .5 what noise has.

    The mean over the examples is taken off, a level of the basis that is nothing but the constant is left out, and
    the median index of the energies of the L remaining levels (`median_index`) is divided by ``L - 1``. It is
    clamped to [0, 1], since half a cell of the first and the last level lies outside. A share of the index range can
    be compared between sets of examples, where complexities of a graph cannot.

    Levels of many functions weigh no more than others, and move the place of noise. All differences between exact
    copies of examples share one level of a graph: with a tenth of the examples copied noise lies at .55, with half at
    .75.

    Args:
        basis: Basis on n examples.
        values: ``[n]`` or ``[n, ...]``, one row per example in the order of the basis; outputs add up. Any real
            dtype, computed in float64.

    Returns:
        ``[]`` float64 in ``[0, 1]``. nan where no output varies between the examples (beyond rounding), a value is
        not finite, or fewer than 2 levels remain.

    Raises:
        ValueError: If the number of rows is not that of the basis.

    References:
        THEORY sections 2 and 4: white noise on a graph has .5 +- .03.

    Example:
        >>> from lightning_cx.functional import fourier_basis
        >>> basis = fourier_basis(9)  # levels: constant, 1, 2, 3 and 4 waves
        >>> waves = basis.vectors[:, 3]  # 2 of them: the second of the four levels that vary
        >>> round(float(median_position(basis, 5 + waves)), 6)
        0.333333
    """
    axis = Axis.without_constant(basis)
    return axis.position(median_index(axis.energies(_deviations(basis.rows(values)))[0]))


def octave_energies(basis: Basis, values: Tensor) -> Tensor:
    """Measure how much of a residual is left in each octave of complexity.

    The energies ``sum_c <phi_k, f_c>^2`` of equally complex basis functions are merged into levels, the levels
    gathered in octaves of their index ([0, 1), [1, 2), [2, 4), ...), and divided by the number of examples.

    Args:
        basis: Basis on n examples.
        values: ``[n]`` or ``[n, ...]``, one row per example in the order of the basis; outputs add up.

    Returns:
        ``[bands]`` float64, in the square of the unit of the values, per example. Band 0 is the mean (on a graph of
        several components: the means of the components). On a complete basis the bands add up to the mean over the
        examples of ``|f|^2``. A NaN or infinite value makes every band nan.

    Raises:
        ValueError: If the number of rows is not that of the basis.

    References:
        THEORY section 4.

    Example:
        >>> from lightning_cx.functional import cosine_basis
        >>> basis = cosine_basis(4)
        >>> octave_energies(basis, 3 + basis.vectors[:, 2]).round(decimals=9).tolist()
        [9.0, 0.0, 0.25]
    """
    energy, _ = merge_levels(energy_spectrum(basis, values), basis.complexity, basis.tolerance)
    # An infinite value makes some coefficients infinite and others nan: neither is an energy.
    energy = torch.where(energy.isfinite().all(), energy, torch.nan)
    return band_energies(energy, octave_bands(energy.numel())) / basis.vectors.shape[0]


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


CONSTANT_ENERGY = 1 - 1e-9
"""A basis function with this share of its energy in the constant is the constant."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Levels of complexity, with or without the constant.

    Attributes:
        vectors: ``[n, K]`` float64, the basis functions.
        level_of: ``[K]`` int64, the level of each.
        complexity: ``[L]`` float64, the complexity of each level.
    """

    vectors: Tensor
    level_of: Tensor
    complexity: Tensor

    @classmethod
    def of(cls, basis: Basis) -> Axis:
        """All levels of a basis."""
        return cls(basis.vectors, basis.level_of, basis.level_complexity)

    @classmethod
    def without_constant(cls, basis: Basis) -> Axis:
        """Return the levels without the first if that is the constant; other components of a graph stay with it."""
        in_first = int((basis.level_of == 0).sum())
        n = basis.vectors.shape[0]
        if in_first != 1 or float(basis.vectors[:, 0].sum() ** 2) <= CONSTANT_ENERGY * n:
            return cls.of(basis)
        return cls(basis.vectors[:, 1:], basis.level_of[1:] - 1, basis.level_complexity[1:])

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return self.complexity.numel()

    def energies(self, functions: Tensor) -> Tensor:
        """Return level energies ``[r, L]`` of functions ``[n * C, r]``, rows of an example together; outputs add up."""
        (n, K), (rows, count) = self.vectors.shape, functions.shape
        coefficients = (self.vectors.T @ functions.reshape(n, rows // n * count)).reshape(K, rows // n, count)
        return sum_by_level(coefficients.square().sum(1).T, self.level_of, self.n_levels)

    def functions_of(self, level_energies: Tensor) -> Tensor:
        """Give each function ``[..., K]`` of a level an equal part of its energy ``[..., L]``."""
        size = torch.bincount(self.level_of, minlength=self.n_levels)
        return (level_energies / size)[..., self.level_of]

    def position(self, index: Tensor) -> Tensor:
        """Turn a median index into a share of the index range, 0 the simplest level and 1 the most complex."""
        last = self.n_levels - 1
        return index.clamp(0, last) / last if last > 0 else torch.full_like(index, torch.nan)


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


def _deviations(rows: Tensor) -> Tensor:
    """Centre ``[n, C]`` values of any size to ``[n * C, 1]``, outputs that vary by rounding only to exact zeros."""
    rows = rows / rows.abs().max()  # squares of 1e200 would overflow, those of 1e-200 vanish; 0 / 0 is nan as it must
    centred = rows - rows.mean(0)
    is_constant = centred.square().mean(0).sqrt() <= CONSTANT_FEATURE * rows.abs().amax(0)
    return torch.where(is_constant, 0.0, centred).reshape(-1, 1)
