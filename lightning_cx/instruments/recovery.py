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
from lightning_cx.instruments.base import Instrument, Needs, Observation, Reading
from lightning_cx.instruments.loss_history import LossHistory
from lightning_cx.instruments.recovery_card import CODES, card
from lightning_cx.probe import ProbePasses
from lightning_cx.tensorboard import tags

ROWS = 512
"""Rows of the Jacobian, examples times outputs: 512 decompose in 40 ms, 2048 in 2 s."""

PASSES = 3.0
"""512 rows are two passes of 256, and the losses of the examples some more."""

LAW: tuple[str, ...] = (tags.RECOVERY_LAW, tags.RECOVERY_RATE, tags.RECOVERY_RATE_LOW, tags.RECOVERY_RATE_HIGH)
LOCAL: tuple[str, ...] = (tags.RECOVERY_PREDICTED_RATE, tags.RECOVERY_RANK_SHARE, tags.RECOVERY_REMOVABLE)


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

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> LocalRecovery().needs.probe
        True
    """

    def __init__(self, examples: int | None = None, tail: float = 0.5, every_n_steps: int | None = None) -> None:
        if examples is not None and examples < 1:
            raise ValueError(f"a Jacobian needs at least one example, got examples={examples}.")
        if not 0 < tail <= 1:
            raise ValueError(f"tail is a share of the steps, over 0 and up to 1, got tail={tail}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is at least 1, got {every_n_steps}.")
        self.examples, self.tail, self.every_n_steps = examples, tail, every_n_steps
        self.reset()

    def reset(self) -> None:
        self._history = LossHistory()
        self._law: convergence.LossTail | None = None
        self._local: convergence.LocalModel | None = None
        self._predicted, self._why = math.nan, "the Jacobian was not looked at yet"
        self._outputs: int | None = None

    @property
    def needs(self) -> Needs:
        return Needs(probe=True, passes=PASSES, every_n_steps=self.every_n_steps)

    def measure(self, observation: Observation) -> Reading:
        if observation.probe is not None:
            self._outputs = observation.probe.outputs.shape[1]
            return self._measure_law(observation.step, observation.probe.loss)
        if observation.model is not None:
            return self._measure_local(observation.model)
        return Reading()

    def _measure_law(self, step: int, loss: float) -> Reading:
        if not math.isfinite(loss):
            why = "the loss on the probe is not known, or not finite"
            return Reading.refused(LAW, why)
        if not self._history.add(step, loss):
            return Reading()
        steps, losses = self._history.latest(self.tail)
        law = self._law = loss_tail(steps, losses)
        if law.law == "unknown":
            why = f"{law.reason} in the latest {self.tail:.0%} of the steps"
            return Reading.refused(LAW, why, self._card())
        scale = law.rate_now / law.rate if law.rate else 1.0
        values = (float(CODES[law.law]), law.rate_now, law.low * scale, law.high * scale)
        return Reading(dict(zip(LAW, values, strict=True)), texts=self._card())

    def _measure_local(self, view: ProbePasses) -> Reading:
        try:
            local = self._local_model(view)
        except (UnsupportedGradientError, ValueError) as refusal:  # the model, the loss or the size, in words
            self._local, self._predicted, self._why = None, math.nan, str(refusal)
            return Reading.refused(LOCAL, str(refusal), self._card())
        self._local = local
        short = _not_all(local.rank, local.parameters, local.examples, view.training_examples)
        self._predicted, self._why = (math.nan, short) if short else _prediction(local, view)
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
        return {tags.RECOVERY_VERDICT: card(self._law, self._local, self._predicted, self._why)}

    def state_dict(self) -> dict[str, Any]:
        law = None if self._law is None else {**asdict(self._law), "bic": dict(self._law.bic)}
        return {"history": self._history.state_dict(), "law": law}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._history.load_state_dict(state["history"])
        self._law = None if state["law"] is None else convergence.LossTail(**state["law"])


def _not_all(rank: int, parameters: int, examples: int, training_examples: int | None) -> str:
    """Why the examples cannot stand for the training set; empty where they can."""
    if rank == parameters or (training_examples is not None and examples >= training_examples):
        return ""
    of_all = "an unknown number" if training_examples is None else f"{training_examples}"
    return (
        f"the Jacobian is that of {examples} of {of_all} of training examples, which determine at most {rank} of "
        f"{parameters} parameters: the others may determine more"
    )


def _prediction(local: convergence.LocalModel, view: ProbePasses) -> tuple[float, str]:
    """The rate, or nan with the reason."""
    descent = _descent(view.optimizer, view.module)
    if isinstance(descent, str) or view.sums:
        return math.nan, descent if isinstance(descent, str) else view.sums
    if not local.has_minimum:
        return math.nan, (
            f"no finite minimum is near: {local.removable:.0%} of the loss can still go, and it is no square of the "
            "outputs (cross entropy of classes that can be told apart falls for ever, and ever more slowly)"
        )
    rate = local.rate(**descent)
    return rate, "no direction in parameter space changes the outputs" if math.isnan(rate) else ""


def _descent(optimizer: Optimizer | None, module: nn.Module) -> dict[str, Any] | str:
    """Settings of plain SGD, or why the optimizer is none."""
    if type(optimizer) is not SGD:
        name = "none, or one of several" if optimizer is None else type(optimizer).__name__
        return f"the local rate is defined for SGD, and the optimizer is {name}"
    groups = optimizer.param_groups
    if any(float(group["weight_decay"]) != 0 for group in groups):
        return "weight decay moves the minimum away from that of the loss, and the local rate is that of the loss"
    if any(group["maximize"] for group in groups):
        return "the optimizer maximises"
    settings = [
        {
            "learning_rate": float(group["lr"]),
            "momentum": float(group["momentum"]),
            "dampening": float(group["dampening"]),
            "nesterov": bool(group["nesterov"]),
        }
        for group in groups
    ]
    if any(other != settings[0] for other in settings[1:]):
        return "parameter groups have settings of their own, and the local rate is defined for one learning rate"
    stepped = {id(p) for group in groups for p in group["params"]}
    if any(p.requires_grad and id(p) not in stepped for p in module.parameters()):
        return "the optimizer does not step all trainable parameters"
    if not settings[0]["learning_rate"] > 0:
        return "the learning rate is zero"
    return settings[0]
