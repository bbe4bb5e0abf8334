"""Is the loss on its last stretch, how fast does it fall there, and is that what the Jacobian says?"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, final

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from lightning_cx.functional import convergence, local_model, loss_tail
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import Instrument, Needs, ProbePasses, Reading
from lightning_cx.instruments.histories import Thinned
from lightning_cx.probe import ProbeReading

ROWS = 512
"""Rows of the Jacobian, examples times outputs: 512 decompose in 40 ms, 2048 in 2 s."""

PASSES = 3.0
"""512 rows are two passes of 256, and the losses of the examples some more."""

KEPT = 512
"""Losses on the probe that are remembered at most, evenly spread over the run."""

READINGS_PER_TAIL = 8
"""A tail that is nearly the same gives nearly the same law: it is fitted again when an eighth is new."""

LAW = (quantities.RECOVERY_LAW, *quantities.interval(quantities.RECOVERY_RATE))
LOCAL = (quantities.RECOVERY_PREDICTED_RATE, quantities.RECOVERY_RANK_SHARE, quantities.RECOVERY_REMOVABLE)


@final
class LocalRecovery(Instrument):
    """At what rate the loss converges, at what rate it should, and whether the examples determine the model.

    The losses on the probe give the law of the last stretch (`loss_tail`) and its rate. The Jacobian of the first
    examples gives the rank, how much of the loss a linear step could take away, and the rate at which full-batch
    gradient descent would approach the minimum that is near (`local_model`). A card on the text tab puts it in words.

    Refused by name, as nan with the reason: rates of other optimizers than SGD, with weight decay, or with several
    learning rates; rates of a loss that has no finite minimum nearby; rank and rate where there are more training
    examples than were looked at, and these do not determine the model by themselves. The loss has to be the mean over
    the batch.

    Args:
        examples: How many examples the Jacobian is taken of; None takes what 512 rows hold, examples times outputs.
        tail: Which share of the steps so far, the latest, the law is fitted to.
        every_n_steps: How often to take the Jacobian; None follows the monitor.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> LocalRecovery(every_n_steps=100).needs.every_n_steps
        100
    """

    tags = (*LAW, *LOCAL)

    def __init__(
        self, examples: int | None = None, tail: float = 0.5, every_n_steps: int | None = None, *, name: str = ""
    ) -> None:
        super().__init__(name)
        if examples is not None and examples < 1:
            raise ValueError(f"a Jacobian needs at least one example, got examples={examples}.")
        if not 0 < tail <= 1:
            raise ValueError(f"tail is a share of the steps, over 0 and up to 1, got tail={tail}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is at least 1, got {every_n_steps}.")
        self.examples, self.tail, self.every_n_steps = examples, tail, every_n_steps
        self.reset()

    def reset(self) -> None:
        self._losses: Thinned[tuple[int, float]] = Thinned(KEPT)
        self._new = 0
        self._law: convergence.LossTail | None = None
        self._local: convergence.LocalModel | None = None
        self._predicted, self._why = math.nan, "the Jacobian has not been computed yet"
        self._outputs: int | None = None

    @property
    def needs(self) -> Needs:
        return Needs(passes=PASSES, every_n_steps=self.every_n_steps)

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        self._outputs = probe.outputs.shape[1]
        if not math.isfinite(probe.loss):
            return Reading.refused(LAW, "the loss on the probe is not known, or not finite")
        if not self._take(step, probe.loss):
            return Reading()
        held = list(self._losses)
        begin = held[-1][0] - self.tail * (held[-1][0] - held[0][0])
        steps, losses = zip(*(point for point in held if point[0] >= begin), strict=True)
        law = self._law = loss_tail(list(steps), list(losses))
        if law.law == "unknown":
            why = f"{law.reason} in the latest {self.tail:.0%} of the steps"
            return Reading.refused(LAW, why, self._card())
        scale = law.rate_now / law.rate if law.rate else 1.0
        values = (float(CODES[law.law]), law.rate_now, law.low * scale, law.high * scale)
        return Reading(dict(zip(LAW, values, strict=True)), texts=self._card())

    def _take(self, step: int, loss: float) -> bool:
        """Remember a loss, and return whether enough is new to look again."""
        if len(self._losses) and step <= self._losses.to_now()[-1][0]:  # a loop of one's own that counts anew
            self._losses.reset()
            self._new = 0
        if not self._losses.add((step, loss)):
            return False
        self._new += 1
        if self._new * READINGS_PER_TAIL < len(self._losses):
            return False
        self._new = 0
        return True

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        try:
            local = self._local_model(passes)
        except (UnsupportedGradientError, ValueError) as refusal:  # the model, the loss or the size, in words
            self._local, self._predicted, self._why = None, math.nan, str(refusal)
            return Reading.refused(LOCAL, str(refusal), self._card())
        self._local = local
        short = _not_all(local.rank, local.parameters, local.examples, passes.training_examples)
        self._predicted, self._why = (math.nan, short) if short else _prediction(local, passes)
        if short:
            return Reading.refused(LOCAL, short, self._card())
        removable = "the loss is zero, negative or not finite" if math.isnan(local.removable) else ""
        share = local.rank / local.parameters if local.parameters else math.nan
        values, reasons = (self._predicted, share, local.removable), (self._why, "", removable)
        refusals = {tag: why for tag, why in zip(LOCAL, reasons, strict=True) if why}
        return Reading(dict(zip(LOCAL, values, strict=True)), refusals=refusals, texts=self._card())

    def _local_model(self, view: ProbePasses) -> convergence.LocalModel:
        if self._outputs is None:  # no reading of the probe yet
            self._outputs = view.jacobian(1).outputs.shape[1]
        wanted = min(self.examples or max(1, ROWS // max(1, self._outputs)), view.examples)
        count = sum(p.numel() for p in view.parameters().values())
        short = _not_all(min(wanted * self._outputs, count), count, wanted, view.training_examples)
        if short:  # however it turns out: spare the passes
            raise ValueError(short)
        jacobian = view.jacobian(wanted)
        loss = view.loss(len(jacobian.outputs))
        # Rounding of a Jacobian in float32 leaves eigenvalues of 4e-9 of the largest at 200 rows where there are none.
        tolerance = max(convergence.RANK_TOLERANCE, *(torch.finfo(p.dtype).eps for p in view.parameters().values()))
        parts = jacobian.gram, jacobian.hessian, jacobian.residuals
        found = local_model(*parts, jacobian.parameters, loss, tolerance)
        if found.reason:
            raise ValueError(found.reason)
        return found

    def _card(self) -> dict[str, str]:
        return {quantities.RECOVERY_VERDICT: card(self._law, self._local, self._predicted, self._why)}

    def state_dict(self) -> dict[str, Any]:
        law = None if self._law is None else {**asdict(self._law), "bic": dict(self._law.bic)}
        return {"losses": self._losses.state_dict(), "new": self._new, "law": law}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._losses.load_state_dict(state["losses"])
        self._new = state["new"]
        self._law = None if state["law"] is None else convergence.LossTail(**state["law"])


def _not_all(rank: int, parameters: int, examples: int, training_examples: int | None) -> str:
    """Return why the examples cannot stand for the training set; empty if they can."""
    if rank == parameters or (training_examples is not None and examples >= training_examples):
        return ""
    of_all = "an unknown number" if training_examples is None else f"{training_examples}"
    return (
        f"the Jacobian is that of {examples} of {of_all} of training examples, which determine at most {rank} of "
        f"{parameters} parameters: the others may determine more"
    )


def _prediction(local: convergence.LocalModel, view: ProbePasses) -> tuple[float, str]:
    """Return the predicted rate, or nan with the reason."""
    descent = _descent(view.optimizer, view.module)
    if isinstance(descent, str) or view.sums:
        return math.nan, descent if isinstance(descent, str) else view.sums
    if not local.has_minimum:
        return math.nan, (
            f"no finite minimum is near: {local.removable:.0%} of the loss can still go, and it is no square of the "
            "outputs (the cross entropy of separable classes falls forever, ever more slowly)"
        )
    rate = local.rate(**descent)
    return rate, "no direction in parameter space changes the outputs" if math.isnan(rate) else ""


def _descent(optimizer: Optimizer | None, module: nn.Module) -> dict[str, Any] | str:
    """Return the settings of plain SGD, or why the optimizer is not plain SGD."""
    if type(optimizer) is not SGD:
        name = "none, or one of several" if optimizer is None else type(optimizer).__name__
        return f"the local rate is defined for SGD, and the optimizer is {name}"
    groups = optimizer.param_groups
    if any(float(group["weight_decay"]) != 0 for group in groups):
        return "weight decay moves the minimum away from that of the loss, and the local rate is that of the loss"
    if any(group["maximize"] for group in groups):
        return "the optimizer maximises"
    names = {"learning_rate": "lr", "momentum": "momentum", "dampening": "dampening"}
    settings = [{name: float(group[key]) for name, key in names.items()} for group in groups]
    settings = [{**own, "nesterov": bool(group["nesterov"])} for own, group in zip(settings, groups, strict=True)]
    if any(other != settings[0] for other in settings[1:]):
        return "parameter groups have settings of their own, and the local rate is defined for one learning rate"
    stepped = {id(p) for group in groups for p in group["params"]}
    if any(p.requires_grad and id(p) not in stepped for p in module.parameters()):
        return "the optimizer does not step all trainable parameters"
    if not settings[0]["learning_rate"] > 0:
        return "the learning rate is zero"
    return settings[0]


CODES = {"rising": -1, "flat": 0, "power": 1, "exponential with floor": 2, "exponential": 3}
"""Numbers under which the laws are logged: the higher, the better the end in sight."""

MEANING = {
    "rising": "Not an end: the step size is too large, or the probe's loss and the training loss part ways.",
    "flat": "Nothing falls any more at this step size. Lower it, or stop.",
    "power": "Slower and slower: twice the steps take a constant share off. Usual for cross entropy of classes that "
    "can be told apart, and far from a minimum.",
    "exponential with floor": "The fall ends above zero: what is left is noise in the labels, what the model cannot "
    "express, or noise of the steps at this step size.",
    "exponential": "The model is in the basin of a minimum, and the pace will hold.",
}

AGREE = 1.5
"""Factor up to which two rates are called the same: faster directions fade out slowly."""


def card(law: convergence.LossTail | None, local: convergence.LocalModel | None, predicted: float, why: str) -> str:
    """Put the end of a loss curve in words, in markdown; `why` says why no rate is predicted.

    Example:
        >>> import numpy as np
        >>> from lightning_cx.functional import loss_tail
        >>> steps = np.arange(0, 2000, 20)
        >>> print(card(loss_tail(steps, np.exp(-0.0012 * steps)), None, 0.0013, ""))
        **converging at a linear rate of .0012 per step; the loss would halve every 580 steps (95%: .0012 to .0012)**
        <BLANKLINE>
        The model is in the basin of a minimum, and the pace will hold.
        <BLANKLINE>
        The Jacobian predicts .0013 per step: what is left is the slowest direction.
    """
    lines = [f"**{'waiting for measurements of the loss' if law is None else law}**"]
    if law is not None and law.law in MEANING:
        lines.append(MEANING[law.law])
    if local is not None:
        lines.append(f"{local}.")
    if predicted == predicted:
        lines.append(f"The Jacobian predicts {_rate(predicted)}: {_comparison(law, predicted)}.")
    else:
        lines.append(f"No rate is predicted: {why}.")
    return "\n\n".join(lines)


def _rate(predicted: float) -> str:
    if predicted > 0:
        return f"{convergence.short(predicted)} per step"
    return f"a loss that grows by {convergence.short(-predicted)} per step"


def _comparison(law: convergence.LossTail | None, predicted: float) -> str:
    if predicted <= 0:
        return "the step size is over the edge of stability for its largest eigenvalue"
    if law is None or law.law not in ("exponential", "exponential with floor"):
        return "the pace to be expected in the end"
    ratio = law.rate / predicted
    if ratio > AGREE:
        return "faster directions are still under way, and the pace will fall to that"
    if ratio < 1 / AGREE:
        return "the loss falls more slowly, so the model is not in the basin yet, or the learning rate has changed"
    return "what is left is the slowest direction"
