"""What is known of the interference principle on one batch or probe, and how to say it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_cx.functional.alignment import CumulativePower
from lightning_cx.functional.coherence import Coherence
from lightning_cx.functional.decay import decay_exponent
from lightning_cx.functional.ordering import mean_or_nan, sd_or_nan, tail_probability
from lightning_cx.functional.principal import Axis

SIGNIFICANT = 0.05
"""Level of the permutation test at which the principle is said to hold, or, from the other end, to be reversed."""

LARGE_ENOUGH = 0.1
"""Systems without the principle stay below this |CII| (THEORY 3): less may be significant, but is no principle."""


ALL = 0.99
"""A basis that expresses this share of the energy need not be excused."""

ROUNDING = 1e-25
"""Shares of the energy below this are squares of rounding."""


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


_IN_WORDS = {
    "holds": "holds",
    "absent": "is absent: strength and complexity go their own ways",
    "reversed": "is reversed: complex functions get the large singular values",
    "unknown": "could not be tested: too few modes or permutations",
}
