"""Decay: how fast a spectrum falls with complexity, and whether all parameters share one spectrum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_cx.functional.complexity.basis import EXACT_TOLERANCE, level_index, mean_by_level, sum_by_level
from lightning_cx.functional.inputs import as_tensor

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
    """Fit a slope by the median over all pairs of points, which resists up to 29% outliers.

    Args:
        x: ``[n]`` distinct positions.
        y: ``[n]`` values.

    Returns:
        ``[]`` float64 in the unit of y over that of x; nan for fewer than 2 points or if any is not finite.

    References:
        Sen 1968, "Estimates of the regression coefficient based on Kendall's tau".

    Example:
        >>> float(theil_sen([0, 1, 2, 3, 4], [0, 2, 4, 600, 8]))
        2.0
    """
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
    """Measure whether all parameters pull at the same complexities: 1 if their gradients share one spectrum.

    The Bhattacharyya cosine ``sum_l sqrt(q_lp m_l)`` of the spectrum q of each parameter, scaled to sum 1, with the
    mean spectrum m, averaged over the parameters. Both averages weight a parameter by its energy.

    Args:
        spectra: ``[L, P]`` non-negative energies, one column of level energies per parameter, any dtype.

    Returns:
        ``[]`` float64 in ``(0, 1]``: ``r^-1/2`` for r groups of equal energy on disjoint levels. Columns without
        energy do not count; nan if no column has any, or an energy is negative or not finite.

    Raises:
        ValueError: If the spectra are not a matrix.

    References:
        THEORY section 3, condition (a); Bhattacharyya 1943, "On a measure of divergence between two statistical
        populations".

    Example:
        >>> round(float(decay_similarity(torch.eye(4))), 9), round(float(decay_similarity(torch.ones(4, 3))), 9)
        (0.5, 1.0)
    """
    return similarity_of_sums(*decay_sums(spectra))


def decay_sums(spectra: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce the spectra of some parameters to what `similarity_of_sums` needs; add the sums of several chunks.

    With ``t_p`` the energy of column p: ``E_l = sum_p s_lp`` and ``A_l = sum_p sqrt(t_p s_lp)``. The mean spectrum
    is a factor outside the sum over parameters, so that one pass is enough.

    Args:
        spectra: ``[L, P]`` non-negative energies, one column per parameter.

    Returns:
        ``([L], [L])`` float64: E and A, in the unit of the energies. NaN for a negative energy.

    Raises:
        ValueError: If the spectra are not a matrix.

    Example:
        >>> first, second = decay_sums(torch.eye(4)[:, :1]), decay_sums(torch.eye(4)[:, 1:])
        >>> float(similarity_of_sums(first[0] + second[0], first[1] + second[1]))
        0.5
    """
    spectra = as_tensor(spectra)
    if spectra.ndim != 2:
        raise ValueError(f"spectra form a matrix of levels and parameters [L, P], got shape {list(spectra.shape)}.")
    roots = spectra.detach().double().sqrt()  # NaN where negative
    energy = roots.square()
    return energy.sum(1), roots @ energy.sum(0).sqrt()


def similarity_of_sums(energy: Tensor, amplitude: Tensor) -> Tensor:
    """Compute `decay_similarity` from sums over parameters: ``sum_l sqrt(E_l / T) A_l / T``, ``T = sum E_l``.

    Args:
        energy: ``[L]`` E of `decay_sums`, added over all chunks.
        amplitude: ``[L]`` A, added over all chunks.

    Returns:
        ``[]`` float64 in ``(0, 1]``; nan without energy or if anything is not finite.

    Example:
        >>> float(similarity_of_sums(torch.tensor([2., 2.]), torch.tensor([2., 2.]))).__round__(9)
        0.707106781
    """
    energy, amplitude = as_tensor(energy).double(), as_tensor(amplitude).double()
    total = energy.sum()
    similarity = ((energy / total).sqrt() * (amplitude / total)).sum()
    return torch.where(total > 0, similarity, torch.nan).clamp_max(1.0)  # beyond 1 by rounding only
