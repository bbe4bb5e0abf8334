"""The interference principle of gradients: do simple functions get the large singular values, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.alignment import cumulative_power, kernel_target_alignment
from lightning_cx.functional.basis import Basis
from lightning_cx.functional.coherence import Coherence, coherence, gradient_similarity
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.kernel import effective_rank, participation_ratio
from lightning_cx.functional.ordering import ordering, permutation_null, shuffled_cii
from lightning_cx.functional.principal import Axis, centred, principal_modes
from lightning_cx.functional.profile import InterferenceProfile
from lightning_cx.functional.spectrum import interpolate_at, median_index

MIN_EXPRESSED = 1e-9
"""Modes with less of their energy than this in the basis have no complexity that it could tell."""


def interference_profile(
    gram: Tensor | None,
    basis: Basis,
    gradients: Tensor | None = None,
    q: int = 20,
    permutations: int = 200,
    center: bool = True,
    seed: int = 0,
    targets: Tensor | None = None,
    shuffles: int = 20,
) -> InterferenceProfile:
    """Say whether the functions that gradients change most are the simple ones, and whether interference makes them so.

    Of the centred Gram matrix ``H K H = U diag(lambda) U^T`` the modes with ``lambda_j > 1e-8 lambda_1`` are kept. Each
    singular function u_j has level energies e_lj and a median complexity m_j. `rank_correlation` is Spearman's of j
    and m_j. With l_j the share of u_j on the low side of the median of what comes after it in the gradient,
    ``sum_{i > j} lambda_i e_i``, CII is the mean of ``a_j = 2 l_j - 1`` over the q strongest modes; with l_j cut at
    the median of what comes before it, DII is the mean of ``d_j = 1 - 2 l_j`` over the q weakest.

    Three controls come with the numbers: the permutation null pairs singular values with singular functions at random
    (``p = (1 + #{null >= CII}) / (1 + permutations)``); shuffled examples say what a meaningless basis gives; and with
    ``gradients`` iota says how much of a mode's low complexity is made by interference between parameters rather than
    by single parameters that are simple or complex by themselves.

    Args:
        gram: ``[n, n]`` inner products of per-example gradients, or ``[n C, n C]`` of a Jacobian with C outputs, the
            outputs of one example together; outputs share the basis and their energies add. None takes it from the
            gradients.
        basis: Basis on the n examples, in the same order.
        gradients: ``[n, P]`` (``[n C, P]``) per-example gradients, whose columns are the parameters that may
            interfere; needed for iota, gains and decay similarity alone. For a large model pass a random subset of
            the columns and the Gram matrix of all: iota is then an estimate over the subset, and gains count the
            columns given. A random projection mixes parameters, and would say how the mixtures interfere.
        q: Number of modes at either end, at most ``r - 1``.
        permutations: Number of random pairings; 0 leaves the null out.
        center: Take the mean gradient and the constant function off. Without, a constant mode fakes the principle.
        seed: Of the permutations and shuffles; no global random numbers are drawn.
        targets: ``[n]`` or ``[n, C]`` what the outputs should become, for alignment and cumulative power.
        shuffles: Number of shuffles of the examples; 0 leaves that control out.

    Returns:
        InterferenceProfile on the device of the Gram matrix. With fewer than 2 modes, or entries that are not finite,
        the numbers that cannot be had are nan; modes that the basis cannot express are left out and `expressed` says
        so.

    Raises:
        ValueError: If neither Gram matrix nor gradients are given, if a shape does not fit the basis, or if ``q``,
            ``permutations`` or ``shuffles`` is out of range.

    References:
        Ishii (seed 000), part 1; THEORY section 3.

    Example:
        >>> from lightning_cx.functional import cosine_basis
        >>> basis = cosine_basis(64)
        >>> waves = torch.randn(64, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> simple_is_strong = basis.vectors @ (waves / (1 + torch.arange(64))[:, None])
        >>> profile = interference_profile(None, basis, gradients=simple_is_strong)
        >>> print(profile)
        interference profile of 63 modes: the principle holds
          strong modes are simple: CII +0.97 (random pairing -0.01 +- 0.13, p = 0.005; examples shuffled -0.01 +- 0.02)
          weak modes are complex: DII +1.00; rank correlation +1.00
          median complexity 1.08, at 0.019 of the range (noise: 0.5)
          decay exponent 1.93; 4.9 modes share the energy (effective rank 9.7)
          by interference: iota +0.39 in the strongest modes, -0.50 in the weakest; likeness of spectra 0.84
    """
    system = _System.of(gram, basis, gradients, center)
    for name, value, least in (("q", q, 1), ("permutations", permutations, 0), ("shuffles", shuffles, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    generator = torch.Generator().manual_seed(seed)
    here = ordering(system.eigenvalues, system.energies, q)
    null, rank_null = permutation_null(system.eigenvalues, system.energies, q, permutations, generator)
    control = shuffled_cii(system.eigenvalues, system.modes, system.axis, q, shuffles, generator)
    spectrum = system.eigenvalues @ system.energies
    axis, index, whole = system.axis, median_index(system.energies), median_index(spectrum)
    leading, trailing, similarity = system.between_parameters(q)
    return InterferenceProfile(
        singular_values=system.eigenvalues.sqrt(),
        spectrum=spectrum,
        axis=axis,
        medians=interpolate_at(axis.complexity, index),
        positions=axis.position(index),
        whole_median=interpolate_at(axis.complexity, whole),
        whole_position=axis.position(whole),
        rank_correlation=here.rank_correlation,
        amplification=here.amplification,
        attenuation=here.attenuation,
        cii=here.cii,
        dii=here.dii,
        p_value=_p_value(here.cii, null),
        rank_correlation_p_value=_p_value(here.rank_correlation, rank_null),
        null_mean=_mean(null),
        null_sd=_sd(null),
        shuffled_cii=_mean(control),
        shuffled_sd=_sd(control),
        expressed=system.expressed,
        decay_similarity=similarity,
        participation_ratio=participation_ratio(system.eigenvalues),
        effective_rank=effective_rank(system.eigenvalues),
        alignment=None if targets is None else kernel_target_alignment(system.gram, as_tensor(targets), center),
        power=None if targets is None else cumulative_power(system.gram, as_tensor(targets), center),
        leading=leading,
        trailing=trailing,
    )


@dataclass(frozen=True, eq=False)
class _System:
    """Gradients of n examples in their principal modes, seen on the levels of a basis."""

    gram: Tensor
    gradients: Tensor | None
    axis: Axis
    eigenvalues: Tensor
    modes: Tensor
    energies: Tensor
    expressed: Tensor

    @classmethod
    def of(cls, gram: Tensor | None, basis: Basis, gradients: Tensor | None, center: bool) -> _System:
        gram, gradients = _checked(gram, basis, gradients)
        n = basis.vectors.shape[0]
        axis = Axis.without_constant(basis) if center else Axis.of(basis)
        eigenvalues, modes = principal_modes(gram, n, center)
        energies = axis.energies(modes)
        inside = energies.sum(1)
        expressed = (eigenvalues @ inside) / eigenvalues.sum()
        kept = inside > MIN_EXPRESSED
        if gradients is not None and center:
            gradients = centred(gradients, n)
        return cls(gram, gradients, axis, eigenvalues[kept], modes[:, kept], energies[kept], expressed)

    def between_parameters(self, q: int) -> tuple[Coherence | None, Coherence | None, Tensor | None]:
        """Coherence of the strongest and of the weakest modes, and how alike the parameters' spectra are."""
        if self.gradients is None:
            return None, None, None
        strongest = coherence(self.eigenvalues, self.modes, self.gradients, self.axis, q)
        weakest = coherence(self.eigenvalues, self.modes, self.gradients, self.axis, q, trailing=True)
        return strongest, weakest, gradient_similarity(self.gradients, self.axis)


def _checked(gram: Tensor | None, basis: Basis, gradients: Tensor | None) -> tuple[Tensor, Tensor | None]:
    n = basis.vectors.shape[0]
    if gradients is not None:
        gradients = as_tensor(gradients).detach()
        if gradients.ndim != 2 or gradients.shape[0] == 0 or gradients.shape[0] % n:
            raise ValueError(
                f"the basis lives on {n} examples, but the gradients have shape {list(gradients.shape)}: pass one row "
                "of parameters for each example (and output)."
            )
    if gram is None:
        if gradients is None:
            raise ValueError("an interference profile needs a Gram matrix or gradients, got neither.")
        gram = gradients.double() @ gradients.double().T
    gram = as_tensor(gram).detach()
    rows = gram.shape[0] if gram.ndim else 0
    if gram.ndim != 2 or gram.shape[1] != rows or rows == 0 or rows % n:
        raise ValueError(f"the basis lives on {n} examples, but the Gram matrix has shape {list(gram.shape)}.")
    if gradients is not None and len(gradients) != rows:
        raise ValueError(f"the Gram matrix has {rows} rows, but the gradients have {len(gradients)}.")
    return gram, gradients


def _p_value(seen: Tensor, null: Tensor) -> Tensor:
    """One-sided, with the observed ordering counted among the permutations (Phipson & Smyth 2010)."""
    p = (1 + (null >= seen).sum()).double() / (1 + len(null))
    return torch.where(seen.isfinite() & (len(null) > 0), p, torch.nan)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.new_full((), torch.nan)


def _sd(values: Tensor) -> Tensor:
    return values.std() if values.numel() > 1 else values.new_full((), torch.nan)
