"""Interference proper: what the sum over parameters makes of a gradient, against the parameters one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.decay import decay_sums, similarity_of_sums
from lightning_cx.functional.levels import sum_by_level
from lightning_cx.functional.principal import Axis
from lightning_cx.functional.spectrum import low_weights

BLOCK_BYTES = 1 << 24
"""Parameters are taken in blocks whose coefficients fill so many bytes: they stay in cache, and memory stays small."""


@dataclass(frozen=True, eq=False)
class Coherence:
    """What interference between parameters does to single modes; every tensor is ``[q]`` float64.

    A mode's right singular vector v moves every parameter p by v_p, and parameter p then changes the outputs by its
    own wave. *Coherent* is the energy of the sum of the waves; *incoherent* the sum of their energies, as if their
    phases were random. Low and high are the two sides of the median complexity of the gradient in which the mode
    stands.

    Attributes:
        share: Share of the coherent energy that lies on the low side.
        incoherent_share: The same of the incoherent energy.
        gain_low: Coherent over incoherent energy on the low side; above 1 the waves amplify each other there.
        gain_high: The same on the high side.
        gain: The same on both sides together: about the number of parameters that pull together.
    """

    share: Tensor
    incoherent_share: Tensor
    gain_low: Tensor
    gain_high: Tensor
    gain: Tensor

    @property
    def iota(self) -> Tensor:
        """``[q]`` how far interference moves a mode towards low complexity; 0 without interference."""
        return self.share - self.incoherent_share

    @property
    def mean_iota(self) -> Tensor:
        """``[]`` the mean over the modes; nan if there are none."""
        return self.iota.mean() if self.iota.numel() else self.iota.new_full((), torch.nan)


def coherence(
    eigenvalues: Tensor, modes: Tensor, gradients: Tensor, axis: Axis, q: int, trailing: bool = False
) -> Coherence:
    """Compare coherent with incoherent energy in the strongest modes, or in the weakest ones.

    For mode j the gradient is restricted to ``span{u_j .. u_r}`` (to ``span{u_1 .. u_j}`` for the weakest ones) and
    split at its median. With ``A = Phi^T G`` restricted and ``v = G^T u_j / sqrt(lambda_j)``, the coherent energy at
    level l is ``|A_l v|^2 = lambda_j e_lj``, the incoherent one its diagonal ``sum_p A_lp^2 v_p^2``.

    Args:
        eigenvalues: ``[r]`` descending.
        modes: ``[n * C, r]`` orthonormal.
        gradients: ``[n * C, P]``; a block of columns is copied to float64 at a time.
        axis: Levels on the n examples.
        q: Number of modes.
        trailing: Take the q weakest modes, weakest first.

    Returns:
        Coherence of ``min(q, r)`` modes.
    """
    r = eigenvalues.numel()
    chosen = list(range(min(q, r))) if not trailing else list(range(r - 1, max(r - 1 - q, -1), -1))
    level_energies = axis.energies(modes)
    weights = low_weights(_restricted_spectra(eigenvalues, level_energies, chosen, trailing))
    incoherent = _incoherent(eigenvalues, modes, gradients, axis, chosen)
    coherent = eigenvalues[chosen, None] * level_energies[chosen]
    low, high = (weights * coherent).sum(1), ((1 - weights) * coherent).sum(1)
    low_alone, high_alone = (weights * incoherent).sum(1), ((1 - weights) * incoherent).sum(1)
    return Coherence(
        share=low / (low + high),
        incoherent_share=low_alone / (low_alone + high_alone),
        gain_low=low / low_alone,
        gain_high=high / high_alone,
        gain=(low + high) / (low_alone + high_alone),
    )


def _restricted_spectra(eigenvalues: Tensor, level_energies: Tensor, chosen: list[int], trailing: bool) -> Tensor:
    """``[q, L]`` spectrum of the gradient without the modes that come before (after) each chosen one."""
    spectra = eigenvalues[:, None] * level_energies
    summed = spectra.cumsum(0) if trailing else spectra.flip(0).cumsum(0).flip(0)
    return summed[chosen]


def _incoherent(eigenvalues: Tensor, modes: Tensor, gradients: Tensor, axis: Axis, chosen: list[int]) -> Tensor:
    """``[q, L]`` energies of the single parameters' waves, summed."""
    n, K = axis.vectors.shape
    (rows, r), outputs = modes.shape, modes.shape[0] // n
    # Phi^T u_j, one column for each mode: [K * C, r].
    coefficients = (axis.vectors.T @ modes.reshape(n, rows // n * r)).reshape(K * outputs, r)
    result = modes.new_zeros(len(chosen), K * outputs)
    for block in gradients.split(_block_width(axis, gradients), dim=1):
        moves = modes.T @ block.to(modes)  # u_j^T G: [r, width]
        waves = coefficients @ moves
        for row, j in enumerate(chosen):
            result[row] += waves.square() @ (moves[j].square() / eigenvalues[j])
            waves.addr_(coefficients[:, j], moves[j], alpha=-1)  # the next restriction leaves mode j out
    return sum_by_level(result.reshape(len(chosen), K, outputs).sum(2), axis.level_of, axis.n_levels)


def gradient_similarity(gradients: Tensor, axis: Axis) -> Tensor:
    """Say how alike the spectra of the single parameters' gradients are, some parameters at a time.

    Args:
        gradients: ``[n * C, P]``.
        axis: Levels on the n examples.

    Returns:
        ``[]`` float64, `decay_similarity` of the level energies ``[L, P]``.
    """
    energy = amplitude = torch.zeros(axis.n_levels, dtype=torch.float64, device=gradients.device)
    for block in gradients.split(_block_width(axis, gradients), dim=1):
        sums = decay_sums(axis.energies(block.double()).T)
        energy, amplitude = energy + sums[0], amplitude + sums[1]
    return similarity_of_sums(energy, amplitude)


def _block_width(axis: Axis, gradients: Tensor) -> int:
    n, K = axis.vectors.shape
    return max(1, BLOCK_BYTES // (8 * max(K, 1) * (len(gradients) // n)))
