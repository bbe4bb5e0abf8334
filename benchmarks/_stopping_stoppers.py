"""What decides when to stop, each shown the same checks of one run: our rules, and losses on examples held out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time
from types import SimpleNamespace
from typing import Any

import torch
from _stopping_data import Data
from _stopping_problems import Problem
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from lightning_cx.functional import stopping
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.probe import ProbeReading, ProbeSet
from lightning_cx.rules import Elapsed, PathLeaveOneOut, PathStopper, RefusedError, ResidualStopper, StoppingRule

PATIENCE = 10  # checks of the rivals that count them, as many as our own rule's
FULL = "full"  # the path on all training examples


@dataclass(frozen=True)
class Look:
    """What can be seen at one check.

    Attributes:
        number: Of the check, from 0.
        step: Optimizer steps done.
        network: As it is now, in evaluation mode.
        data: What it is trained on.
        problem: Whose losses, batches and augmentation these are.
        optimizer: With its state and present learning rates; None in tests.
        time: Learning rates of all steps since the last check, summed; of the first parameter group.
        loss: On all training examples; nan on the paths that hold examples out.
        held_out_loss: On examples kept from training; nan if there are none.
        loss_seconds: That whichever loss took.
        probe: The callback's default probe, filled; None on the paths that hold examples out or if it refuses.
        probe_rows: Rows of `data` that are in the probe.
        reading: Of the probe.
        reading_seconds: That the reading took.
        refusal: Of the probe: why there is no reading.
        gradients: Of the probe's first examples, at the first check.
    """

    number: int
    step: int
    network: nn.Module
    data: Data
    problem: Problem | None = None
    optimizer: torch.optim.Optimizer | None = None
    time: float = 0.0
    loss: float = math.nan
    held_out_loss: float = math.nan
    loss_seconds: float = 0.0
    probe: ProbeSet | None = None
    probe_rows: Tensor | None = None
    reading: ProbeReading | None = None
    reading_seconds: float = 0.0
    refusal: str = ""
    gradients: GradientSample | None = None


@dataclass(frozen=True)
class Epoch:
    """What can be seen at the end of an epoch.

    Attributes:
        step: Optimizer steps done.
        last_step: Likewise at the end of the epoch before.
        predictions: ``[n]`` class that each training example was given when it was last met, before that step.
        network: As it is now, in evaluation mode.
        data: What it is trained on.
        batch: Examples per step.
    """

    step: int
    last_step: int
    predictions: Tensor
    network: nn.Module
    data: Data
    batch: int


@dataclass(frozen=True)
class Stop:
    """How one way of stopping ended a run.

    Attributes:
        step: Where; None if it did not stop.
        kept: Step whose weights it keeps.
        refusal: Why it did not act at all; empty if it did.
        seconds: Of the processor, that it took to look, up to the stop.
        path: Which of the run's paths it went along.
    """

    step: int | None
    kept: int
    refusal: str = ""
    seconds: float = field(default=0.0, compare=False)
    path: str = FULL


class Stopper(ABC):
    """Sees every check, or every epoch, until it stops.

    Attributes:
        stopped: The step at which it stopped; None before.
        refusal: Why it does not act.
        by_epoch: Whether it looks at the ends of epochs as well.
        seconds: That its looks took.
    """

    stopped: int | None = None
    refusal: str = ""
    by_epoch: bool = False
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return self.stopped is not None or bool(self.refusal)

    def look(self, look: Look) -> None:
        if not self.done:
            with self.timed():
                fires = self.fires(look)
            if fires:
                self.stopped = look.step

    def look_at_epoch(self, epoch: Epoch) -> None:
        if self.by_epoch and not self.done:
            with self.timed():
                fires = self.fires_after(epoch)
            if fires:
                self.stopped = epoch.step

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = process_time()
        yield
        self.seconds += process_time() - start

    @abstractmethod
    def fires(self, look: Look) -> bool:
        """Take in a check."""

    def fires_after(self, epoch: Epoch) -> bool:
        """Take in an epoch."""
        return False

    def kept(self, last: int) -> int:
        """The step whose weights remain, of a run of `last` steps: unless overridden, those at the stop."""
        return last if self.stopped is None else self.stopped

    def result(self, last: int, path: str = FULL) -> Stop:
        return Stop(self.stopped, last if self.refusal else self.kept(last), self.refusal, self.seconds, path)


class Rule(Stopper):
    """One of ours, as `ComplexityEarlyStopping` asks it."""

    def __init__(self, rule: StoppingRule) -> None:
        self.stopper = ResidualStopper(rule)

    def fires(self, look: Look) -> bool:
        self.refusal = look.refusal
        self.seconds += look.reading_seconds
        if look.reading is None:
            return False
        try:
            decision = self.stopper.check(look.step, look.reading)
            if look.gradients is not None and look.gradients.gram is not None:
                gram = look.gradients.gram
                self.stopper.check_gradients(gram, look.reading.features[: len(gram)])
        except RefusedError as error:
            self.refusal = str(error)
            return False
        return decision.stop

    def kept(self, last: int) -> int:
        if self.stopper.rule.keeps_best and (self.stopped is not None or self.stopper.rule.past_best):
            assert self.stopper.best_step is not None
            return self.stopper.best_step
        return super().kept(last)


class LeftOut(Stopper):
    """`PathLeaveOneOut`, as `ComplexityEarlyStopping` asks it."""

    def __init__(self) -> None:
        self.stopper = PathStopper(PathLeaveOneOut())
        self.sketch: stopping.GradientSketch | None = None
        self.before: dict[str, float] | None = None

    def fires(self, look: Look) -> bool:
        self.refusal = look.refusal
        if look.probe is None or look.optimizer is None or look.problem is None:
            return False
        network, problem = look.network, look.problem
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if self.sketch is None:
            self.sketch = stopping.GradientSketch({name: p.numel() for name, p in parameters.items()})
        now = stopping.preconditioner(look.optimizer, parameters)
        before = now.scale if self.before is None else self.before
        time = {name: look.time * (now.scale[name] + before[name]) / 2 for name in parameters}
        decay = float(look.optimizer.param_groups[0].get("weight_decay", 0))
        coupled = 1.0 if "AdamW" in type(look.optimizer).__name__ else 0.0
        elapsed = Elapsed(time, {n: look.time * decay if coupled else time[n] * decay for n in time}, now.known, "")
        try:
            passes = look.probe.passes(network, lambda batch: problem.losses(network(batch[0]), batch[1]).mean())
            seen = passes.residual_gradients(self.sketch, self.stopper.kind)
            self.stopper.kind = self.stopper.kind or seen.kind
            self.stopper.training_examples = len(look.data.x)
            found = seen.gradients, seen.sizes, seen.bend, seen.directions
            errors = self.stopper.errors(seen, self.stopper.follow(found, self.sketch, elapsed))
        except (RefusedError, UnsupportedGradientError) as error:
            self.refusal = str(error)
            return False
        self.before = now.scale if look.number else None
        return self.stopper.decide(look.step, errors).stop

    def kept(self, last: int) -> int:
        if self.stopped is not None or self.stopper.rule.past_best:
            assert self.stopper.best_step is not None
            return self.stopper.best_step
        return super().kept(last)


class Lightning(Stopper):
    """Lightning's `EarlyStopping`, run by its own code.

    Args:
        held_out: Watch the loss on examples held out, and keep the best weights as `ModelCheckpoint` would; else watch
            the training loss and keep the last.
    """

    def __init__(self, held_out: bool) -> None:
        self.held_out = held_out
        self.monitor = "val_loss" if held_out else "train_loss"
        self.callback = EarlyStopping(monitor=self.monitor, patience=PATIENCE)
        self.trainer: Any = SimpleNamespace(
            fast_dev_run=False,
            should_stop=False,
            current_epoch=0,
            strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        )
        self.best = 0

    def fires(self, look: Look) -> bool:
        value = look.held_out_loss if self.held_out else look.loss
        self.seconds += look.loss_seconds
        self.trainer.callback_metrics = {self.monitor: torch.tensor(value)}
        self.callback._run_early_stopping_check(self.trainer)
        if self.callback.wait_count == 0 and not self.trainer.should_stop:
            self.best = look.step
        return self.trainer.should_stop

    def kept(self, last: int) -> int:
        return self.best if self.held_out else super().kept(last)
