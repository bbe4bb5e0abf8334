"""Decide from leave-one-out errors, check by check, when to stop and which check was the best."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.stopping.spectral_risk import ONE_SIDED_95, Decision

SIMILAR = 0.5
"""Standard errors within which the last check is as good as the best: a run on clean data that ends by itself keeps
its last weights. With 0, .5, 1 and 1.645, 16 problems of two seeds kept 1.10, 1.11, 1.11 and 1.11 of the best error."""


class LeaveOneOutTracker:
    """Follows the mean leave-one-out error and says when it has certainly passed its minimum.

    The best check is the first with the lowest mean. The rule fires when the errors of the same examples have exceeded
    those around the best check by more than z standard errors of the mean difference for `patience` checks in a row,
    and the run is `wait` times as old as at the best check. The lowest of many checks is lower than it would be again,
    so the checks before and after it count as well.

    Args:
        z: Standard errors.
        patience: Checks in a row.
        wait: Multiple of the steps up to the best check.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> own = torch.rand(200, generator=draw, dtype=torch.float64)
        >>> tracker = LeaveOneOutTracker()
        >>> for step in range(1, 60):  # falls up to step 10, then rises
        ...     drawn = 0.01 * torch.rand(200, generator=draw, dtype=torch.float64)
        ...     decision = tracker.check(own + (step - 10) ** 2 / 500 + drawn, step)
        ...     if decision.stop:
        ...         break
        >>> decision.stop, decision.best_check + 1, step
        (True, 10, 30)
    """

    def __init__(self, z: float = ONE_SIDED_95, patience: int = 5, wait: float = 3.0) -> None:
        if not z > 0:
            raise ValueError(f"z counts standard errors and must be positive, got {z}.")
        if patience < 1:
            raise ValueError(f"patience counts checks, at least one, got {patience}.")
        if not wait >= 1:
            raise ValueError(f"wait is a multiple of the steps up to the best check, at least 1, got {wait}.")
        self.z, self.patience, self.wait = z, patience, wait
        self.reset()

    def reset(self) -> None:
        """Forget everything: another run comes."""
        self.checks = self.best_check = self._in_a_row = 0
        self._best_step = 0
        self._best: Tensor | None = None
        self._around: list[Tensor] = []  # errors at the check before the best, there, and after it
        self._previous: Tensor | None = None
        self._rise = self._error = math.nan

    def check(self, errors: Any, step: int) -> Decision:
        """Take in the leave-one-out errors of one check.

        Args:
            errors: ``[n]`` of the same examples at every check, at least two.
            step: Optimizer steps done.

        Raises:
            ValueError: If there are other examples than before, or fewer than two.
        """
        now = as_tensor(errors).detach().double().cpu()
        if now.ndim != 1 or len(now) < 2 or (self._best is not None and len(now) != len(self._best)):
            before = "" if self._best is None else f", {len(self._best)} as before"
            raise ValueError(f"errors are [n] of at least two examples{before}, got {list(now.shape)}.")
        number = self.checks
        self.checks += 1
        mean = float(now.mean())
        if not math.isfinite(mean):
            self._rise, self._error, self._in_a_row = math.inf, 0.0, self._in_a_row + 1
            return Decision(self._may_stop(step), self.best_check, "the error is not finite", math.nan, math.nan)
        if self._best is None or mean < float(self._best.mean()):
            self._best, self.best_check, self._best_step, self._in_a_row = now, number, step, 0
            self._around = [now] if self._previous is None else [self._previous, now]
            self._previous, self._rise, self._error = now, 0.0, 0.0
            return Decision(False, number, f"the leave-one-out error is at its lowest, {mean:.4g}", mean, 0.0)
        if number == self.best_check + 1:
            self._around.append(now)
        self._previous = now
        difference = now - torch.stack(self._around).mean(0)
        self._rise = float(difference.mean())
        self._error = float(difference.std()) / math.sqrt(len(now))
        self._in_a_row = self._in_a_row + 1 if self._rise > self.z * self._error else 0
        lowest = f"{float(self._best.mean()):.4g} at step {self._best_step}"
        if not self._in_a_row:
            words = f"the leave-one-out error, {mean:.4g}, is not certainly above {lowest}"
            return Decision(False, self.best_check, words, mean, self._error)
        stop = self._may_stop(step)
        above = f"{self._rise / self._error:.1f} standard errors above" if self._error else "above"
        words = f"the leave-one-out error, {mean:.4g}, is {above} {lowest}, for {self._in_a_row} checks in a row"
        return Decision(stop, self.best_check, words, mean, self._error)

    def _may_stop(self, step: int) -> bool:
        return self._in_a_row >= self.patience and step >= self.wait * max(1, self._best_step)

    @property
    def past_best(self) -> bool:
        """Whether the last check was worse than the best by more than half a standard error."""
        return self._rise > SIMILAR * self._error

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {
            "checks": self.checks,
            "best_check": self.best_check,
            "best_step": self._best_step,
            "best": self._best,
            "around": self._around,
            "previous": self._previous,
            "in_a_row": self._in_a_row,
            "last": (self._rise, self._error),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.checks, self.best_check, self._best_step = state["checks"], state["best_check"], state["best_step"]
        self._best, self._in_a_row = state["best"], state["in_a_row"]
        self._around, self._previous = list(state["around"]), state["previous"]
        self._rise, self._error = state["last"]


def left_out_errors(outputs: Tensor, residuals: Tensor, shift: Tensor, curvature: Tensor, kind: str) -> Tensor:
    """Compute each example's error with its output shifted to what it would be without it.

    Args:
        outputs: ``[n, ..., C]`` float64; the classes come last where the kind is ``"classes"``.
        residuals: The same shape: minus the derivative of each example's own loss.
        shift: ``[n]`` along the residual's direction.
        curvature: ``[n]`` second derivative of the loss along that direction.
        kind: ``"classes"``: share of positions with a wrong class (softmax); ``"binary"``: share of wrong signs
            (one logit for each label); ``"values"``: distance from the target in its own unit (squared errors);
            ``"slopes"``: size of the slope of the loss, to first order (any other convex loss).

    Returns:
        ``[n]`` float64.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        >>> f = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> r = torch.eye(2, dtype=torch.float64)[[0, 1]] - f.softmax(1)
        >>> left_out_errors(f, r, torch.tensor([-3.0, -1.0]).double(), torch.ones(2).double(), "classes").tolist()
        [1.0, 1.0]
        >>> left_out_errors(f, r, torch.zeros(2).double(), torch.ones(2).double(), "classes").tolist()
        [0.0, 0.0]
    """
    size = residuals.flatten(1).norm(dim=1)
    if kind == "values":
        bent = curvature[curvature > 0]
        unit = torch.where(curvature > 0, curvature, bent.median() if len(bent) else 1.0)
        return (size / unit - shift).abs()
    if kind == "slopes":
        return (size - curvature * shift).abs()
    if kind != "binary" and not kind.startswith("classes"):
        raise ValueError(f'kind must be "classes", "binary", "values" or "slopes", got {kind!r}.')
    ones = (-1,) + (1,) * (residuals.ndim - 1)
    direction = residuals / size.clamp_min(1e-300).view(ones)
    without = outputs + shift.view(ones) * direction
    counted = (residuals != 0).double()
    if kind == "binary":
        wrong = ((without > 0) != (residuals > 0)).double() * counted
    else:
        counted = counted.amax(-1)
        label = torch.where(counted > 0, residuals.argmax(-1), without.argmax(-1))
        wrong = (without.argmax(-1) != label).double() * counted
    return wrong.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp_min(1) if wrong.ndim > 1 else wrong
