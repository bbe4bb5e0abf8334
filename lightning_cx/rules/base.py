"""What a stopping rule is: it is shown the residual at each check and says whether to go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import stopping
from lightning_cx.instruments import StoppingCurve, Thinned

MAX_POINTS = 1024  # of the picture
INSTEAD = "or stop by a validation set (Lightning's EarlyStopping)"


class RefusedError(ValueError):
    """A stopping rule cannot be applied here, for a reason that will not change."""


@dataclass(frozen=True)
class Curve:
    """How the value that a rule monitors is shown: its tag, what it is (for an axis), title and how to read it."""

    tag: str
    label: str
    title: str
    reading: str
    has_band: bool = False  # whether the ends of an error band are logged under `<tag>_low` and `<tag>_high`
    is_share: bool = False  # or a probability, between 0 and 1


class StoppingRule(ABC):
    """Follows the coefficients of a residual, from simple to complex, and says when to stop.

    Derive from this class for a rule of your own: implement `check`, `reset` and `curve`, give `state_dict` what a
    resumed run needs, and `__repr__` the settings if two of the kind shall stand in one Trainer.

    Attributes:
        keeps_best: Whether the weights of the best check so far are the ones to keep; else those at the stop are.
        follows_gradients: Whether `check` takes leave-one-out errors of the examples instead of coefficients.
    """

    keeps_best: bool = True
    follows_gradients: bool = False

    def __repr__(self) -> str:
        """What the rule is and how it is set; it names the state in a checkpoint, so it must not change on the way."""
        return f"{type(self).__name__}()"

    def begin(self, initial: Tensor, least_noise: float) -> None:
        """Learn what the target is, before the first check.

        Args:
            initial: ``[L, C]`` coefficients of the initial residual, in order of complexity.
            least_noise: Noise energy per function that is certainly there.
        """
        del initial, least_noise

    def rebase(self, initial: Tensor) -> None:
        """Take the coefficients ``[L, C]`` of the same initial residual in a basis made again after a checkpoint."""
        del initial

    @abstractmethod
    def check(self, coefficients: Tensor, step: int) -> stopping.Decision:
        """Take in the residual of one check.

        Args:
            coefficients: ``[L, C]`` float64, in order of complexity.
            step: Training step.

        Returns:
            Decision; its `best_check` is this check wherever this is the best so far.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget everything: another model comes."""

    @property
    @abstractmethod
    def curve(self) -> Curve:
        """How the value of its decisions is shown."""

    @property
    def past_best(self) -> bool:
        """Whether the last check was certainly worse than the best: asked at the end of a run that was not stopped."""
        return False

    def band(self, decision: stopping.Decision) -> tuple[float, float]:
        """Error band of the value of a decision; nan where there is none."""
        return float("nan"), float("nan")

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        del state


class CheckRecord:
    """What the checks of a run came to: values and their bands, the best step, and where the run was stopped.

    Args:
        rule: That made the decisions.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self.reset()

    def reset(self) -> None:
        """Forget everything: another model comes."""
        self.count = 0
        self.best_step: int | None = None
        self.first_step = 0
        self.stopped: int | None = None
        self.last_weights = False
        self._points: Thinned[tuple[int, float, float, float]] = Thinned(MAX_POINTS)

    def add(self, step: int, decision: stopping.Decision) -> None:
        """Take in one decision."""
        if decision.best_check == self.count:
            self.best_step = step
        if self.count == 0:
            self.first_step = step
        self.count += 1
        self._points.add((step, decision.value, *self.rule.band(decision)))

    @property
    def has_learned(self) -> bool:
        """Whether a later check was ever better than the first: weights that learned nothing are none to go back to."""
        return not self.rule.keeps_best or self.best_step != self.first_step

    def picture(self) -> StoppingCurve:
        """The monitored value over steps."""
        curve, points = self.rule.curve, self._points.to_now()
        values = torch.tensor([point[1:] for point in points], dtype=torch.float64).reshape(-1, 3)
        value, low, high = values.unbind(1)
        kept = self.best_step if self.rule.keeps_best and not self.last_weights else self.stopped
        steps, words = [point[0] for point in points], (curve.label, curve.title, curve.reading)
        return StoppingCurve(steps, value, low, high, kept, self.stopped, *words, curve.is_share)

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {
            "count": self.count,
            "best_step": self.best_step,
            "first_step": self.first_step,
            "stopped": self.stopped,
            "points": self._points.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reset()
        self.count, self.best_step, self.first_step = state["count"], state["best_step"], state["first_step"]
        self.stopped = state["stopped"]
        self._points.load_state_dict(state["points"])
