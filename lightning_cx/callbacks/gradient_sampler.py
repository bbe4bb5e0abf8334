"""Per-example gradients of one backward: by the tap if it can read the model, by replay if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_cx._torch import BatchNorm
from lightning_cx.callbacks._trainer import (
    LightningModule,
    Trainer,
    gradient_scale,
    optimizer_parameters,
    replayable,
    unseen_batch,
)
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.rerun import NOT_THEIR_MEAN, Rerun
from lightning_cx.callbacks.sharded import held_parameters, whole_parameters
from lightning_cx.callbacks.status import in_words
from lightning_cx.gradients import (
    CONTRIBUTION,
    AmbiguousLayoutError,
    Calibration,
    GradientSample,
    GradientTap,
    InseparableError,
    UnreachedError,
    UnsupportedGradientError,
)
from lightning_cx.instruments import Needs
from lightning_cx.probe import anything_compiled, compiled_parts


class GradientSampler:
    """Reads one backward at a time.

    Args:
        failures: Where refusals are told.
        needs: What the instruments that are shown gradients want of them; empty where there are none.
        sums: Whether to keep what the examples add up to, for other processes.
        optimizer: Number of the optimizer whose parameters are read; None reads all that the module has.

    Attributes:
        sample: What the last finished backward showed, or None.
        one_off_seconds: Time that the last step spent on what will not be needed again.
        compiled: Names of the parts of the module that are compiled.
        refusal: Why its gradients cannot be read, in words.
    """

    def __init__(
        self, failures: Failures, needs: Sequence[Needs], sums: bool = False, optimizer: int | None = None
    ) -> None:
        self.failures = failures
        self._sums, self._optimizer = sums, optimizer
        self._whose = "" if optimizer is None else f" of optimizer {optimizer}"
        self._wanted = bool(needs)
        self._gram = any(need.gram for need in needs)
        self._norms = any(need.gram or need.norms for need in needs)
        self._per_layer = any(need.per_layer for need in needs)
        self._projections = max((need.projections for need in needs), default=0)
        self._coordinates = max((need.coordinates for need in needs), default=0)
        self.sample: GradientSample | None = None
        self.one_off_seconds = 0.0
        self.compiled: list[str] = []
        self._tap: GradientTap | None = None
        self._calibration: Calibration | None = None
        self._layout: bool | None = None
        self._ambiguous = False
        self._nodes: frozenset[str] = frozenset()
        self._replay = False
        self._off = False
        self.refusal = ""
        self._examples = self._compared = 0

    @property
    def off(self) -> bool:
        """Whether this model's gradients cannot be read at all; the reason was told."""
        return self._off

    @property
    def taps(self) -> bool:
        """Whether the next backward will be read as it runs."""
        return self._wanted and not (self._replay or self._off)

    def calibrates(self, examples: int) -> bool:
        """Whether a step on so many examples begins with a comparison of a few of them alone."""
        return self.taps and (self._calibration is None or self._compared < 2 <= examples)

    def begin(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, examples: int) -> None:
        """Prepare for the step that is about to run: calibrate once, or replay where the tap is refused."""
        self.drop()
        self._examples = examples
        if self._off or not self._wanted:
            return
        start = perf_counter()
        if not any(p.requires_grad for p in self._parameters(trainer, module).values()):
            self.refuse("the module has no trainable parameter, so there are no gradients to measure")
            return
        if (unseen := unseen_batch(module)) is not None:
            self.refuse(
                f"per-example gradients are off: {unseen}, so which examples a loss is of cannot be seen from outside: "
                "let training_step take the batch"
            )
            return
        step = Rerun(trainer, module, batch, batch_idx, examples)
        if self._replay:
            self.sample = step.sample(self._projections, self._coordinates)
            if NOT_THEIR_MEAN in self.sample.notes:
                self.failures.tell(f"per-example gradients: {NOT_THEIR_MEAN}")
            self._tell_status(module, self.sample)
        elif self.calibrates(examples):
            self._compared, self.compiled = examples, compiled_parts(module)
            self._calibrate(trainer, module, step)
            self.one_off_seconds = perf_counter() - start

    def forget_calibration(self) -> None:
        """Compare a few examples alone once more: another process does."""
        self._calibration = None

    def _parameters(self, trainer: Trainer, module: LightningModule) -> dict[str, Parameter]:
        own = optimizer_parameters(trainer, self._optimizer)
        return {name: p for name, p in held_parameters(module).items() if own is None or id(p) in own}

    def attach(self, trainer: Trainer, module: LightningModule, loss: Tensor, eager: bool) -> None:
        """Ride on the backward that is about to start.

        Args:
            trainer: Of the fit.
            module: The model.
            loss: What the backward starts from.
            eager: Whether compiled parts, if there are any, run as they were written in this step.
        """
        if self._tap is not None or self._replay or self._off or self._calibration is None:
            return
        scale = gradient_scale(trainer, module) * (self._examples if self._calibration.sums else 1)
        parameters = self._parameters(trainer, module)
        if self._optimizer is not None and not any(p.requires_grad for p in parameters.values()):
            return  # it is the turn of another optimizer
        tap = GradientTap(
            whole_parameters(module, parameters).items(),
            self._examples,
            self._gram,
            norms=self._norms,
            projections=self._projections,
            coordinates=self._coordinates,
            per_layer=self._per_layer,
            loss_scale=scale,
            batch_first=self._layout,
            sums=self._sums,
        )
        try:
            tap.attach(loss)
        except AmbiguousLayoutError as refusal:
            if self._ambiguous or replayable(module) is not None:
                self._fall_back(module, refusal)
            else:
                self._calibration, self._ambiguous = None, True  # the next sampled step settles it
        except UnsupportedGradientError as refusal:
            if self._optimizer is not None and isinstance(refusal, UnreachedError):
                return  # a loss of the parameters of another optimizer
            if eager or not anything_compiled():
                self._fall_back(module, refusal)
            # Else a function that the module does not hold was compiled just now: the next sampled step runs eagerly.
        else:
            self._tap = tap

    def finish(self, module: LightningModule) -> None:
        """Take what the backward showed."""
        if self._tap is None:
            return
        tap, self._tap = self._tap, None
        try:
            sample = tap.finish()
        except UnsupportedGradientError as refusal:
            self._fall_back(module, refusal)
            return
        if self._has_known_scale(sample):
            self.sample = self._as_calibrated(sample)
            self._tell_status(module, self.sample)
        for note in sample.notes:
            self.failures.tell(f"per-example gradients{self._whose}: {note}")
        nodes = frozenset(layer.node for layer in sample.layers.values())
        # Another graph may mean other rows; where examples cannot be run alone, to look again would tell nothing.
        another_graph = bool(self._nodes) and nodes != self._nodes and replayable(module) is None
        self._nodes = nodes
        if another_graph or (self._calibration is not None and not self._calibration.conclusive):
            self._calibration = None  # look again at the next sampled step

    def _has_known_scale(self, sample: GradientSample) -> bool:
        """Whether it is known by what to divide; where calibration showed nothing, it matters for numbers but 0."""
        norms = sample.squared_norms
        if self._calibration is None or self._calibration.conclusive or norms is None:
            return True
        if not bool(norms.any() & norms.isfinite().all()):
            return True
        self.failures.tell(
            f"per-example gradients{self._whose}: {self._calibration.note}; such batches are passed over"
        )
        return False

    def _tell_status(self, module: LightningModule, sample: GradientSample) -> None:
        """Say once what the rows of this fit mean; a batch that told nothing leaves that to the next."""
        if self._calibration is not None and not self._calibration.conclusive:
            return
        remark = "" if self._calibration is None or replayable(module) is None else self._calibration.note
        words = in_words(sample, self._replay, () if self._replay else self.compiled, remark, self._whose)
        self.failures.say(words, topic=f"status {sample.status}{self._whose}")

    def _as_calibrated(self, sample: GradientSample) -> GradientSample:
        if self._calibration is None or not self._calibration.note:
            return sample
        status = CONTRIBUTION if CONTRIBUTION in (sample.status, self._calibration.status) else sample.status
        return replace(sample, status=status, notes=(*sample.notes, self._calibration.note))

    @property
    def hook_seconds(self) -> float:
        """Host time that hooks have spent inside the backward so far."""
        return 0.0 if self._tap is None else self._tap.seconds

    def drop(self) -> None:
        """Forget an unfinished step and remove its hooks."""
        if self._tap is not None:
            self._tap.detach()
        self._tap = self.sample = None
        self.one_off_seconds = 0.0

    def _calibrate(self, trainer: Trainer, module: LightningModule, step: Rerun) -> None:
        reason = replayable(module)
        if reason is not None:
            self._calibration = Calibration(note=f"not calibrated ({reason}): the loss is taken for a mean")
            return
        parameters = self._parameters(trainer, module)
        try:
            self._calibration, self._layout = step.calibration(parameters, self._ambiguous, self._layout)
        except UnsupportedGradientError as refusal:
            self._fall_back(module, refusal)
            return
        if self._calibration.note and self._calibration.conclusive:
            self.failures.tell(f"per-example gradients: {self._calibration.note}")

    def _fall_back(self, module: LightningModule, refusal: UnsupportedGradientError) -> None:
        """The tap cannot read this model: replay it example by example, or say why that is no way out either."""
        reason = replayable(module)
        if isinstance(refusal, InseparableError):
            reason = "as for the same reason no example has a loss of its own"
        norms = [(n, part) for n, part in module.named_modules() if isinstance(part, BatchNorm)]
        coupled = [name for name, part in norms if part.training]
        if reason is None and coupled:
            reason = f"{coupled[0]} is a BatchNorm, which needs company in training mode"
        if reason is not None:
            self.refuse(f"per-example gradients{self._whose} are off: {refusal}; and replay is no way out, {reason}")
            return
        self._replay = True
        self.failures.tell(f"{refusal}; sampled steps replay the batch one example at a time instead, which is slow")

    def refuse(self, message: str) -> None:
        """Say why this model's gradients cannot be read, here or in another process, and leave them."""
        self._off, self.refusal = True, message
        self.failures.tell(message)
