"""Interference proper: what the sum over parameters makes of a gradient, against the parameters one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis, sum_by_level
from lightning_cx.functional.complexity.spectrum import Axis, decay_sums, low_weights, similarity_of_sums
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import centred, principal_modes

MIN_EXPRESSED = 0.5
"""A mode of which the basis expresses less than this share has no complexity that it could tell.

With the first 8 of 64 cosines, modes of which a tail alone is expressed drew the rank correlation of a system in
perfect order down to .19.
"""


@dataclass(frozen=True, eq=False)
class GradientSystem:
    """Gradients of n examples (and C outputs) with their modes and level energies; every tensor is float64.

    All is divided by `unit`, a power of 2 that brings the largest entry near 1: squares of gradients of 1e-160 would
    vanish. `gram` ``[n * C, n * C]`` keeps its dtype; `modes` ``[n * C, r]`` and `energies` ``[r, L]`` go with
    `eigenvalues` ``[r]``, descending. `expressed` is the share of the energy that the basis expresses, `unknown` why
    there are no modes.
    """

    unit: float
    gram: Tensor
    gradients: Tensor | None
    axis: Axis
    eigenvalues: Tensor
    modes: Tensor
    energies: Tensor
    expressed: Tensor
    unknown: str

    @classmethod
    def of(cls, gram: Tensor | None, basis: Basis, gradients: Tensor | None, center: bool) -> GradientSystem:
        """Find the modes, and keep those that are more than rounding and that the basis can express."""
        n = basis.vectors.shape[0]
        unit, gram, gradients = _scaled(*_checked(gram, n, gradients))
        axis = Axis.without_constant(basis) if center else Axis.of(basis)
        eigenvalues, modes = principal_modes(gram, n, center)
        energies = axis.energies(modes)
        inside = energies.sum(1)
        kept = (inside > MIN_EXPRESSED) & (axis.n_levels > 1)
        if gradients is not None and center:
            gradients = centred(gradients, n)
        return cls(
            unit,
            gram,
            gradients,
            axis,
            eigenvalues[kept],
            modes[:, kept],
            energies[kept],
            expressed=(eigenvalues @ inside) / eigenvalues.sum(),
            unknown="" if bool(kept.any()) else _reason(gram, eigenvalues, axis),
        )

    @property
    def spectrum(self) -> Tensor:
        """``[L]`` share of the energy of the modes at each level."""
        energy = self.eigenvalues @ self.energies
        return energy / energy.sum()

    def between_parameters(self, q: int) -> tuple[Coherence | None, Coherence | None, Tensor | None]:
        """Return the coherence of the strongest and weakest modes, and how alike the parameters' spectra are."""
        if self.gradients is None:
            return None, None, None
        strongest = coherence(self.eigenvalues, self.modes, self.gradients, self.axis, q)
        weakest = coherence(self.eigenvalues, self.modes, self.gradients, self.axis, q, trailing=True)
        return strongest, weakest, gradient_similarity(self.gradients, self.axis)


def _scaled(gram: Tensor | None, gradients: Tensor | None) -> tuple[float, Tensor, Tensor | None]:
    """Divide by a power of 2, which rounds nothing."""
    if gram is None:
        assert gradients is not None
        unit = 2.0 ** _exponent(gradients)
        gradients = gradients.double() / unit
        return unit, gradients @ gradients.T, gradients
    gram = gram if gram.is_floating_point() else gram.double()
    unit = 2.0 ** (_exponent(gram) // 2)
    return unit, gram / unit / unit, None if gradients is None else gradients.double() / unit


def _exponent(values: Tensor) -> int:
    """Return the power of 2 next to the largest entry; 0 if there is none or it is not finite."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return math.frexp(largest)[1] if 0 < largest < math.inf else 0


def _checked(gram: Tensor | None, n: int, gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if gram is None and gradients is None:
        raise ValueError("an interference profile needs a Gram matrix or gradients, got neither.")
    if gradients is not None:
        gradients = as_tensor(gradients).detach()
        if gradients.ndim != 2 or gradients.shape[0] == 0 or gradients.shape[0] % n:
            raise ValueError(
                f"the basis lives on {n} examples, but the gradients have shape {list(gradients.shape)}: pass one row "
                "of parameters for each example (and output)."
            )
    if gram is not None:
        gram = as_tensor(gram).detach()
        rows = gram.shape[0] if gram.ndim else 0
        if gram.ndim != 2 or gram.shape[1] != rows or rows == 0 or rows % n:
            raise ValueError(f"the basis lives on {n} examples, but the Gram matrix has shape {list(gram.shape)}.")
        if gradients is not None and len(gradients) != rows:
            raise ValueError(f"the Gram matrix has {rows} rows, but the gradients have {len(gradients)}.")
    if any(values is not None and values.is_complex() for values in (gram, gradients)):
        raise ValueError("complex gradients have no spectrum of real energies: pass torch.view_as_real of them.")
    return gram, gradients


def _reason(gram: Tensor, eigenvalues: Tensor, axis: Axis) -> str:
    if not bool(gram.isfinite().all()):
        return "the gradients are not finite"
    if eigenvalues.numel() == 0:
        return "the gradients do not differ between examples"
    if axis.n_levels < 2:
        return "the basis gives no order: all of its functions are equally complex"
    return "the basis expresses less than half of every mode of the gradients"


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
    """Compare coherent with incoherent energy in the q strongest modes, or in the weakest ones, weakest first.

    For mode j the gradient is restricted to ``span{u_j .. u_r}`` (to ``span{u_1 .. u_j}`` for the weakest ones) and
    split at its median. With ``A = Phi^T G`` restricted and ``v = G^T u_j / sqrt(lambda_j)``, the coherent energy at
    level l is ``|A_l v|^2 = lambda_j e_lj``, the incoherent one its diagonal ``sum_p A_lp^2 v_p^2``.
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


def gradient_similarity(gradients: Tensor, axis: Axis) -> Tensor:
    """Compute `decay_similarity` of the level energies of gradients ``[n * C, P]``, a block of parameters at a time."""
    energy = amplitude = torch.zeros(axis.n_levels, dtype=torch.float64, device=gradients.device)
    for block in gradients.split(_block_width(axis, gradients), dim=1):
        sums = decay_sums(axis.energies(block.double()).T)
        energy, amplitude = energy + sums[0], amplitude + sums[1]
    return similarity_of_sums(energy, amplitude)


def _restricted_spectra(eigenvalues: Tensor, level_energies: Tensor, chosen: list[int], trailing: bool) -> Tensor:
    """Return the ``[q, L]`` spectrum of the gradient without the modes before (after) each chosen one."""
    spectra = eigenvalues[:, None] * level_energies
    summed = spectra.cumsum(0) if trailing else spectra.flip(0).cumsum(0).flip(0)
    return summed[chosen]


def _incoherent(eigenvalues: Tensor, modes: Tensor, gradients: Tensor, axis: Axis, chosen: list[int]) -> Tensor:
    """Sum the ``[q, L]`` energies of the single parameters' waves."""
    n, K = axis.vectors.shape
    (rows, r), outputs = modes.shape, modes.shape[0] // n
    # The waves of a mode are Phi^T G restricted to the modes from it on, an [K C, P] matrix for each of q modes. One
    # sweep makes them all: begin with the sum over every mode, u_j (u_j^T G), and take off mode j by a rank-one update
    # before the next. Blocks of parameters keep the matrix in cache. Phi^T u_j, one column for each mode: [K * C, r].
    coefficients = (axis.vectors.T @ modes.reshape(n, rows // n * r)).reshape(K * outputs, r)
    result = modes.new_zeros(len(chosen), K * outputs)
    for block in gradients.split(_block_width(axis, gradients), dim=1):
        moves = modes.T @ block.to(modes)  # u_j^T G: [r, width]
        waves = coefficients @ moves
        for row, j in enumerate(chosen):
            result[row] += waves.square() @ (moves[j].square() / eigenvalues[j])
            waves.addr_(coefficients[:, j], moves[j], alpha=-1)  # the next restriction leaves mode j out
    return sum_by_level(result.reshape(len(chosen), K, outputs).sum(2), axis.level_of, axis.n_levels)


BLOCK_BYTES = 1 << 24
"""Parameters are taken in blocks whose coefficients fill so many bytes: they stay in cache, and memory stays small."""


def _block_width(axis: Axis, gradients: Tensor) -> int:
    n, K = axis.vectors.shape
    return max(1, BLOCK_BYTES // (8 * max(K, 1) * (len(gradients) // n)))
