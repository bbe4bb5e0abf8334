"""The interference principle of gradients: do simple functions get the large singular values, and why."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.alignment import cumulative_power, kernel_target_alignment
from lightning_cx.functional.basis import Basis
from lightning_cx.functional.gradient_system import GradientSystem
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.kernel import effective_rank, participation_ratio
from lightning_cx.functional.ordering import ordering, permutation_null, shuffled_cii
from lightning_cx.functional.profile import InterferenceProfile
from lightning_cx.functional.spectrum import interpolate_at, median_index


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
        the numbers that cannot be had are nan and `unknown` says why; modes of which the basis expresses less than half
        are left out, and `expressed` says how much it expresses of the whole.

    Raises:
        ValueError: If neither Gram matrix nor gradients are given, if they are complex or a shape does not fit the
            basis, or if ``q``, ``permutations`` or ``shuffles`` is out of range.

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
    for name, value, least in (("q", q, 1), ("permutations", permutations, 0), ("shuffles", shuffles, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    system = GradientSystem.of(gram, basis, gradients, center)
    generator = torch.Generator().manual_seed(seed)
    here = ordering(system.eigenvalues, system.energies, q)
    null, rank_null = permutation_null(system.eigenvalues, system.energies, q, permutations, generator)
    axis, index, whole = system.axis, median_index(system.energies), median_index(system.spectrum)
    leading, trailing, similarity = system.between_parameters(q)
    return InterferenceProfile(
        singular_values=system.unit * system.eigenvalues.sqrt(),
        spectrum=system.spectrum,
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
        null=null,
        rank_null=rank_null,
        shuffled=shuffled_cii(system.eigenvalues, system.modes, axis, q, shuffles, generator),
        expressed=system.expressed,
        decay_similarity=similarity,
        participation_ratio=participation_ratio(system.eigenvalues),
        effective_rank=effective_rank(system.eigenvalues),
        alignment=None if targets is None else kernel_target_alignment(system.gram, as_tensor(targets), center),
        power=None if targets is None else cumulative_power(system.gram, as_tensor(targets), center),
        leading=leading,
        trailing=trailing,
        unknown=system.unknown,
    )
