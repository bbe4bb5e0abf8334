"""What a stopping rule says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What a stopping rule says at one check.

    Attributes:
        stop: Whether training should end; the weights of `best_check` are then the ones to keep.
        best_check: Number of the check with the lowest value so far, from 0.
        reason: Why, in words.
        value: The value that the rule watches, at this check; nan where it could not be read.
        standard_error: Standard error of the difference between this value and the best; nan likewise.
    """

    stop: bool
    best_check: int
    reason: str
    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{'stop' if self.stop else 'go on'}: {self.reason}"


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """The estimated risk over all checks of a run, and where the rule would have stopped.

    Attributes:
        risk: ``[T]`` float64, estimated squared error per example against the noiseless target, up to a constant.
        standard_error: ``[T]`` float64, of the difference to the best check so far.
        best_check: The check whose weights are kept: the best one seen when the rule fires, or of all if it never does.
        stop_check: The check at which the rule fires; None if it never does.
        sigma2: Noise energy per basis function, added over outputs.
        reason: Why it stops, or why not.
    """

    risk: Tensor
    standard_error: Tensor
    best_check: int
    stop_check: int | None
    sigma2: float
    reason: str
