"""Stop by the error on each example as if it had never been trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import stopping
from lightning_cx.instruments import Reading, quantities
from lightning_cx.probe import ResidualGradients
from lightning_cx.rules.base import INSTEAD, CheckRecord, Curve, RefusedError, StoppingRule

SETTLED = 16  # steps, before which checks may lie anywhere
FEWEST = 64  # examples: the standard error of a 0/1 error is .06 at 64
FURTHEST = 2.5
"""Times as many steps, from one check to the next, over which the linear picture is carried: with 1.06, 1.25 and 1.5
times, 32 runs kept 1.10, 1.16 and 1.20 of the best error."""
AMPLIFIED = 1.3
"""Of the shifts of classes, whose logits go on growing once they are memorised, which features alone do not follow.
Times .8, 1, 1.25, 1.5 and 2, 20 runs kept 1.50, 1.13, 1.12, 1.21 and 1.21 of the best error, 9.4, 2.7, 1.7, 1.8 and 1.8
at worst; so 1 lies at the edge of a cliff."""
COVERED = 0.7
"""Of linear regressions with a probe of a quarter of the data, those with at least this coverage had leave-one-out
losses within 12% of retraining; below it up to 4 times too large (THEORY section 10)."""


@final
class PathLeaveOneOut(StoppingRule):
    """Stops when the error on examples that had been left out of training would rise; keeps the best weights.

    For each example of the probe the rule follows what its outputs would be, had it not been trained on
    (`functional.stopping.LeaveOneOutPath`): a curve of test error on training data, with no order of complexity and no
    noise level assumed. Errors are the share of wrong labels for classes, and distances from the target for values,
    which heavy tails leave alone.

    Args:
        z: Standard errors of the mean difference by which the error must exceed its minimum.
        patience: Checks in a row at which it must.
        wait: Multiple of the steps up to the minimum that must have passed.

    Raises:
        ValueError: If a number is out of range.

    References:
        THEORY section 10.

    Example:
        >>> PathLeaveOneOut(patience=8)
        PathLeaveOneOut(z=1.645, patience=8, wait=3.0)
    """

    follows_gradients = True

    def __init__(self, z: float = 1.645, patience: int = 5, wait: float = 3.0) -> None:
        self.z, self.patience, self.wait = z, patience, wait
        self._tracker = stopping.LeaveOneOutTracker(z, patience, wait)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(z={self.z}, patience={self.patience}, wait={self.wait})"

    def reset(self) -> None:
        self._tracker.reset()

    def check(self, coefficients: Tensor, step: int) -> stopping.Decision:
        return self._tracker.check(coefficients, step)

    @property
    def past_best(self) -> bool:
        return self._tracker.past_best

    @property
    def curve(self) -> Curve:
        return Curve(
            quantities.STOPPING_RISK,
            "estimated error on examples that were left out of training",
            "When to stop: what each training example's error would be without it",
            "The network improves as long as the curve falls. Where it rises beyond its band, what is learned helps "
            "the examples that are trained on alone; the weights of the lowest point are kept.",
            has_band=True,
        )

    def band(self, decision: stopping.Decision) -> tuple[float, float]:
        margin = self.z * decision.standard_error
        return decision.value - margin, decision.value + margin

    def state_dict(self) -> dict[str, Any]:
        return self._tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tracker.load_state_dict(state)


@dataclass(frozen=True)
class Elapsed:
    """What the optimizer did since the last check.

    Attributes:
        time: Sum over its steps of learning rate times preconditioner, for each parameter by name.
        decay: Sum of learning rate times weight decay, likewise.
        known: Whether the preconditioner is known.
        words: What is known of the optimizer.
    """

    time: Mapping[str, float]
    decay: Mapping[str, float]
    known: bool = True
    words: str = ""


class PathStopper:
    """Applies `PathLeaveOneOut` to what the probe shows over one run.

    A check has two parts, between which processes that share the probe can exchange their errors:

        shift = stopper.follow(step, gradients, elapsed)
        decision = stopper.decide(step, stopper.errors(own, shift[rows]))

    Args:
        rule: What decides.
        training_examples: N; None takes the size of the probe.
    """

    def __init__(self, rule: StoppingRule, training_examples: int | None = None) -> None:
        self.rule = rule
        self.training_examples = training_examples
        self._record = CheckRecord(rule)
        self.reset()

    def reset(self) -> None:
        """Forget everything: another model comes."""
        self.rule.reset()
        self._record.reset()
        self.decision: stopping.Decision | None = None
        self.kind = ""  # of errors
        self.unknown = ""  # why the learning time is not known
        self.apart = ""  # why the checks are too far apart
        self.held = ""  # why the rule does not stop, though it would
        self._path: stopping.LeaveOneOutPath | None = None
        self._found: stopping.LeaveOneOut | None = None
        self._last_step = 0

    @property
    def begun(self) -> bool:
        """Whether the first check was made."""
        return self._path is not None

    @property
    def best_step(self) -> int | None:
        """Step of the best check so far."""
        return self._record.best_step

    @best_step.setter
    def best_step(self, step: int) -> None:
        self._record.best_step = step

    @property
    def has_learned(self) -> bool:
        """Whether a later check was better than the first, as far as is known: else no weights are restored."""
        return self._record.has_learned and not self.apart

    def follow(
        self, seen: tuple[Tensor, Tensor, Tensor, Tensor], sketch: stopping.GradientSketch, elapsed: Elapsed
    ) -> Tensor:
        """Carry the estimates on to now.

        Args:
            seen: Of all examples of the probe: gradients, sizes, bend and directions of `ResidualGradients`.
            sketch: That made its gradients.
            elapsed: Since the last check.

        Returns:
            Shift of each example's output along its residual, had it been left out, [n] float64.

        Raises:
            RefusedError: If there are too few examples, or something is not finite.
        """
        n = len(seen[0])
        total = max(n, self.training_examples or n)
        if n < FEWEST:
            raise RefusedError(
                f"{n} probe examples are too few for a standard error of their errors, {FEWEST} are needed: train on "
                f"more, {INSTEAD}"
            )
        if not all(bool(part.isfinite().all()) for part in seen):
            if self._path is None:
                raise RefusedError("the initial residual is not finite: inputs or losses are NaN or infinite")
            return torch.full((n,), math.nan, dtype=torch.float64)
        if self._path is None:
            self._path = stopping.LeaveOneOutPath(total)
        elif not elapsed.known:
            self.unknown = (
                f"{elapsed.words}, so how far it moved the weights is guessed from the fall of the residuals (known "
                "are SGD, Muon and the Adam family)"
            )
        rates, decay = sketch.spread(elapsed.time), sketch.spread(elapsed.decay)
        self._found = self._path.check(*seen, rates, decay, elapsed.known)
        return self._found.shift

    def errors(self, seen: ResidualGradients, shift: Tensor) -> Tensor:
        """Return the leave-one-out errors [n] of some examples."""
        if seen.kind == "binary" or seen.kind.startswith("classes"):
            shift = AMPLIFIED * shift
        return stopping.left_out_errors(seen.outputs, seen.residuals, shift, seen.curvature, seen.kind)

    def decide(self, step: int, errors: Tensor, hold: str = "") -> stopping.Decision:
        """Ask the rule.

        Args:
            step: Training step.
            errors: Leave-one-out errors of all examples, [n].
            hold: Why the run must not be stopped now, in words; empty if it may.
        """
        decision = self.rule.check(errors, step)
        self._record.add(step, decision)
        if decision.stop and not self.has_learned:
            decision = replace(decision, stop=False, reason="nothing was learned yet, by the leave-one-out error")
        last, self._last_step = self._last_step, step
        if last >= SETTLED and step > FURTHEST * last:
            self.apart = (
                f"checks are too far apart (steps {last} and {step}) for single examples to be followed: allow a "
                "larger overhead_budget, or pass a smaller ProbeSet(size=)"
            )
        hold = hold or self.unknown or self.apart
        if self._found is not None and self._found.coverage < COVERED:
            hold = (
                f"the probe shows too little of the training set (by half of it, examples would be remembered "
                f"{1 / max(self._found.coverage, 1e-3):.1f} times as well): pass ProbeSet(size={2 * len(errors)})"
            )
        self.held = hold
        if decision.stop and hold:
            decision = replace(decision, stop=False, reason=f"{decision.reason}; not stopped, since {hold}")
        self.decision = self._in_words(decision)
        return self.decision

    def _in_words(self, decision: stopping.Decision) -> stopping.Decision:
        found = self._found
        if not decision.stop or found is None or not found.own_share > 0.5:
            return decision
        words = (
            f"{decision.reason}; {found.own_share:.0%} of what is being learned supports no example but its own "
            f"({found.own_share_null:.0%} by chance): high-complexity residuals dominate"
        )
        return replace(decision, reason=words if found.own_share > found.own_share_null else decision.reason)

    def mark_stop(self, step: int) -> None:
        """Note, for the picture, that the run ends here."""
        self._record.stopped = step

    def mark_end(self, went_back: bool) -> None:
        """Note, for the picture, that the run is over, and whether the weights of the best step are there again."""
        self._record.last_weights = not went_back

    def reading(self) -> Reading:
        """What the last check showed, as named numbers and a picture."""
        decision, found = self.decision, self._found
        if decision is None or found is None:
            return Reading()
        curve = self.rule.curve
        scalars = {
            curve.tag: decision.value,
            quantities.STOPPING_OWN_SHARE: found.own_share,
            quantities.STOPPING_OWN_SHARE_NULL: found.own_share_null,
            quantities.STOPPING_ACTS: 0.0 if self.held else 1.0,
            quantities.STOPPING_FALL_RATIO: found.fall_ratio,
        }
        if not math.isnan(found.coverage):
            scalars[quantities.STOPPING_COVERAGE] = found.coverage
        scalars |= zip(quantities.interval(curve.tag)[1:], self.rule.band(decision), strict=True)
        return Reading(scalars, pictures={quantities.STOPPING_CURVE: self._record.picture()})

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {
            "rule": self.rule.state_dict(),
            "of": self.training_examples,
            "kind": self.kind,
            "last_step": self._last_step,
            "apart": self.apart,
            "path": None if self._path is None else self._path.state_dict(),
            "record": self._record.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reset()
        self.rule.load_state_dict(state["rule"])
        self.training_examples, self.kind = state["of"], state["kind"]
        self._last_step, self.apart = state["last_step"], state["apart"]
        if state["path"] is not None:
            self._path = stopping.LeaveOneOutPath()
            self._path.load_state_dict(state["path"])
        self._record.load_state_dict(state["record"])
