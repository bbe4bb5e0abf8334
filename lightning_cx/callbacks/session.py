"""One fit, seen through the instruments: decides when to look, looks, and keeps the books."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_cx.callbacks._trainer import LightningModule, Trainer, batch_size_of, has_tensorboard, log_step
from lightning_cx.callbacks.batch_part import features_and_targets
from lightning_cx.callbacks.budget import (
    GRADIENTS,
    PICTURES,
    PROBE,
    Cadence,
    EveryNSteps,
    FullBatches,
    Ledger,
    Schedule,
    cadence_for,
)
from lightning_cx.callbacks.dispatch import FIRST, Concerned, OwnPasses, Panel
from lightning_cx.callbacks.distributed import Shared, together
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.probing import MonitoredProbe
from lightning_cx.callbacks.publishing import Publisher
from lightning_cx.callbacks.sampling import Backwards, ParameterFollower
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import Observation, Reading
from lightning_cx.probe import ProbeSet
from lightning_cx.tensorboard import tags
from lightning_cx.tensorboard.tags import Series

TRAJECTORY = "the trajectory"


class Session:
    """The running state of one fit.

    Where several processes share a fit, all of them sample at the same steps; the first one measures what they saw
    together, and the others hear the numbers.

    Args:
        panel: The instruments.
        probe: The fixed examples.
        schedule: When to measure.
        strict: Raise where sampling fails.
    """

    def __init__(self, panel: Panel, probe: ProbeSet, schedule: Schedule, strict: bool) -> None:
        self.panel = panel
        self.schedule = schedule
        self.ledger, self.failures = Ledger(), Failures(strict)
        needs, self._asking = panel.needs, panel.asking
        self.backwards = Backwards(self.failures, needs)
        self.features, self.targets = features_and_targets(probe, needs, self.failures)
        self.follower = ParameterFollower(needs)
        self.probe = MonitoredProbe(probe, needs, self.failures)
        self.own = OwnPasses(panel, self.probe, self.failures)
        self.publisher = Publisher(self.failures)
        self.shared: Shared | None = None
        self.sampling = False
        self._rhythm = schedule, self.ledger, self._wanted, self.probe.reader.estimate, self.own.works
        self._cadence = Cadence(*self._rhythm)
        self._readings: list[Reading] = []
        self._examples = self._step = 0
        self._board = False
        self.full_batches = FullBatches()
        self._last_step: int | None = None
        self._step_started = 0.0
        self._step_cost = 0.0  # seconds that this step has taken of ours

    def start(self, trainer: Trainer) -> None:
        """Begin the fit: start the clock and look at the training data.

        Raises:
            ValueError: Under `strict`, if the training data cannot make a probe.
        """
        self.ledger.start()
        self._cadence = cadence_for(trainer, *self._rhythm)
        self.shared = Shared(self.failures) if trainer.world_size > 1 else None
        self._board = has_tensorboard(trainer)
        self.backwards.start(trainer)
        self.follower.start(trainer.lightning_module, self.failures)
        self.own.start(trainer)
        with self.ledger.timed():
            if self._uses_probe:
                self.probe.start(trainer)

    def begin_step(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before a batch: decide whether to sample it."""
        self._step_started = perf_counter()
        self.sampling = False
        self.backwards.drop()
        if self.probe.reader.streaming and self._uses_probe:
            self.probe.keep(trainer, batch)
        self._cadence.begin_batch(trainer)
        due = self.full_batches.owed or self._cadence.due(GRADIENTS, trainer)
        # At most one sample for each optimizer step, however many batches it accumulates.
        due_again = bool(self.backwards.owed) and not self.failures.off(GRADIENTS)
        if (due or due_again) and log_step(trainer) != self._last_step:
            with self.failures.guard(GRADIENTS, last=False):
                self._begin_sample(trainer, module, batch, batch_idx, due)
        self._step_cost = perf_counter() - self._step_started

    def _begin_sample(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, due: bool) -> None:
        if self._is_full(trainer, batch):
            self._last_step = log_step(trainer)
            self._do(lambda: self.backwards.begin(trainer, module, batch, batch_idx, self._examples, due))
            if not self.failures.off(TRAJECTORY):
                with self.failures.guard(TRAJECTORY, last=False):
                    self.follower.begin(trainer, module)

    def _is_full(self, trainer: Trainer, batch: Any) -> bool:
        """Whether the batch is as large as those before, in every process by what it is used to."""
        self._examples = together(trainer, lambda: batch_size_of(trainer, batch))
        full = self.full_batches.take(self._examples)
        if self.shared is not None:
            full = self.shared.all_full(trainer, full, self.backwards, self._examples)
            self.full_batches.owed = not full
        return full

    def attach(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Before a backward of a sampled step."""
        with self._timed():
            self._do(lambda: self.backwards.attach(trainer, module, loss))

    def finish(self, module: LightningModule) -> None:
        """After a backward of a sampled step."""
        with self._timed():
            self._step_cost += self.backwards.hook_seconds
            self._do(lambda: self.backwards.finish(module), last=True)

    def stepping(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Before an optimizer step of a sampled batch."""
        with self._timed():
            self._do(lambda: self.backwards.stepping(trainer, optimizer))

    def end_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """After a batch: measure what was sampled, read the probe if it is due, and publish."""
        ended = perf_counter()
        sampled = self.sampling
        self._step = log_step(trainer)
        self._cadence.end_batch(None if sampled else ended - self._step_started - self._step_cost)
        if self.follower.waiting:
            with self._alone():
                self._follow(trainer, module)
        if sampled:
            self._settle(trainer, module, batch, ended - self._step_started)
        probe_is_due = self._cadence.due(PROBE, trainer)
        works = self.own.due(trainer, lambda work: self._cadence.due(work, trainer))
        if self._readings or probe_is_due or works:
            with self.ledger.timed(), self._alone():
                self._read_and_publish(trainer, module, probe_is_due, works)
        else:
            self._step_cost += perf_counter() - ended
        if self.shared is not None and (sampled or probe_is_due or works):
            with self._timed():
                self.shared.tell_all(trainer, self.publisher)
        self.ledger.other += self._step_cost
        self._step_cost = 0.0

    def _follow(self, trainer: Trainer, module: LightningModule) -> None:
        with self._timed(), self.failures.guard(TRAJECTORY):
            made = self.follower.end(trainer, module)
            if made is not None:
                self._measure(trainer, Observation(self._step, trajectory=made), lambda needs, _: needs.trajectory)

    def _settle(self, trainer: Trainer, module: LightningModule, batch: Any, seconds: float) -> None:
        """Measure a sampled step that took so many seconds and book what it cost."""
        plain = self._cadence.step_seconds
        if self.backwards.eager and plain is not None:  # what compiled code would have saved is our cost too
            self._step_cost = max(self._step_cost, seconds - plain)
        with self._timed(), self.failures.guard(GRADIENTS, last=self.shared is not None):
            found = self.backwards.samples()
            if self.shared is not None:
                found = self.shared.merge(trainer, module, self.backwards, found)
            with self._alone():
                for series, sample in found:
                    self._measure_gradients(trainer, batch, series, sample)
        self.ledger.book(GRADIENTS, self._step_cost, one_off=self.backwards.one_off_seconds)
        self._step_cost = 0.0
        self.backwards.drop()
        self.sampling = False

    def _read_and_publish(
        self, trainer: Trainer, module: LightningModule, probe_is_due: bool, works: Sequence[str]
    ) -> None:
        if probe_is_due:
            self._read_probe(trainer, module)
        for work in works:
            self._show(trainer, module, work)
        if self._readings:
            self._publish(trainer)
            if self._cadence.due(PICTURES, trainer):
                self._draw(trainer)

    def end_epoch(self, trainer: Trainer) -> None:
        """After an epoch: a stream that is over has shown all its examples, and no step is open."""
        self.backwards.drop()
        self.probe.close(trainer, self._uses_probe)

    def end(self, trainer: Trainer) -> None:
        """At the end of the fit: draw the last pictures if they can be afforded, and say what all of it cost."""
        self._cadence.end()
        if self._cadence.due(PICTURES, trainer):
            self._draw(trainer)
        self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        readings, self._readings = self._readings, []
        with self.failures.guard("logging"):
            self.publisher.publish(trainer, readings, self._step, {tags.OVERHEAD: self.ledger.share})

    def _draw(self, trainer: Trainer) -> None:
        start = perf_counter()
        self._cadence.drawn()
        with self.failures.guard(PICTURES):
            self.publisher.draw(trainer)
        self.ledger.book(PICTURES, perf_counter() - start)

    def never_done(self) -> list[str]:
        """Kinds of work that were wanted and never done, because the run was too short for the budget."""
        if isinstance(self.schedule, EveryNSteps):
            return []
        works = [GRADIENTS] if self.probe.reader.streaming else [GRADIENTS, PROBE, *(w.name for w in self.own.works)]
        return [work for work in works if self._wanted(work) and work not in self.ledger.accounts]

    def _wanted(self, work: str) -> bool:
        if self.failures.off(work):
            return False
        if work == PICTURES:
            return self._board and self.publisher.has_pictures
        if work not in (GRADIENTS, PROBE):
            return self.own.wanted(work)
        live = [needs for name, needs in self._asking if not self.failures.off(name)]
        if work == GRADIENTS:
            return any((needs.gradients and not self.backwards.off) or needs.trajectory for needs in live)
        return not self.probe.refused and any(needs.probe for needs in live)

    @property
    def _uses_probe(self) -> bool:
        return any(map(self._wanted, (PROBE, *(work.name for work in self.own.works))))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self._step_cost += perf_counter() - start

    def _alone(self) -> AbstractContextManager[None]:
        """Around what the first process does without the others, who would wait for it."""
        return nullcontext() if self.shared is None else self.shared.holding_back()

    def _do(self, work: Callable[[], None], last: bool = False) -> None:
        """Do a part of sampling a step; if it fails the step is not sampled, and what follows forgives nothing.

        What fails in one of several processes waits until all can hear of it, and they all go on until then.
        """
        self.sampling = self.shared is not None
        with self.failures.guard(GRADIENTS, last) if self.shared is None else self.shared.holding_back():
            work()
            self.sampling = True

    def _measure_gradients(self, trainer: Trainer, batch: Any, series: Series, sample: GradientSample) -> None:
        if not trainer.is_global_zero:
            return
        features, targets = (part.read(batch, self._examples) for part in (self.features, self.targets))
        observation = Observation(self._step, gradients=sample, features=features, targets=targets)
        self._measure(trainer, observation, lambda needs, _: needs.gradients, series)

    def _read_probe(self, trainer: Trainer, module: LightningModule) -> None:
        start = perf_counter()
        reading = self.probe.read(trainer, module)
        one_off, measuring = self.probe.one_off_seconds, perf_counter()
        if reading is not None:
            self._measure(trainer, Observation(self._step, probe=reading), lambda needs, _: needs.probe)
            if self.probe.reader.read_count == 1:
                one_off += perf_counter() - measuring  # the first reading builds the basis
        if not self.probe.reader.streaming:
            self.ledger.book(PROBE, perf_counter() - start, one_off)

    def _show(self, trainer: Trainer, module: LightningModule, work: str) -> None:
        start = perf_counter()
        self.probe.one_off_seconds = 0.0
        observation = self.own.observe(trainer, module, work, self._step)
        if observation is not None:
            self._measure(trainer, observation, partial(self.own.concerns, work))
            self.ledger.book(work, perf_counter() - start, self.probe.one_off_seconds)

    def _measure(
        self, trainer: Trainer, observation: Observation, concerned: Concerned, series: Series = FIRST
    ) -> None:
        if trainer.is_global_zero:
            self._readings += self.panel.measure(observation, concerned, self.failures, series)
        elif observation.trajectory is None:
            # Instruments that make passes have to know in all processes what they know in the first.
            self.panel.measure(observation, lambda n, name: n.passes > 0 and concerned(n, name), self.failures)
