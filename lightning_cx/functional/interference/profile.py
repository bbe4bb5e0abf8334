"""The interference principle as a test: do simple functions get the large singular values, beyond chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import rankdata
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis
from lightning_cx.functional.complexity.spectrum import Axis, decay_exponent, interpolate_at, low_weights, median_index
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.interference.coherence import Coherence, GradientSystem
from lightning_cx.functional.kernels import CumulativePower, cumulative_power, kernel_target_alignment
from lightning_cx.functional.linalg import effective_rank, participation_ratio

ROUNDING = 1e-25
"""Shares of the energy below this are squares of rounding."""

SIGNIFICANT = 0.05
"""Level of the permutation test at which the principle is said to hold, or, from the other end, to be reversed."""

LARGE_ENOUGH = 0.1
"""Systems without the principle stay below this |CII| (THEORY 3): less may be significant, but is no principle."""

_IN_WORDS = {
    "holds": "holds",
    "absent": "is absent: strength and complexity go their own ways",
    "reversed": "is reversed: complex functions get the large singular values",
    "unknown": "could not be tested: too few modes or permutations",
}

ALL = 0.99
"""A basis that expresses this share of the energy need not be excused."""


@dataclass(frozen=True, eq=False)
class InterferenceProfile:
    """How the strength of a gradient's modes goes with their complexity; every tensor is float64.

    Attributes:
        singular_values: ``[r]`` descending, of the gradients: square roots of the Gram matrix's eigenvalues.
        spectrum: ``[L]`` share of the gradient's energy at each level, ``sum_j lambda_j e_lj`` over its sum.
        axis: The levels: their complexities and basis functions.
        medians: ``[r]`` median complexity of each singular function, in the unit of the basis.
        positions: ``[r]`` the same as a share of the index range, 0 the simplest level and 1 the most complex.
        whole_median: ``[]`` median complexity of the whole gradient.
        whole_position: ``[]`` the same as a share of the index range; .5 is what noise gives.
        rank_correlation: ``[]`` in [-1, 1], Spearman's: 1 if singular values fall strictly as complexity grows.
        amplification: ``[q]`` in [-1, 1], a_j of the strongest modes.
        attenuation: ``[q]`` in [-1, 1], d_j of the weakest modes, weakest first.
        cii: ``[]`` constructive interference index, the mean of a_j: 1 if each strong mode is simpler than all that
            remains, 0 without preference, -1 if it is more complex.
        dii: ``[]`` destructive interference index, the mean of d_j: 1 if each weak mode is more complex than all
            that stands before it.
        null: ``[permutations]`` CII of random pairings of singular values with singular functions.
        rank_null: ``[permutations]`` rank correlation of these pairings.
        shuffled: ``[shuffles]`` CII with the examples shuffled against the basis: the control, near 0.
        expressed: ``[]`` share of the gradient's energy that the basis can express; 1 for a complete one.
        decay_similarity: ``[]`` in [0, 1], how alike the spectra of the single parameters are: condition (a); None
            without gradients.
        participation_ratio: ``[]`` number of modes that share the energy: condition (b).
        effective_rank: ``[]`` the same by entropy: condition (b).
        alignment: ``[]`` centred kernel-target alignment: condition (b); None without targets.
        power: Cumulative power of the targets in the leading modes: condition (b); None without targets.
        leading: What interference between parameters does to the strongest modes; None without gradients.
        trailing: The same of the weakest modes.
        unknown: Why there are no modes to speak of; empty if there are some.
    """

    singular_values: Tensor
    spectrum: Tensor
    axis: Axis
    medians: Tensor
    positions: Tensor
    whole_median: Tensor
    whole_position: Tensor
    rank_correlation: Tensor
    amplification: Tensor
    attenuation: Tensor
    cii: Tensor
    dii: Tensor
    null: Tensor
    rank_null: Tensor
    shuffled: Tensor
    expressed: Tensor
    decay_similarity: Tensor | None
    participation_ratio: Tensor
    effective_rank: Tensor
    alignment: Tensor | None
    power: CumulativePower | None
    leading: Coherence | None
    trailing: Coherence | None
    unknown: str = ""

    @property
    def p_value(self) -> Tensor:
        """``[]`` how often random pairing gives this CII or more; nan without permutations."""
        return tail_probability(self.cii, self.null)

    @property
    def lower_p_value(self) -> Tensor:
        """``[]`` how often random pairing gives this CII or less."""
        return tail_probability(-self.cii, -self.null)

    @property
    def rank_correlation_p_value(self) -> Tensor:
        """``[]`` how often random pairing gives this rank correlation or more."""
        return tail_probability(self.rank_correlation, self.rank_null)

    @property
    def null_mean(self) -> Tensor:
        """``[]`` mean CII of the random pairings."""
        return mean_or_nan(self.null)

    @property
    def null_sd(self) -> Tensor:
        """``[]`` standard deviation of the CII of a random pairing."""
        return sd_or_nan(self.null)

    @property
    def shuffled_cii(self) -> Tensor:
        """``[]`` mean CII with the examples shuffled."""
        return mean_or_nan(self.shuffled)

    @property
    def shuffled_sd(self) -> Tensor:
        """``[]`` standard deviation of the CII of one shuffle."""
        return sd_or_nan(self.shuffled)

    @cached_property
    def decay_exponent(self) -> Tensor:
        """``[]`` p of the gradient spectrum, ``e ~ complexity^-p``: condition (a); nan with too few levels."""
        energy = torch.where(self.spectrum > ROUNDING, self.spectrum, 0.0)
        return decay_exponent(self.axis.functions_of(energy), self.axis.complexity[self.axis.level_of])

    @property
    def iota_leading(self) -> Tensor | None:
        """``[]`` how far interference between parameters moves the strongest modes to low complexity, on average."""
        return None if self.leading is None else self.leading.mean_iota

    @property
    def iota_trailing(self) -> Tensor | None:
        """``[]`` the same of the weakest modes; below 0: interference leaves them the complex part."""
        return None if self.trailing is None else self.trailing.mean_iota

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"absent"``, ``"reversed"`` or ``"unknown"``, by the permutation test of CII and its size."""
        if self.p_value < SIGNIFICANT and self.cii > LARGE_ENOUGH:
            return "holds"
        if self.lower_p_value < SIGNIFICANT and self.cii < -LARGE_ENOUGH:
            return "reversed"
        return "absent" if self._could_tell else "unknown"

    @property
    def _could_tell(self) -> bool:
        """Whether perfect order, either way, would have been significant: a few modes often stand so by chance."""
        if not self.null.numel() or not bool(self.cii.isfinite()):
            return False
        best, worst = tail_probability(self.null.max(), self.null), tail_probability(-self.null.min(), -self.null)
        return bool(torch.maximum(best, worst) < SIGNIFICANT)

    def __str__(self) -> str:
        r = self.singular_values.numel()
        if self.unknown:
            return f"interference profile unknown: {self.unknown}"
        lines = [
            f"interference profile of {r} modes: the principle {_IN_WORDS[self.verdict]}",
            f"  strong modes are simple: CII {self.cii:+.2f} (random pairing {self.null_mean:+.2f} +- "
            f"{self.null_sd:.2f}, p = {self.p_value:.2g}; examples shuffled {self.shuffled_cii:+.2f} +- "
            f"{self.shuffled_sd:.2f})",
            f"  weak modes are complex: DII {self.dii:+.2f}; rank correlation {self.rank_correlation:+.2f}",
            f"  median complexity {self.whole_median:.3g}, at {self.whole_position:.3f} of the range (noise: 0.5)"
            + ("" if self.expressed > ALL else f"; of {self.expressed:.0%} of the energy, the basis misses the rest"),
            f"  decay exponent {self.decay_exponent:.2f}; {self.participation_ratio:.1f} modes share the energy "
            f"(effective rank {self.effective_rank:.1f})",
        ]
        if self.leading is not None and self.trailing is not None:
            lines.append(
                f"  by interference: iota {self.leading.mean_iota:+.2f} in the strongest modes, "
                f"{self.trailing.mean_iota:+.2f} in the weakest; likeness of spectra {self.decay_similarity:.2f}"
            )
        if self.power is not None:
            lines.append(f"  target: alignment {self.alignment:.2f}; {self.power}")
        return "\n".join(lines)


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
    """Test whether gradients change simple functions most, and whether interference between parameters is why.

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


def mean_or_nan(values: Tensor) -> Tensor:
    """Return the mean of a vector; nan of an empty one."""
    return values.mean() if values.numel() else values.new_full((), torch.nan)


def sd_or_nan(values: Tensor) -> Tensor:
    """Return the standard deviation of a vector; nan of fewer than two numbers."""
    return values.std() if values.numel() > 1 else values.new_full((), torch.nan)


@dataclass(frozen=True, eq=False)
class Ordering:
    """How strength goes with complexity in one set of modes; the fields are those of `InterferenceProfile`."""

    rank_correlation: Tensor
    amplification: Tensor
    attenuation: Tensor

    @property
    def cii(self) -> Tensor:
        """``[]`` the constructive interference index, the mean of a_j; nan without modes."""
        return mean_or_nan(self.amplification)

    @property
    def dii(self) -> Tensor:
        """``[]`` the destructive interference index, the mean of d_j; nan without modes."""
        return mean_or_nan(self.attenuation)


def ordering(eigenvalues: Tensor, energies: Tensor, q: int) -> Ordering:
    """Measure whether the strong modes are simpler than the rest, and the weak ones more complex.

    The strongest modes are each compared with what remains of the gradient after them, the weakest with what stands
    before them; at most ``r - 1`` at either end.
    """
    as_they_are = torch.arange(eigenvalues.numel(), device=eigenvalues.device)[None]
    return Ordering(
        rank_correlation=_spearman_with_order(median_index(energies)[as_they_are])[0],
        amplification=2 * _low_shares(eigenvalues, energies, as_they_are, q)[0] - 1,
        attenuation=1 - 2 * _low_shares(eigenvalues.flip(0), energies, as_they_are.flip(1), q)[0],
    )


def permutation_null(
    eigenvalues: Tensor, energies: Tensor, q: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pair singular values with singular functions at random: CII and rank correlation ``[count]`` by chance."""
    orders = torch.rand(count, eigenvalues.numel(), generator=generator).argsort(1).to(eigenvalues.device)
    amplification = 2 * _low_shares(eigenvalues, energies, orders, q) - 1
    return amplification.mean(1), _spearman_with_order(median_index(energies)[orders])


def shuffled_cii(
    eigenvalues: Tensor, modes: Tensor, axis: Axis, q: int, count: int, generator: torch.Generator
) -> Tensor:
    """Compute the CII ``[count]`` of examples in random order: what an axis without meaning gives."""
    n = axis.vectors.shape[0]
    by_example = modes.reshape(n, len(modes) // n, modes.shape[1])
    as_they_are = torch.arange(eigenvalues.numel(), device=eigenvalues.device)[None]
    seen = eigenvalues.new_full((count,), torch.nan)
    for i in range(count):
        order = torch.randperm(n, generator=generator).to(modes.device)
        energies = axis.energies(by_example[order].reshape(modes.shape))
        seen[i] = (2 * _low_shares(eigenvalues, energies, as_they_are, q) - 1).mean()
    return seen


SAME_MEDIAN = 1e-9
"""Median indices, and values of an index, this close are a tie: rounding must not rank them."""


def tail_probability(seen: Tensor, null: Tensor) -> Tensor:
    """Compute ``(1 + #{null >= seen}) / (1 + #null)``; the observed one counts too (Phipson & Smyth 2010)."""
    p = (1 + (null >= seen - SAME_MEDIAN).sum()).double() / (1 + len(null))
    return torch.where(seen.isfinite() & (len(null) > 0), p, torch.nan)


MIN_MODES_TO_RANK = 3
"""Two modes are always in perfect order, one way or the other."""


def _spearman_with_order(medians: Tensor) -> Tensor:
    r = medians.shape[-1]
    if r < MIN_MODES_TO_RANK:
        return medians.new_full(medians.shape[:-1], torch.nan)
    ranks = rankdata((medians / SAME_MEDIAN).round().cpu().numpy(), axis=-1)
    seen = torch.from_numpy(ranks).to(medians) - (r + 1) / 2
    order = torch.arange(r, dtype=medians.dtype, device=medians.device) - (r - 1) / 2
    return (seen @ order) / (seen.norm(dim=-1) * order.norm())


def _low_shares(eigenvalues: Tensor, energies: Tensor, orders: Tensor, q: int) -> Tensor:
    """Return the share of each of the first q modes on the low side of the gradient made of those after it.

    ``orders [B, r]`` say which mode takes which eigenvalue; returns ``[B, min(q, r - 1)]``.
    """
    q = max(min(q, eigenvalues.numel() - 1), 0)
    first = energies[orders[:, :q]]
    after = torch.zeros(orders.shape, dtype=eigenvalues.dtype, device=eigenvalues.device)
    after.scatter_(1, orders[:, q:], eigenvalues[q:].expand(len(orders), -1))
    spectra = eigenvalues[:q, None] * first
    # Sums from the weak end, since what is left after a dominant mode would drown in its rounding.
    from_here = torch.cat([spectra, (after @ energies)[:, None]], 1).flip(1).cumsum(1).flip(1)
    weights = low_weights(from_here[:, 1:])
    return (weights * first).sum(-1) / first.sum(-1)
