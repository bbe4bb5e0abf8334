"""One function of the examples, say a residual, on the axis of complexity: its middle, and its energy by octave."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.complexity.axis import Axis
from lightning_cx.functional.complexity.basis import Basis
from lightning_cx.functional.complexity.features import CONSTANT_FEATURE
from lightning_cx.functional.complexity.levels import band_energies, merge_levels, octave_bands
from lightning_cx.functional.complexity.spectrum import energy_spectrum, median_index
from lightning_cx.functional.inputs import as_tensor


def median_position(basis: Basis, values: Tensor) -> Tensor:
    """Say whether a function of the examples is simple or as rough as noise: 0 the simplest, .5 what noise has.

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
    values = as_tensor(values)
    n = basis.vectors.shape[0]
    if values.ndim == 0 or values.shape[0] != n:
        raise ValueError(f"the basis lives on {n} examples, but the values have shape {list(values.shape)}.")
    axis = Axis.without_constant(basis)
    return axis.position(median_index(axis.energies(_deviations(values.detach()))[0]))


def octave_energies(basis: Basis, values: Tensor) -> Tensor:
    """Say how much of a residual is left among simple functions of the examples, and how much among complex ones.

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


def _deviations(values: Tensor) -> Tensor:
    """Centre ``[n, ...]`` values of any size to ``[n * C, 1]``, outputs that vary by rounding only to exact zeros."""
    rows = values.double().reshape(values.shape[0], -1)
    rows = rows / rows.abs().max()  # squares of 1e200 would overflow, those of 1e-200 vanish; 0 / 0 is nan as it must
    centred = rows - rows.mean(0)
    is_constant = centred.square().mean(0).sqrt() <= CONSTANT_FEATURE * rows.abs().amax(0)
    return torch.where(is_constant, 0.0, centred).reshape(-1, 1)
