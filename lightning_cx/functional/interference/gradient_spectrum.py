"""Gradient modes: which functions of the examples a step can move, how strongly, and how complex they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis, sum_by_level
from lightning_cx.functional.complexity.spectrum import Axis, interpolate_at, low_weights, median_index
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import participation_ratio, principal_modes


@dataclass(frozen=True, eq=False)
class GradientModes:
    """The complexity of the gradient's modes, strongest first; every tensor is float64.

    Positions are shares of the index range of the levels: 0 the simplest level, 1 the most complex.

    Attributes:
        eigenvalues: ``[r]`` descending, of the centred Gram matrix: squared singular values of the gradients.
        medians: ``[r]`` in ``[0, 1]``, the position of each mode's median complexity.
        whole_median: ``[]`` in ``[0, 1]``, the position of the whole gradient's median complexity.
        whole_median_complexity: ``[]`` the same in the unit of the basis.
        participation_ratio: ``[]`` number of modes that share the gradient's energy.
        null_median: ``[]`` where `whole_median` lies when examples are paired with gradients at random, near .5.
        null_sd: ``[]`` its standard deviation then: `whole_median` means something a few of these away.
    """

    eigenvalues: Tensor
    medians: Tensor
    whole_median: Tensor
    whole_median_complexity: Tensor
    participation_ratio: Tensor
    null_median: Tensor
    null_sd: Tensor

    def __str__(self) -> str:
        if self.eigenvalues.numel() == 0:
            return "gradient spectrum unknown: the gradients do not differ between examples, or are not finite"
        return (
            f"gradient median at {self.whole_median:.3f} of the complexity range "
            f"(chance {self.null_median:.3f} +- {self.null_sd:.3f}); "
            f"{self.participation_ratio:.1f} of {self.eigenvalues.numel()} modes share the energy"
        )


def gradient_spectrum(gram: Tensor, basis: Basis) -> GradientModes:
    """Measure which functions of the examples a gradient changes, simple or complex, mode by mode.

    The Gram matrix is centred, ``H K H`` with ``H = I - 11^T / N``, since the mean gradient would put a constant
    mode first and fake low complexity; a level of the basis that is nothing but the constant is left out of the
    axis accordingly. Of ``H K H = U diag(lambda) U^T`` the modes with ``lambda_j > 1e-8 lambda_1`` are kept,
    and above the rounding ``N eps max |K|`` of the dtype that K came in. Mode j has the level energies ``e_lj`` of
    ``u_j``, the whole gradient ``g_l = sum_j lambda_j e_lj``; positions are median indices
    divided by the number of levels less one, and clamped to [0, 1].

    The null is exact where it can be: with w the low weights of chance, ``T = tr(K Phi diag(w - 1/2) Phi^T)`` is
    zero at the median, and its variance over all N! pairings has a closed form; one over the slope of the
    cumulative energy turns that into a standard deviation of the position.

    Args:
        gram: ``[N, N]`` inner products of per-example gradients, any float dtype.
        basis: Basis on the same N examples in the same order.

    Returns:
        GradientModes on the device of the Gram matrix. Gradients that do not differ between examples, or are
        not finite, have no modes, and nan for all but ``null_median``; so have positions on fewer than 2 levels.
        ``null_sd`` is nan for fewer than 4 examples.

    Raises:
        ValueError: If the basis does not live on N examples.

    References:
        Ishii (seed 000), part 1, and THEORY section 3; Kazi-Aoual et al. 1995, "Refined approximations to
        permutation tests for multivariate inference", for the variance.

    Example:
        >>> from lightning_cx.functional import fourier_basis
        >>> basis = fourier_basis(16)
        >>> slow_wave = basis.vectors[:, 1]
        >>> print(gradient_spectrum(slow_wave[:, None] * slow_wave, basis))
        gradient median at 0.000 of the complexity range (chance 0.464 +- 0.183); 1.0 of 1 modes share the energy
    """
    gram = as_tensor(gram)
    n = basis.vectors.shape[0]
    if gram.shape != (n, n):
        raise ValueError(f"the basis lives on {n} examples, but the Gram matrix has shape {list(gram.shape)}.")
    axis = Axis.without_constant(basis)
    eigenvalues, modes = principal_modes(gram.detach(), n)
    energies = axis.energies(modes)
    whole = median_index(eigenvalues @ energies)
    null_median, null_sd = _chance(eigenvalues, modes, axis)
    return GradientModes(
        eigenvalues=eigenvalues,
        medians=axis.position(median_index(energies)),
        whole_median=axis.position(whole),
        whole_median_complexity=interpolate_at(axis.complexity, whole),
        participation_ratio=participation_ratio(eigenvalues),
        null_median=null_median,
        null_sd=null_sd,
    )


def _chance(eigenvalues: Tensor, modes: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Return mean position and standard deviation over random pairings of examples with gradients."""
    n = modes.shape[0]
    centred = axis.vectors - axis.vectors.mean(0)
    per_level = sum_by_level(centred.square().sum(0), axis.level_of, axis.complexity.numel())
    index = median_index(per_level)
    weights = low_weights(per_level)[axis.level_of] - 0.5
    last = axis.complexity.numel() - 1
    if last < 1 or eigenvalues.numel() == 0:
        return axis.position(index), torch.full_like(index, torch.nan)
    split = (centred * weights) @ centred.T
    variance = _pairing_variance((modes * (eigenvalues / eigenvalues.sum())) @ modes.T, split)
    # The share of the gradient's energy that chance puts on one unit of index around the median.
    slope = interpolate_at(per_level, index.round()) / (n - 1)
    return axis.position(index), variance.sqrt() / (slope * last)


def _pairing_variance(a: Tensor, b: Tensor) -> Tensor:
    """Compute the variance of ``tr(P a P^T b)`` over permutations P, for symmetric a and b whose rows sum to zero.

    Kazi-Aoual et al. 1995, multiplied out: a part from the spread of the eigenvalues, and a correction for
    diagonals that are more or less even than a random rotation would make them.
    """
    n = a.shape[0]
    if n < 4:
        return torch.full_like(a.sum(), torch.nan)

    def spread(matrix: Tensor) -> Tensor:
        return matrix.square().sum() - matrix.trace() ** 2 / (n - 1)

    def unevenness(matrix: Tensor) -> Tensor:
        rotated = (n - 1) * (matrix.trace() ** 2 + 2 * matrix.square().sum())
        return n * (n + 1) * matrix.diagonal().square().sum() - rotated

    rotation = 2 * spread(a) * spread(b) / ((n + 1) * (n - 2))
    diagonal = unevenness(a) * unevenness(b) / ((n - 3) * (n - 2) * (n - 1) * n * (n + 1))
    return (rotation + diagonal).clamp_min(0.0)  # rounding, where every pairing gives the same
