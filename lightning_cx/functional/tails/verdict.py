"""From what was ruled out to one of four words, and the reason in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["gaussian", "heavy-aggregates-to-gaussian", "stable", "indeterminate"]

NORMAL_LEVEL = 0.001
"""A monitor asks some hundred times in a run: at 5% it would cry wolf every twenty readings. Any heavy tail that
matters has a p-value far below at 512 samples."""

LEVEL = 0.05
"""Level of the tests that follow once the normal law is ruled out, and of that law too where the index speaks against
it as well."""

SHIFT_LEVEL = 0.02
"""Level at which sums are said to be lighter: at 5% one stable law in twenty would lose its name to chance."""

LIGHT = 1.95
"""An interval that reaches so far up is no heavy tail to speak of: sums of a scale mixture come near 2 from below, and
with many samples their interval leaves it out long after they behave as normal ones."""


_SMALLEST = 1e-6  # approximations of p-values say no more than "smaller" beyond


def in_words(p_value: float) -> str:
    """A p-value as one writes it, ``p = 0.03`` or ``p < 1e-06``."""
    return f"p < {_SMALLEST:.0e}" if p_value < _SMALLEST else f"p = {p_value:.2g}"


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Attributes:
        high: Upper end of the interval of the index.
        index: The index.
        p_gaussian: p-value of a normal law for single samples.
        sum_size: How many samples the sums add up.
        sum_high: Upper end of the interval of the index of the sums.
        p_sum_gaussian: p-value of a normal law for the sums.
        p_stable: p-value of a stable law; nan where the question did not arise.
        p_shift: p-value of sums that keep the index; nan likewise.
        largest_shift: Shift that the sums of a stable law stay below in 95% of all cases; nan likewise.
    """

    index: float
    high: float
    p_gaussian: float
    sum_size: int
    sum_high: float
    p_sum_gaussian: float
    p_stable: float
    p_shift: float
    largest_shift: float

    @property
    def normal(self) -> bool:
        """Whether single samples cannot be told from normal ones."""
        return self.p_gaussian >= (LEVEL if self.heavy else NORMAL_LEVEL)

    @property
    def heavy(self) -> bool:
        """Whether the whole interval of the index is that of a heavy tail."""
        return self.high < LIGHT

    @property
    def sums_normal(self) -> bool:
        """Whether sums cannot be told from normal ones."""
        return self.p_sum_gaussian >= LEVEL and self.sum_high >= LIGHT

    @property
    def sums_heavy(self) -> bool:
        """Whether sums are certainly heavy."""
        return self.p_sum_gaussian < LEVEL and self.sum_high < LIGHT


def decide(evidence: Evidence) -> tuple[Verdict, str]:
    """Choose the word.

    Args:
        evidence: Intervals and p-values.

    Returns:
        Verdict and reason.
    """
    e = evidence
    if e.normal:
        return "gaussian", f"a normal law is not ruled out ({in_words(e.p_gaussian)})"
    if not e.heavy:
        return _another_shape(e)
    if e.p_shift < SHIFT_LEVEL and e.sums_normal:
        return "heavy-aggregates-to-gaussian", (
            f"single samples are heavy (index {e.index:.2f}), sums of {e.sum_size} are not told from normal "
            f"({in_words(e.p_sum_gaussian)}): the heaviness averages away"
        )
    if e.p_stable >= LEVEL and e.p_shift >= SHIFT_LEVEL and e.largest_shift < 2 - e.index and not e.sums_normal:
        return "stable", (
            f"a stable law with index {e.index:.2f} is not ruled out ({in_words(e.p_stable)}), and sums of "
            f"{e.sum_size} keep the index ({in_words(e.p_shift)})"
        )
    return "indeterminate", f"single samples are heavy (index {e.index:.2f}), {_what_is_missing(e)}"


def _another_shape(e: Evidence) -> tuple[Verdict, str]:
    """Neither normal nor heavy."""
    shape = f"single samples are not normal in shape ({in_words(e.p_gaussian)})"
    if e.sums_normal:
        return "gaussian", (
            f"{shape}, but their tail is not heavy: the interval of the index reaches {e.high:.2f}, and sums of "
            f"{e.sum_size} are not told from normal"
        )
    if e.sums_heavy:
        return "indeterminate", (
            f"{shape}, and though most are not heavy, sums of {e.sum_size} are (95% up to {e.sum_high:.2f}): a few are "
            f"far larger than the rest"
        )
    return "indeterminate", (
        f"{shape}, nor are sums of {e.sum_size}, yet the interval of the index reaches {e.high:.2f}: another shape, "
        f"but not a heavy tail"
    )


def _what_is_missing(e: Evidence) -> str:
    """Why heavy samples get no verdict."""
    if e.p_shift >= SHIFT_LEVEL and e.p_stable < LEVEL and e.sums_heavy:
        return (
            f"and sums of {e.sum_size} too (95% up to {e.sum_high:.2f}): it does not average away at that size, though "
            f"no stable law fits single ones ({in_words(e.p_stable)})"
        )
    if e.p_shift < SHIFT_LEVEL:
        return f"sums of {e.sum_size} are lighter ({in_words(e.p_shift)}), but not normal yet: larger sums may be"
    if e.p_stable < LEVEL:
        return (
            f"no stable law fits them ({in_words(e.p_stable)}), and there are too few sums of {e.sum_size} to "
            f"see whether these are lighter"
        )
    return (
        f"and look stable, but sums of {e.sum_size} scatter so much (by {e.largest_shift:.2f}) that normal ones "
        f"would not be noticed: more samples are needed"
    )
