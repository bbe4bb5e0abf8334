"""Spectra: how energy is spread over complexity, where its median lies, and how fast it falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_cx.functional.complexity.basis import (
    EXACT_TOLERANCE,
    Basis,
    band_energies,
    level_index,
    mean_by_level,
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
    """Split a spectrum at its median: weight 1 below the cell of the median, the crossed fraction in it, 0 above."""
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


MIN_BINS = 3
"""Two bins draw a line whatever the spectrum."""


def decay_exponent(energy: Tensor, complexity: Tensor, tol: float = EXACT_TOLERANCE) -> Tensor:
    """Fit how fast a spectrum falls: p of ``e ~ kappa^-p``, above 0 if simple functions hold more than their share.

    Equal complexities are merged into levels, and levels of positive complexity into at most 12 bins of equal width
    in ``log kappa`` that hold at least 8 basis functions each. The exponent is the p for which the mean of
    ``e kappa^p`` over the basis functions of a bin has no trend: the Theil-Sen slope of its logarithm is 0. Taking p
    out before averaging makes wide bins exact on a power law; a median of slopes lets a few odd bins pass.

    Args:
        energy: ``[L0]`` non-negative energies per basis function, any dtype, at any scale.
        complexity: ``[L0]``, ascending. Functions of complexity 0 or below (the constant) have no logarithm and are
            left out.
        tol: Relative gap below which two complexities are one level; ``basis.tolerance`` for graph bases.

    Returns:
        ``[]`` float64 without a unit: 0 for a flat spectrum, negative for one that grows. nan with fewer than 3 bins
        that hold energy (24 basis functions can be too few), or if an energy is negative or not finite. A trend only:
        nothing here asks whether the spectrum is a power law at all.

    Raises:
        ValueError: If energies and complexities are not two vectors of one length, or the complexities not ascending.

    References:
        THEORY section 3, condition (a); Sen 1968, "Estimates of the regression coefficient based on Kendall's tau".

    Example:
        >>> frequency = torch.arange(100.)
        >>> round(float(decay_exponent(1 / (1e-9 + frequency**3), frequency)), 6)
        3.0
    """
    energy, complexity = as_tensor(energy).detach().double(), as_tensor(complexity).double()
    if energy.ndim != 1 or energy.shape != complexity.shape:
        raise ValueError(
            "a spectrum is one energy [L0] and one complexity [L0] per basis function, got shapes "
            f"{list(energy.shape)} and {list(complexity.shape)}."
        )
    unknown = energy.new_full((), torch.nan)
    has_logarithm = complexity > tol * complexity.abs().amax() if complexity.numel() else complexity > 0
    index = level_index(complexity, tol)[has_logarithm]
    if index.numel() == 0 or not bool((energy.isfinite() & (energy >= 0)).all()):
        return unknown
    energy, position, count = _levels(energy[has_logarithm], complexity[has_logarithm], index - index[0])
    sizes = _bin_sizes(position, count)
    bins = [i for i, held in enumerate(energy.split(sizes)) if bool(held.sum() > 0)]
    if len(bins) < MIN_BINS:
        return unknown
    log_energy, position, count = (
        # A level that only pads has no energy, and no weight.
        pad_sequence([values.split(sizes)[i] for i in bins], batch_first=True, padding_value=padding)
        for values, padding in ((energy.log(), -torch.inf), (position, 0.0), (count, 0.0))
    )
    return _exponent_without_trend(log_energy, position, count).to(unknown.device)


def theil_sen(x: Tensor, y: Tensor) -> Tensor:
    """Fit a slope by the median over all pairs of points, which resists 29% outliers (Sen 1968); nan if not finite."""
    x, y = as_tensor(x).double(), as_tensor(y).double()
    first, second = torch.triu_indices(x.numel(), x.numel(), 1, device=x.device)
    slopes = ((y[second] - y[first]) / (x[second] - x[first])).sort().values
    if slopes.numel() == 0 or not bool(slopes.isfinite().all()):
        return slopes.new_full((), torch.nan)
    return (slopes[(slopes.numel() - 1) // 2] + slopes[slopes.numel() // 2]) / 2


def _levels(energy: Tensor, complexity: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return energy, log complexity and number of basis functions of each level, on the CPU: they are few."""
    levels = int(index[-1]) + 1
    energy = energy / energy.amax().clamp_min(torch.finfo(torch.float64).tiny)  # sums of 1e308 overflow
    count = sum_by_level(torch.ones_like(energy), index, levels)
    position = mean_by_level(complexity, index, levels).log()
    return sum_by_level(energy, index, levels).cpu(), (position - position.mean()).cpu(), count.cpu()


BINS = 12
"""Bins of equal width in log complexity: three quarters of an octave each on 512 frequencies."""

MIN_PER_BIN = 8
"""Basis functions that a bin holds at least.

The logarithm of a mean of m squared Gaussians lies ``1 / m`` too low and scatters by ``sqrt(2 / m)``. On 511 of them
that fall as ``k^-1``, the root mean square error of the exponent was .13 with at least 1 per bin and .09 with 8, in
25 draws.
"""


def _bin_sizes(position: Tensor, count: Tensor) -> list[int]:
    """Divide levels into bins of equal width; from below, each takes in the next until it holds enough functions."""
    edges = torch.linspace(float(position[0]), float(position[-1]), BINS + 1, dtype=position.dtype)
    bin_of = torch.bucketize(position, edges[1:-1])
    sizes, levels, functions = [], 0, 0.0
    for i in range(BINS):
        levels += int((bin_of == i).sum())
        functions += float(count[bin_of == i].sum())
        if functions >= MIN_PER_BIN:
            sizes.append(levels)
            levels, functions = 0, 0.0
    if not sizes:
        return [levels]
    return [*sizes[:-1], sizes[-1] + levels]


def _exponent_without_trend(log_energy: Tensor, position: Tensor, count: Tensor) -> Tensor:
    """Bisect for the p that takes the trend out; every slope between two bins grows with p, so their median does."""
    log_count = count.sum(1).log()
    centers = (position * count).sum(1) / count.sum(1)

    def trend(p: float) -> float:
        return float(theil_sen(centers, torch.logsumexp(log_energy + p * position, dim=1) - log_count))

    reach = 1.0
    while trend(-reach) > 0 or trend(reach) < 0:
        reach *= 2
    low, high = -reach, reach
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if trend(middle) > 0 else (middle, high)
    return torch.tensor((low + high) / 2, dtype=torch.float64)


def decay_similarity(spectra: Tensor) -> Tensor:
    """Measure whether all parameters pull at the same complexities: 1 if their spectra ``[L, P]`` are one.

    The Bhattacharyya cosine ``sum_l sqrt(q_lp m_l)`` of the spectrum q of each parameter, scaled to sum 1, with the
    mean spectrum m, averaged over the parameters, each weighted by its energy (THEORY section 3, condition (a)).
    ``r^-1/2`` for r groups of equal energy on disjoint levels; nan without energy, or if one is negative or not finite.
    """
    return similarity_of_sums(*decay_sums(spectra))


def decay_sums(spectra: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce some columns of `decay_similarity` to sums ``([L], [L])``, to be added to those of the other columns.

    With ``t_p`` the energy of column p: ``E_l = sum_p s_lp`` and ``A_l = sum_p sqrt(t_p s_lp)``. The mean spectrum is a
    factor outside the sum over parameters, so that one pass is enough.
    """
    spectra = as_tensor(spectra)
    if spectra.ndim != 2:
        raise ValueError(f"spectra form a matrix of levels and parameters [L, P], got shape {list(spectra.shape)}.")
    roots = spectra.detach().double().sqrt()  # NaN where negative
    energy = roots.square()
    return energy.sum(1), roots @ energy.sum(0).sqrt()


def similarity_of_sums(energy: Tensor, amplitude: Tensor) -> Tensor:
    """Compute `decay_similarity` from the sums of all columns: ``sum_l sqrt(E_l / T) A_l / T``, ``T = sum E_l``."""
    energy, amplitude = as_tensor(energy).double(), as_tensor(amplitude).double()
    total = energy.sum()
    similarity = ((energy / total).sqrt() * (amplitude / total)).sum()
    return torch.where(total > 0, similarity, torch.nan).clamp_max(1.0)  # beyond 1 by rounding only
