"""What a sampled batch shows: the per-example gradients of its backward passes, and what the optimizer step did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cx._torch import BatchNorm
from lightning_cx.batch import targets_of
from lightning_cx.callbacks._trainer import unseen_batch
from lightning_cx.callbacks.distributed import whole_parameters
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit
from lightning_cx.callbacks.rerun import DRAWN, NOT_THEIR_MEAN, Rerun
from lightning_cx.gradients import (
    CONTRIBUTION,
    DIRECTIONS,
    EXACT,
    UNVERIFIED,
    AmbiguousLayoutError,
    Calibration,
    GradientSample,
    GradientTap,
    InseparableError,
    ParameterSketch,
    UnreachedError,
    UnsupportedGradientError,
    averaged_rows,
)
from lightning_cx.instruments import Needs, ParameterStep, Series
from lightning_cx.probe import ProbeSet, anything_compiled, compiled_parts, eagerly

PATIENCE = 100  # batches after a due one in which an optimizer that did not step in it may still do so


class Backwards:
    """Read every backward of a sampled batch, for every optimizer whose parameters it reaches.

    An optimizer steps along the sum of all backward passes since its gradients were last cleared. These are its
    samples; a backward that only passes through its parameters (a generator's, through the discriminator) is not one of
    them. Under automatic optimisation there is one backward for each step, and of a closure that runs several times the
    first counts: it is the one at the weights that the step starts from.

    Args:
        fit: That is sampled.
        failures: Where refusals are told.
        needs: What the instruments want.

    Attributes:
        owed: Numbers of the optimizers that have not stepped since they were due; alike in all processes of a fit.
    """

    def __init__(self, fit: Fit, failures: Failures, needs: Sequence[Needs]) -> None:
        self._fit, self._failures = fit, failures
        optimizers = len(fit.trainer.optimizers)
        # Summed gradients are as large as the whole model, and a sharded one is sharded because that is too large.
        sums = fit.world_size > 1 and not fit.is_sharded
        self._numbers: list[int | None] = list(range(optimizers)) if optimizers > 1 else [None]
        self.samplers = [GradientSampler(fit, failures, needs, sums, number) for number in self._numbers]
        self.eager = False
        self._stance = ExitStack()
        self._pending: dict[int, list[GradientSample]] = {}
        self._taken: dict[int, list[GradientSample]] = {}
        self._active: list[int] = []
        self.owed: set[int] = set()
        self._owing_since = 0
        self._automatic = self._done = False

    @property
    def off(self) -> bool:
        """Whether nothing of this model can be read; the reasons were told."""
        return all(sampler.off for sampler in self.samplers)

    def calibrates(self, examples: int) -> bool:
        """Return whether a sampled step on so many examples begins with a comparison of a few of them alone."""
        return any(sampler.calibrates(examples) for sampler in self.samplers)

    @property
    def hook_seconds(self) -> float:
        """Host time that hooks have spent inside the backward so far."""
        return sum(sampler.hook_seconds for sampler in self.samplers)

    @property
    def one_off_seconds(self) -> float:
        """Time that the step spent on what will not be needed again."""
        return sum(sampler.one_off_seconds for sampler in self.samplers)

    def forget_calibration(self) -> None:
        """Compare a few examples alone once more: another process does."""
        for sampler in self.samplers:
            sampler.forget_calibration()

    def begin(self, batch: Any, batch_idx: int, examples: int, due: bool = True) -> None:
        """Prepare for the step that is about to run; one that is not due is for optimizers that did not step since."""
        self.drop()
        self._automatic, self._done = self._fit.module.automatic_optimization, False
        self._active = list(range(len(self.samplers))) if due else sorted(self.owed)
        self._owing_since += 1
        for number in self._active:
            self.samplers[number].begin(batch, batch_idx, examples)
            self._take_up(number)
        active = [self.samplers[number] for number in self._active if self.samplers[number].taps]
        # Held to the end of the step, since a closure may run `training_step` more than once.
        self.eager = bool(active) and (anything_compiled() or any(sampler.compiled for sampler in active))
        if self.eager:
            self._stance.enter_context(eagerly())

    def attach(self, loss: Tensor) -> None:
        """Tap the backward that is about to start."""
        if self._automatic and self._done:
            return
        for number in self._active:
            if not self._automatic and self._pending.get(number) and _cleared(self._fit, self._numbers[number]):
                del self._pending[number]
            self.samplers[number].attach(loss, self.eager)

    def finish(self) -> None:
        """Take what the backward showed."""
        self._done = True
        for number in self._active:
            self.samplers[number].finish()
            self._take_up(number)

    def _take_up(self, number: int) -> None:
        sampler = self.samplers[number]
        if sampler.sample is not None:
            self._pending.setdefault(number, []).append(sampler.sample)
            sampler.sample = None

    def stepping(self, optimizer: Optimizer) -> None:
        """Take what has been accumulated for an optimizer that is about to step."""
        for number in self._active:
            own = self._fit.trainer.optimizers[number]
            if own is optimizer and self._pending.get(number) and number not in self._taken:
                self._taken[number] = self._pending.pop(number)

    def samples(self) -> list[tuple[Series, GradientSample]]:
        """Return what the batch showed; call once, at its end."""
        found = dict(self._taken)
        if len(self.samplers) == 1 and not found:
            found = self._pending  # with accumulation the step comes later, and there is only one it can be of
        self._settle_debts(found)
        return [
            (Series(optimizer, backward), sample)
            for optimizer, of_optimizer in sorted(found.items())
            for backward, sample in enumerate(of_optimizer)
        ]

    def _settle_debts(self, found: dict[int, list[GradientSample]]) -> None:
        """Note which optimizers made no step: they are sampled when they do."""
        if len(self.samplers) == 1:
            return
        before, after = self.owed, {n for n in self._active if n not in found and not self.samplers[n].off}
        if not before:
            self._owing_since = 0
        elif self._owing_since >= PATIENCE:
            names = ", ".join(map(str, sorted(after)))
            self._failures.tell(
                f"optimizer {names} made no step in {PATIENCE} batches after a sample was due, so its gradients are "
                "not measured there; step optimizers through self.optimizers(), since others cannot be followed"
            )
            after = set()
        self.owed = after

    def drop(self) -> None:
        """Forget an unfinished step, remove its hooks and let compiled parts be compiled again."""
        self._stance.close()
        self.eager = False
        for sampler in self.samplers:
            sampler.drop()
        self._pending, self._taken = {}, {}


def _cleared(fit: Fit, optimizer: int | None) -> bool:
    """Return whether the gradients of an optimizer were zeroed after the last backward."""
    gradients = [p.grad for p in fit.held_parameters(optimizer).values()]
    return not any(bool(gradient.count_nonzero()) for gradient in gradients if gradient is not None)


class GradientSampler:
    """Read the per-example gradients of one backward: by the tap if it can read the model, by replay if not.

    Args:
        fit: That is sampled.
        failures: Where refusals are told.
        needs: What the instruments that are shown gradients want of them; empty where there are none.
        sums: Whether to keep what the examples add up to, for other processes.
        optimizer: Number of the optimizer whose parameters are read; None reads all that the module has.

    Attributes:
        sample: What the last finished backward showed, or None.
        one_off_seconds: Time that the last step spent on what will not be needed again.
        compiled: Names of the parts of the module that are compiled.
        off: Whether this model's gradients cannot be read at all; the reason was told.
        refusal: Why, in words.
    """

    def __init__(
        self, fit: Fit, failures: Failures, needs: Sequence[Needs], sums: bool = False, optimizer: int | None = None
    ) -> None:
        self._fit, self._failures = fit, failures
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
        self._last_tap: tuple[list[object], GradientTap] | None = None
        self._calibration: Calibration | None = None
        self._layout: bool | None = None
        self._ambiguous = False
        self._nodes: frozenset[str] = frozenset()
        self._replay = False
        self._refusal: UnsupportedGradientError | None = None  # that the next backward may get round
        self._rows: int | None = None  # what the loss averages, where that is not examples
        self.off = False
        self.refusal = ""
        self._examples = self._compared = 0

    @property
    def taps(self) -> bool:
        """Whether the next backward will be read as it runs."""
        return self._wanted and not (self._replay or self.off)

    def calibrates(self, examples: int) -> bool:
        """Return whether a step on so many examples begins with a comparison of a few of them alone."""
        return self.taps and (self._calibration is None or self._compared < 2 <= examples)

    def begin(self, batch: Any, batch_idx: int, examples: int) -> None:
        """Prepare for the step that is about to run: calibrate once, or replay where the tap is refused."""
        self.drop()
        self._examples = examples
        if self.off or not self._wanted:
            return
        start = perf_counter()
        if not any(p.requires_grad for p in self._parameters.values()):
            self.refuse("the module has no trainable parameter, so there are no gradients to measure")
            return
        if (unseen := unseen_batch(self._fit.module)) is not None:
            self.refuse(
                f"per-example gradients are off: {unseen}, so the examples of a loss cannot be determined from "
                "outside: let training_step take the batch"
            )
            return
        step = Rerun(self._fit, batch, batch_idx, examples)
        if self._replay:
            self.sample = step.sample(self._projections, self._coordinates)
            for note in {NOT_THEIR_MEAN, DRAWN}.intersection(self.sample.notes):
                self._failures.tell(f"per-example gradients: {note}")
            self._tell_status(self.sample)
        elif self.calibrates(examples):
            self._compared, self.compiled = examples, compiled_parts(self._fit.module)
            self._calibrate(step)
            self.one_off_seconds = perf_counter() - start

    def forget_calibration(self) -> None:
        """Compare a few examples alone once more: another process does."""
        self._calibration = None

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return self._fit.held_parameters(self._optimizer)

    def attach(self, loss: Tensor, eager: bool) -> None:
        """Tap the backward that is about to start.

        Args:
            loss: What the backward starts from.
            eager: Whether compiled parts, if there are any, run as they were written in this step.
        """
        if self._tap is not None or self._replay or self.off or self._calibration is None:
            return
        if self._refusal is not None and not self._averages_others(loss):
            return
        scale = self._fit.gradient_scale * (self._examples if self._calibration.sums else 1)
        parameters = self._parameters
        if self._optimizer is not None and not any(p.requires_grad for p in parameters.values()):
            return  # it is the turn of another optimizer
        tap = self._tap_of(whole_parameters(self._fit.module, parameters), scale)
        try:
            tap.attach(loss)
        except AmbiguousLayoutError as refusal:
            if self._ambiguous or self._fit.why_not_replayed() is not None:
                self._fall_back(refusal)
            else:
                self._calibration, self._ambiguous = None, True  # the next sampled step settles it
        except UnsupportedGradientError as refusal:
            if self._optimizer is not None and isinstance(refusal, UnreachedError):
                return  # a loss of the parameters of another optimizer
            if eager or not anything_compiled():
                self._refusal = refusal
                if self._averages_others(loss):
                    self.attach(loss, eager)
            # Else a function that the module does not hold was compiled just now: the next sampled step runs eagerly.
        else:
            self._tap = tap

    def _averages_others(self, loss: Tensor) -> bool:
        """Return whether a loss that cannot be read by example averages another number of rows; these are read then."""
        refusal, self._refusal = self._refusal, None
        rows = averaged_rows(loss)
        assert refusal is not None
        if rows is None or rows < 2 or rows % self._examples == 0 or self._rows is not None:
            self._calibration = None
            self._fall_back(refusal, final=True)
            return False
        self._rows = rows
        why = f"the loss averages {rows} rows, the batch has {self._examples} examples: gradients are those of the rows"
        self._calibration = Calibration(UNVERIFIED, note=why)
        self._failures.tell(f"per-example gradients{self._whose}: {why}")
        return True

    def _tap_of(self, parameters: Mapping[str, Tensor], scale: float) -> GradientTap:
        """Return the tap of the last sample where it would be made alike: it remembers the plan of its graph."""
        made_for = [
            (self._rows or self._examples, self._layout),
            *((name, id(p), p.requires_grad) for name, p in parameters.items()),
        ]
        if self._last_tap is None or self._last_tap[0] != made_for:
            tap = GradientTap(
                parameters.items(),
                self._rows or self._examples,
                self._gram,
                norms=self._norms,
                projections=self._projections,
                coordinates=self._coordinates,
                per_layer=self._per_layer,
                loss_scale=scale,
                batch_first=self._layout,
                sums=self._sums,
            )
            self._last_tap = made_for, tap  # the tap holds its parameters, so that no other object gets their ids
        tap = self._last_tap[1]
        tap.loss_scale = scale
        return tap

    def finish(self) -> None:
        """Take what the backward showed."""
        if self._tap is None:
            return
        tap, self._tap = self._tap, None
        try:
            sample = tap.finish()
        except UnsupportedGradientError as refusal:
            self._fall_back(refusal, final=True)
            return
        tap.sample = None  # nothing is held between samples
        if self._fit.is_sharded:
            self._last_tap = None  # it holds the whole parameters, which the strategy is about to free
        if self._has_known_scale(sample):
            self.sample = self._as_calibrated(sample)
            self._tell_status(self.sample)
        for note in sample.notes:
            self._failures.tell(f"per-example gradients{self._whose}: {note}")
        nodes = frozenset(layer.node for layer in sample.layers.values())
        # Another graph may mean other rows; where examples cannot be run alone, to look again would tell nothing.
        another_graph = bool(self._nodes) and nodes != self._nodes and self._fit.why_not_replayed() is None
        self._nodes = nodes
        if another_graph or (self._calibration is not None and not self._calibration.conclusive):
            self._calibration = None  # look again at the next sampled step

    def _has_known_scale(self, sample: GradientSample) -> bool:
        """Return whether it is known by what to divide; zeros need no divisor, whatever calibration found."""
        norms = sample.squared_norms
        if self._calibration is None or self._calibration.conclusive or norms is None:
            return True
        if not bool(norms.any() & norms.isfinite().all()):
            return True
        self._failures.tell(f"per-example gradients{self._whose}: {self._calibration.note}; such batches are skipped")
        return False

    def _tell_status(self, sample: GradientSample) -> None:
        """Say once what the rows of this fit mean; a batch that told nothing leaves that to the next."""
        if self._calibration is not None and not self._calibration.conclusive:
            return
        remark = "" if self._calibration is None or self._calibration.coupled else self._calibration.note
        words = in_words(sample, self._replay, () if self._replay else self.compiled, remark, self._whose)
        self._failures.say(words, topic=f"status {sample.status}{self._whose}")

    def _as_calibrated(self, sample: GradientSample) -> GradientSample:
        found = self._calibration
        if found is None:
            return sample
        status = max(sample.status, found.status, key=(EXACT, UNVERIFIED, CONTRIBUTION).index)
        notes = (*sample.notes, found.note) if found.note else sample.notes
        return replace(sample, status=status, notes=notes, multiple=float(self._examples if found.sums else 1))

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

    def _calibrate(self, step: Rerun) -> None:
        reason = self._fit.why_not_replayed()
        if reason is not None:
            self._calibration = Calibration.unverified(reason)
            return
        parameters = self._parameters
        try:
            self._calibration, self._layout = step.calibration(parameters, self._ambiguous, self._layout)
        except UnsupportedGradientError as refusal:
            self._fall_back(refusal)
            return
        if self._calibration.coupled and self._calibration.conclusive:
            self._failures.tell(f"per-example gradients: {self._calibration.note}")

    def _fall_back(self, refusal: UnsupportedGradientError, final: bool = False) -> None:
        """Replay a model that the tap cannot read example by example, or say why that is no way out either.

        Args:
            refusal: Of the tap.
            final: Whether the loss itself was looked at; it may average other things than the examples.
        """
        if not final and self._rows is None and not isinstance(refusal, InseparableError):
            self._refusal, self._calibration = refusal, Calibration.unverified(str(refusal))
            return
        reason = self._fit.why_not_replayed()
        if isinstance(refusal, InseparableError):
            reason = "since for the same reason no example has a loss of its own"
        coupled = [
            name for name, part in self._fit.module.named_modules() if isinstance(part, BatchNorm) and part.training
        ]
        if reason is None and coupled:
            reason = f"{coupled[0]} is a BatchNorm, which needs more than one example in training mode"
        if reason is not None:
            self.refuse(f"per-example gradients{self._whose} are off: {refusal}; and replay does not help, {reason}")
            return
        self._replay = True
        self._failures.tell(f"{refusal}; sampled steps replay the batch one example at a time instead, which is slow")

    def refuse(self, message: str) -> None:
        """Say why this model's gradients cannot be read, here or in another process, and leave them."""
        self.off, self.refusal = True, message
        self._failures.tell(message)


MEANING = {
    EXACT: "each row is the derivative of the example's own loss",
    CONTRIBUTION: "each row is N times the example's share of the batch gradient",
    UNVERIFIED: (
        "each row is N times the example's share of the batch gradient, which is the derivative of its own loss if the "
        "loss is a mean of such"
    ),
}
ALONE = "each row is the derivative of the loss that the example has alone"
NAMED = 3  # compiled parts that are named before the list is cut


def in_words(
    sample: GradientSample, replayed: bool = False, compiled: Sequence[str] = (), remark: str = "", whose: str = ""
) -> str:
    """Return one line on a sample: what its rows mean, how they were read, and what this does to the sampled steps.

    Args:
        sample: The first sample of its status.
        replayed: Whether examples were replayed one at a time instead of tapped.
        compiled: Names of compiled parts, which run eagerly on sampled steps.
        remark: What else to say.
        whose: Which of several optimizers they belong to.

    Example:
        >>> from lightning_cx.gradients import GradientSample
        >>> in_words(GradientSample(8), replayed=True, remark="slow")
        "per-example gradients: exact, 8 examples replayed one at a time (0 parameters); each row is the derivative of
        the example's own loss; slow"
    """
    how = "read from the training's own backward"
    if replayed:
        how = f"{sample.batch_size} examples replayed one at a time"
    remarks = [ALONE if replayed and sample.status == UNVERIFIED else MEANING[sample.status]]
    if compiled:
        names = ", ".join(compiled[:NAMED]) + ", ..." * (len(compiled) > NAMED)
        remarks.append(f"sampled steps run without torch.compile ({names})")
    remarks += [remark] * bool(remark)
    what = f"per-example gradients{whose}: {sample.status}, {how} ({len(sample.layers)} parameters)"
    return "; ".join([what, *remarks])


class ParameterFollower:
    """Sketch the parameters before a sampled batch and after the optimizer step that it belongs to.

    Where gradients are accumulated the step comes some batches later; until then nothing else is begun.

    Args:
        fit: Whose parameters are followed.
        failures: Where refusals are told.
        wanted: Whether an instrument asks for it.
    """

    def __init__(self, fit: Fit, failures: Failures, wanted: bool) -> None:
        self._fit = fit
        self._sketch = ParameterSketch(DIRECTIONS) if wanted and not fit.is_sharded else None
        self._before: tuple[int, Tensor] | None = None
        if wanted and fit.is_sharded:
            failures.tell(
                "the steps of the parameters are not followed, since no process of a sharded module has them whole: "
                "pass TailIndex(trajectory=False), and leave Dwelling and TrajectoryGeometry out"
            )

    @property
    def waiting(self) -> bool:
        """Whether a step was begun and has not been seen through."""
        return self._before is not None

    def begin(self) -> None:
        """Sketch the parameters before a sampled batch."""
        if self._sketch is not None and self._before is None:
            self._before = (self._fit.steps, self._sketch(self._fit.module.named_parameters()))

    def end(self) -> ParameterStep | None:
        """After any batch, return what the step did, once it was made."""
        if self._sketch is None or self._before is None or self._fit.steps == self._before[0]:
            return None
        (_, before), self._before = self._before, None
        after = self._sketch(self._fit.module.named_parameters())
        return ParameterStep(after, after - before, self._fit.training_examples)


class BatchPart:
    """Find one row for each example in a batch, where an instrument needs it.

    Args:
        name: What is looked for.
        wanted: Whether an instrument needs it.
        read: Finds it in a batch of so many examples; a `ValueError` says why it cannot be had.
        refusal: What is lost without it, in words.
        failures: Where refusals are told.
    """

    def __init__(
        self, name: str, wanted: bool, read: Callable[[Any, int], Tensor], refusal: str, failures: Failures
    ) -> None:
        self._name, self._wanted, self._read, self._refusal, self._failures = name, wanted, read, refusal, failures

    def read(self, batch: Any, examples: int) -> Tensor | None:
        """Return [N, d], or None where nothing needs it or it cannot be had; the reason was told."""
        if not self._wanted or self._failures.off(self._name):
            return None
        with self._failures.guard(self._name):  # the user's own code may run here
            try:
                return self._read(batch, examples)
            except ValueError as refusal:
                self._failures.tell(f"{self._refusal}: {refusal}", self._name)
        return None


def features_and_targets(probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> tuple[BatchPart, BatchPart]:
    """Return what is read of batches: features by the probe's rule, and targets by name or place."""
    unordered = "the examples of a batch cannot be ordered by their inputs"
    unknown = "the targets of a batch are not known"

    def read_targets(batch: Any, examples: int) -> Tensor:
        return targets_of(batch, probe.anatomies.of(batch, examples), probe.anatomies.spec)

    return (
        BatchPart("features of a batch", any(n.features for n in needs), probe.features_of, unordered, failures),
        BatchPart("targets of a batch", any(n.targets for n in needs), read_targets, unknown, failures),
    )
