"""Apply a stopping rule to the residuals of a probe: choose the order of complexity, refuse, remember, show."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import Basis, complexity, interference_profile, laplacian_basis, sketching, stopping
from lightning_cx.instruments import Reading, quantities
from lightning_cx.probe import ProbeReading
from lightning_cx.rules.base import INSTEAD, CheckRecord, RefusedError, StoppingRule

FEWEST = 128  # examples; with 64 the kept error was 1.4 to 1.7 times the best, with 32 2.2 to 3.3 (THEORY section 5)
FALLEN = 0.3  # share of the first loss, from which on slopes are asked whether they have shrunk at all
SHRUNK = 0.001  # share of their energy


class ResidualStopper:
    """Applies one rule to the probe's residuals over one run.

    Args:
        rule: What decides.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self._record = CheckRecord(rule)
        self.reset()

    def reset(self) -> None:
        """Forget everything: another model comes."""
        self.rule.reset()
        self.decision: stopping.Decision | None = None
        self._record.reset()
        self.order = ""
        self._initial: Tensor | None = None
        self._features: Tensor | None = None
        self._fingerprint = math.nan
        self._basis: Basis | None = None
        self._first: Tensor | None = None  # coefficients of the initial residual
        self._noise = math.nan
        self._current: Tensor | None = None
        self._recent: deque[Tensor] = deque(maxlen=stopping.WINDOW + 1)
        self._at_first = (math.nan, math.nan)

    @property
    def best_step(self) -> int | None:
        """Step of the best check so far."""
        return self._record.best_step

    @best_step.setter
    def best_step(self, step: int) -> None:
        self._record.best_step = step

    @property
    def begun(self) -> bool:
        """Whether the initial residual was seen."""
        return self._initial is not None

    def check(self, step: int, reading: ProbeReading) -> stopping.Decision:
        """Take in one pass over the probe.

        Args:
            step: Training step.
            reading: What the probe showed; the first one shows the target.

        Raises:
            RefusedError: If the rule cannot be applied, as with fewer than 128 examples or features that do not order
                the target.
        """
        if why := why_no_residual(reading.mixed, reading.drawn, reading.no_residual):
            raise RefusedError(why)
        residuals = sketching.sketch_outputs(reading.residuals).double()
        if reading.features is not self._features:
            self._meet(reading.features)
        if self._initial is None:
            self._begin(reading.features, residuals)
        if self._basis is None:
            self._resume(reading.features)
        assert self._basis is not None
        if reading.flat:
            self._ask_loss(reading, float(residuals.square().sum()))
        coefficients = self._basis.vectors.T @ residuals
        decision = self.rule.check(coefficients, step)
        self._record.add(step, decision)
        if decision.stop and not self.has_learned:
            decision = replace(decision, stop=False, reason="nothing was learned yet, by the estimated risk")
        self.decision = decision
        self._current = coefficients
        self._recent.append(coefficients.square().sum(1)[1:])  # the constant is neither simple nor complex
        return decision

    @property
    def has_learned(self) -> bool:
        """Whether a later check was ever better than the first: weights that learned nothing are none to go back to."""
        return self._record.has_learned

    def _ask_loss(self, reading: ProbeReading, energy: float) -> None:
        """Refuse if a piecewise linear loss has fallen and its slope has not, as that of an absolute error does not."""
        if self._record.count == 0:
            self._at_first = reading.loss, energy
        first_loss, first_energy = self._at_first
        if not (first_loss > 0 and first_energy > 0 and math.isfinite(reading.loss)):
            return
        fallen, shrunk = 1 - reading.loss / first_loss, 1 - energy / first_energy
        if fallen > FALLEN and shrunk < SHRUNK:
            raise RefusedError(
                f"{reading.flat}: pass ProbeSet(loss_fn=...) with squared errors, a function (module, batch) -> losses "
                f"[n], {INSTEAD}"
            )

    def mark_stop(self, step: int) -> None:
        """Note, for the picture, that the run ends here."""
        self._record.stopped = step

    def mark_end(self, went_back: bool) -> None:
        """Note, for the picture, that the run is over, and whether the weights of the best step are there again."""
        self._record.last_weights = not went_back

    def check_gradients(self, gram: Tensor, features: Tensor) -> None:
        """Ask, at the start, whether the network learns simple functions first, from per-example gradients.

        Args:
            gram: ``[m, m]`` their Gram matrix.
            features: ``[m, d]`` of the same examples.

        Raises:
            RefusedError: If it does not: what is learned late is then no noise.
        """
        profile = interference_profile(gram, laplacian_basis(features), permutations=0, shuffles=0)
        correlation = float(profile.rank_correlation)
        if correlation <= 0:
            raise RefusedError(
                "the network does not learn simple functions first (strong gradients are complex: rank correlation "
                f"{correlation:.2f}), so what it learns late need not be noise: pass ProbeSet(features=...) in which "
                f"examples with similar targets are neighbours, {INSTEAD}"
            )

    def _meet(self, features: Tensor) -> None:
        """Other examples than before have nothing to do with what was seen of those."""
        places = torch.arange(1, len(features) + 1, dtype=torch.float64, device=features.device)
        fingerprint = float(places @ features.double().square().sum(1))
        if self._initial is not None and not math.isclose(fingerprint, self._fingerprint, rel_tol=1e-9):
            self.reset()
        self._features, self._fingerprint = features, fingerprint

    def _begin(self, features: Tensor, residuals: Tensor) -> None:
        if len(residuals) < FEWEST:
            raise RefusedError(
                f"{len(residuals)} probe examples are too few to tell noise from target, {FEWEST} are needed: train on "
                f"more, {INSTEAD}"
            )
        if not bool(residuals.isfinite().all()):
            raise RefusedError("the initial residual is not finite: inputs or losses are NaN or infinite")
        order = stopping.order_of_target(features, residuals)
        coefficients = order.basis.vectors.T @ residuals
        ordered, p = stopping.target_is_ordered(coefficients)
        if not ordered:
            raise RefusedError(
                "the features do not order the target: on them the initial residual looks like white noise (F test, "
                f"p = {p:.2g}), so fitting the target cannot be distinguished from fitting noise; pass "
                f"ProbeSet(features=...) with embeddings in which examples with similar targets are neighbours, "
                f"{INSTEAD}"
            )
        self.rule.begin(coefficients, order.least_noise)
        self._initial, self._first = residuals, coefficients
        self._basis, self.order, self._noise = order.basis, order.name, stopping.noise_floor(coefficients).sigma2

    def _resume(self, features: Tensor) -> None:
        """Make the basis again; it is too large for a checkpoint, and on another machine its functions may differ."""
        assert self._initial is not None
        self._basis = stopping.basis_by_name(self.order, features)
        self._first = self._basis.vectors.T @ self._initial
        self._noise = stopping.noise_floor(self._first).sigma2
        self.rule.rebase(self._first)

    def reading(self) -> Reading:
        """What the last check showed, as named numbers and a picture."""
        decision = self.decision
        if decision is None or self._first is None:
            return Reading()
        curve = self.rule.curve
        scalars = {
            quantities.STOPPING_NOISE_FLOOR: self._noise,
            quantities.STOPPING_FITTED_HIGH: self._fitted_high(),
            quantities.STOPPING_DOMINANCE: self._dominance(),
            curve.tag: decision.value,
        }
        if curve.has_band:
            scalars |= zip(quantities.interval(curve.tag)[1:], self.rule.band(decision), strict=True)
        return Reading(scalars, pictures={quantities.STOPPING_CURVE: self._record.picture()})

    def _fitted_high(self) -> float:
        """How much of the complex half of the target has been fitted."""
        if self._first is None or self._current is None or self._first.shape != self._current.shape:
            return math.nan
        n = len(self._first)
        return float(complexity.fitted_fraction(self._first, self._current, torch.arange(n), [(n // 2, n)]))

    def _dominance(self) -> float:
        if self._first is None or len(self._recent) <= stopping.WINDOW:
            return math.nan
        initial = self._first.square().sum(1)[1:]
        return float(complexity.high_complexity_dominance(initial, self._recent[0], self._recent[-1]))

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {
            "rule": self.rule.state_dict(),
            "initial": self._initial,
            "fingerprint": self._fingerprint,
            "order": self.order,
            "first": self._at_first,
            "recent": list(self._recent),
            "record": self._record.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; the basis is made again at the next check."""
        self.reset()
        self.rule.load_state_dict(state["rule"])
        self._initial, self.order, self._fingerprint = state["initial"], state["order"], state["fingerprint"]
        self._at_first = (state["first"][0], state["first"][1])
        self._recent.extend(state["recent"])
        self._record.load_state_dict(state["record"])


def why_no_residual(mixed: bool, drawn: bool, no_residual: str) -> str:
    """Return why no rule can be applied to what a probe showed, in words; empty if one can."""
    if mixed:
        return (
            "the loss mixes examples (mixup, in-batch negatives), so nothing says what the output of one should "
            "become: mix only `if self.training`, pass ProbeSet(loss_fn=...), a function (module, batch) -> losses "
            f"[n] without it, {INSTEAD}"
        )
    if drawn:
        return (
            "the loss draws random numbers in eval mode, too (times, noise, a code), so part of what is left over "
            "is chance: pass ProbeSet(loss_fn=...), a function (module, batch) -> losses [n] without draws, "
            f"{INSTEAD}"
        )
    if no_residual:
        return (
            f"{no_residual}: pass ProbeSet(loss_fn=...) with squared errors of the prediction, a function "
            f"(module, batch) -> losses [n], {INSTEAD}"
        )
    return ""
