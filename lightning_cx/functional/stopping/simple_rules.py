"""Two simpler rules: stop when complex functions dominate what is learned, or when what is left looks like noise."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from typing import Any

from scipy.stats import binomtest
from torch import Tensor

from lightning_cx.functional.complexity.residuals import high_complexity_dominance
from lightning_cx.functional.complexity.spectrum import low_weights
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.stopping.spectral_risk import Decision
from lightning_cx.functional.stopping.target import LEVEL, degrees_of_freedom, f_test

WINDOW = 5
"""Checks over which what was learned is weighed; THEORY section 5 measured the rule so."""


class DominanceTracker:
    """Fires when most of what is being learned is complex, while nothing simple is left to learn.

    ``D`` (`high_complexity_dominance`) over the last 5 checks exceeds 1/2, the energy of the complex side has fallen at
    every one of them (sign test), and the simple eighth of the residual no longer stands out from its complex half
    (F test): for `patience` checks in a row. Without the last condition a network that learns complex functions first
    would be stopped at once.

    Args:
        patience: Checks in a row.

    Raises:
        ValueError: If `patience` is not positive.

    References:
        THEORY sections 4 and 5.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> index = torch.arange(256, dtype=torch.float64)
        >>> start = 30 / (1 + index) ** 2 + 0.5 * torch.randn(256, generator=draw, dtype=torch.float64)
        >>> tracker, stopped = DominanceTracker(), False
        >>> for check in range(400):
        ...     decision = tracker.check(start * torch.exp(-check / (1 + index)))
        ...     if decision.stop:
        ...         break
        >>> decision.stop, decision.value > 0.5
        (True, True)
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = _positive(patience)
        self.checks = 0
        self._initial: Tensor | None = None
        self._recent: deque[Tensor] = deque(maxlen=WINDOW + 1)
        self._in_a_row = 0

    def check(self, coefficients: Any) -> Decision:
        """Process one residual, ``[L, C]`` or ``[L]`` in order of complexity; `value` is D, nan for the first 5."""
        energy, freedom = _energy(coefficients)
        number = self.checks
        self.checks += 1
        if not bool(energy.isfinite().all()):
            return Decision(False, number, "the residual is not finite", math.nan, math.nan)
        varying = energy[1:]  # the constant is neither simple nor complex
        if self._initial is None:
            self._initial = varying
        self._recent.append(varying)
        if len(self._recent) <= WINDOW:
            return Decision(False, number, f"{len(self._recent)} of {WINDOW + 1} checks", math.nan, math.nan)
        value = float(high_complexity_dominance(self._initial, self._recent[0], varying))
        falls = self._high_side_falls()
        p = f_test(energy[: max(1, len(energy) // 8)], energy[len(energy) // 2 :], freedom)
        dominated = value > 0.5 and falls and p > LEVEL
        self._in_a_row = self._in_a_row + 1 if dominated else 0
        share = f"{value:.0%} of what was learned over the last {WINDOW} checks is complex"
        if not dominated:
            left = "" if p > LEVEL else "; something simple is still left to learn"
            return Decision(False, number, f"{share}{left}", value, math.nan)
        reason = f"{share}, nothing simple is left, for {self._in_a_row} checks in a row"
        return Decision(self._in_a_row >= self.patience, number, reason, value, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {
            "checks": self.checks,
            "initial": self._initial,
            "recent": list(self._recent),
            "in_a_row": self._in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.checks, self._initial, self._in_a_row = state["checks"], state["initial"], state["in_a_row"]
        self._recent = deque(state["recent"], maxlen=WINDOW + 1)

    def _high_side_falls(self) -> bool:
        assert self._initial is not None
        high = 1 - low_weights(self._initial)
        energies = [float((high * energy).sum()) for energy in self._recent]
        falls = sum(after < before for before, after in pairwise(energies))
        return bool(binomtest(falls, WINDOW, 0.5, alternative="greater").pvalue <= LEVEL)


class WhitenessTracker:
    """Fires when what is left of the target can no longer be told from noise.

    The simple eighth of the residual does not stand out from its complex half (one-sided F test at .05), for `patience`
    checks in a row.

    Args:
        patience: Checks in a row.

    Raises:
        ValueError: If `patience` is not positive.

    References:
        THEORY section 5; Hansen, Kilmer & Kjeldsen 2006 for the idea.

    Example:
        >>> import torch
        >>> noise = torch.randn(256, generator=torch.Generator().manual_seed(0))
        >>> tracker = WhitenessTracker(patience=1)
        >>> tracker.check(noise + 30 / (1 + torch.arange(256.0))).stop, tracker.check(noise).stop
        (False, True)
    """

    def __init__(self, patience: int = 2) -> None:
        self.patience = _positive(patience)
        self.checks = 0
        self._in_a_row = 0

    def check(self, coefficients: Any) -> Decision:
        """Process one residual, ``[L, C]`` or ``[L]`` in order of complexity; `value` is the p-value of white noise."""
        energy, freedom = _energy(coefficients)
        number = self.checks
        self.checks += 1
        if not bool(energy.isfinite().all()):
            return Decision(False, number, "the residual is not finite", math.nan, math.nan)
        p = f_test(energy[: max(1, len(energy) // 8)], energy[len(energy) // 2 :], freedom)
        # The first check is the target itself: white from the start is no reason to stop, but none to begin.
        self._in_a_row = self._in_a_row + 1 if p > LEVEL and number > 0 else 0
        if p <= LEVEL:
            return Decision(False, number, f"the residual is not white yet (p = {p:.2g})", p, math.nan)
        reason = (
            f"the residual is not distinguishable from white noise (p = {p:.2g}), for {self._in_a_row} checks in a row"
        )
        return Decision(self._in_a_row >= self.patience, number, reason, p, math.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {"checks": self.checks, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.checks, self._in_a_row = state["checks"], state["in_a_row"]


def dominance(coefficients: Any, patience: int = 3) -> Decision:
    """Find the check at which most of what is learned became complex: `DominanceTracker` over a whole run.

    Args:
        coefficients: ``[T, L, C]`` or ``[T, L]`` coefficients of the residual at each check, in order of complexity.
        patience: Checks in a row.

    Returns:
        Decision of the check that fires, whose number is `best_check`; of the last one if none does.

    Raises:
        ValueError: If the shape is another or there is no check.

    Example:
        >>> import torch
        >>> start = 30 / (1 + torch.arange(256.0)) ** 2
        >>> clean = torch.stack([start * torch.exp(-check / (1 + torch.arange(256.0))) for check in range(40)])
        >>> dominance(clean).stop
        False
    """
    return _followed(DominanceTracker(patience), coefficients)


def residual_whiteness(coefficients: Any, patience: int = 2) -> Decision:
    """Find the check at which the residual became white noise: `WhitenessTracker` over a whole run.

    Takes and returns what `dominance` does.

    Example:
        >>> import torch
        >>> noise = torch.randn(256, generator=torch.Generator().manual_seed(0))
        >>> residual_whiteness(torch.stack([noise + 30 / (1 + torch.arange(256.0)), noise, noise])).best_check
        2
    """
    return _followed(WhitenessTracker(patience), coefficients)


def _followed(tracker: DominanceTracker | WhitenessTracker, coefficients: Any) -> Decision:
    coefficients = as_tensor(coefficients)
    if coefficients.ndim not in (2, 3) or not len(coefficients):
        raise ValueError(f"coefficients are [T, L] or [T, L, C] with a check at least, got {list(coefficients.shape)}.")
    decision = tracker.check(coefficients[0])
    for at_check in coefficients[1:]:
        if decision.stop:
            break
        decision = tracker.check(at_check)
    return decision


def _positive(patience: int) -> int:
    if patience < 1:
        raise ValueError(f"patience counts checks, at least one, got {patience}.")
    return patience


def _energy(coefficients: Any) -> tuple[Tensor, int]:
    coefficients = as_tensor(coefficients).detach().double().cpu()
    if coefficients.ndim not in (1, 2) or len(coefficients) < 16 or not coefficients.numel():
        shape = list(coefficients.shape)
        raise ValueError(f"coefficients of one check are [L] or [L, C] of 16 functions at least, got shape {shape}.")
    coefficients = coefficients.reshape(len(coefficients), -1)
    return coefficients.square().sum(1), degrees_of_freedom(coefficients.shape[1])
