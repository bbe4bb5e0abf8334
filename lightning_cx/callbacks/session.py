"""One fit, seen through the instruments: decides when to look, looks, and keeps the books."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor

from lightning_cx.callbacks._trainer import (
    LightningModule,
    Trainer,
    batch_size_of,
    has_tensorboard,
    log_step,
    planned_batches,
    total_batches,
)
from lightning_cx.callbacks.batch_features import BatchFeatures
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.full_batches import FullBatches
from lightning_cx.callbacks.gradient_sampler import GradientSampler
from lightning_cx.callbacks.parameter_follower import ParameterFollower
from lightning_cx.callbacks.probe_reader import ProbeReader
from lightning_cx.callbacks.publisher import Publisher
from lightning_cx.callbacks.schedule import EveryNSteps, Ledger, Schedule
from lightning_cx.instruments import Instrument, Needs, Observation, Reading
from lightning_cx.probe import ProbeSet
from lightning_cx.tensorboard import tags

GRADIENTS, PROBE, PICTURES = "gradients", "the probe", "pictures"  # the kinds of work that share the budget
TRAJECTORY = "the trajectory"

WARM_UP_BATCHES = 2  # the first batches are slower than all others and tell nothing about the step time
STEP_TIMES = 16  # recent plain steps whose median is the step time
GRADIENT_STEPS = 2.0  # first guess: a sampled step takes so many plain steps longer (.2 to 3.9 were measured),
GRADIENT_SECONDS = 0.05  # and this on top: calibration and first use of kernels took a small convnet 15 to 75 ms
ASK_AGAIN = 0.25  # seconds for which a "not yet" of the budget is taken for granted: to ask takes 100 microseconds
PICTURE_SECONDS = 0.3  # first guess for both pictures; .25 was measured, fonts included
PICTURE_PAUSE = 30.0  # seconds between pictures; the last come at the end of the run


class Session:
    """The running state of one fit.

    Args:
        instruments: What to measure.
        probe: The fixed examples.
        schedule: When to measure.
        strict: Raise where sampling fails.
    """

    def __init__(self, instruments: Sequence[Instrument], probe: ProbeSet, schedule: Schedule, strict: bool) -> None:
        self.instruments = instruments
        self.probe = probe
        self.schedule = schedule
        self.ledger = Ledger()
        self.failures = Failures(strict)
        needs = [i.needs for i in self.instruments]
        self.sampler = GradientSampler(self.failures, needs)
        self.features = BatchFeatures(probe, needs, self.failures)
        self.follower = ParameterFollower(needs)
        self.reader = ProbeReader(probe, needs, self.failures)
        self.publisher = Publisher(self.failures)
        self.sampling = False
        self._readings: list[Reading] = []
        self._probe_refused = False
        self._examples = 0
        self._board = False
        self._pictures_drawn = -math.inf
        self._step = 0
        self.full_batches = FullBatches()
        self._batches = 0
        self._last_step: int | None = None
        self._ask_again = {GRADIENTS: -math.inf, PROBE: -math.inf, PICTURES: -math.inf}
        self._step_started = 0.0
        self._step_cost = 0.0  # seconds that this step has taken of ours
        self._step_times: deque[float] = deque(maxlen=STEP_TIMES)

    def start(self, trainer: Trainer) -> None:
        """Begin the fit: start the clock and look at the training data.

        Raises:
            ValueError: Under `strict`, if the training data cannot make a probe.
        """
        self.ledger.start()
        self._pictures_drawn = perf_counter()
        self._board = has_tensorboard(trainer)
        with self.ledger.timed():
            if self._wanted(PROBE):
                with self._refusing_probe():
                    if self.reader.start(trainer):
                        self.failures.tell(
                            "the checkpoint's probe does not fit this data set: other examples are drawn, and "
                            "residual spectra start afresh"
                        )

    def begin_step(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before a batch: decide whether to sample it."""
        self._step_started = perf_counter()
        self.sampling = False
        self.sampler.drop()
        if self.reader.streaming and self._wanted(PROBE):
            with self.failures.guard(PROBE, last=False):
                self.probe.keep(batch, batch_size_of(trainer, batch))
        # At most one sample for each optimizer step, however many batches it accumulates.
        if (self.full_batches.owed or self._due(GRADIENTS, trainer)) and log_step(trainer) != self._last_step:
            with self.failures.guard(GRADIENTS, last=False):
                self._begin_sample(trainer, module, batch, batch_idx)
        self._step_cost = perf_counter() - self._step_started

    def _begin_sample(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._examples = batch_size_of(trainer, batch)
        if self.full_batches.take(self._examples):
            self.sampling, self._last_step = True, log_step(trainer)
            self.sampler.begin(trainer, module, batch, batch_idx, self._examples)
            if not self.failures.off(TRAJECTORY):
                with self.failures.guard(TRAJECTORY, last=False):
                    self.follower.begin(trainer, module)

    def attach(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Before a backward of a sampled step."""
        with self._timed(), self.failures.guard(GRADIENTS, last=False):
            self.sampler.attach(trainer, module, loss)

    def finish(self, module: LightningModule) -> None:
        """After a backward of a sampled step."""
        with self._timed(), self.failures.guard(GRADIENTS, last=self.sampler.at_work):
            self._step_cost += self.sampler.hook_seconds
            self.sampler.finish(module)

    def end_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """After a batch: measure what was sampled, read the probe if it is due, and publish."""
        ended = perf_counter()
        self._batches += 1
        self._step = log_step(trainer)
        if not self.sampling and self._batches > WARM_UP_BATCHES:
            self._step_times.append(ended - self._step_started - self._step_cost)
        if self.follower.waiting:
            self._follow(trainer, module)
        if self.sampling:
            self._settle(batch, ended - self._step_started)
        if self._readings or self._due(PROBE, trainer):
            with self.ledger.timed():
                self._read_and_publish(trainer, module)
        else:
            self._step_cost += perf_counter() - ended
        self.ledger.other += self._step_cost
        self._step_cost = 0.0

    def _follow(self, trainer: Trainer, module: LightningModule) -> None:
        with self._timed(), self.failures.guard(TRAJECTORY):
            made = self.follower.end(trainer, module)
            if made is not None:
                self._measure(Observation(self._step, trajectory=made), lambda needs: needs.trajectory)

    def _settle(self, batch: Any, seconds: float) -> None:
        """Measure a sampled step that took so many seconds and book what it cost."""
        if self.sampler.eager and self._step_times:  # what compiled code would have saved is our cost too
            self._step_cost = max(self._step_cost, seconds - median(self._step_times))
        with self._timed():
            self._measure_gradients(batch)
        self.ledger.book(GRADIENTS, self._step_cost, one_off=self.sampler.one_off_seconds)
        self._step_cost = 0.0
        self.sampler.drop()
        self.sampling = False

    def _read_and_publish(self, trainer: Trainer, module: LightningModule) -> None:
        if self._due(PROBE, trainer) and not self.reader.streaming:
            self._read_probe(trainer, module)
        if self._readings:
            self._publish(trainer)
            if self._due(PICTURES, trainer):
                self._draw(trainer)

    def end_epoch(self) -> None:
        """After an epoch: a stream that is over has shown all its examples, and no step is open."""
        self.sampler.drop()
        if self.reader.streaming and self._wanted(PROBE):
            with self._refusing_probe():
                self.probe.close()

    def end(self, trainer: Trainer) -> None:
        """At the end of the fit: draw the last pictures if they can be afforded, and say what all of it cost."""
        self._pictures_drawn = self._ask_again[PICTURES] = -math.inf
        if self._due(PICTURES, trainer):
            self._draw(trainer)
        self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        readings, self._readings = self._readings, []
        with self.failures.guard("logging"):
            self.publisher.publish(trainer, readings, self._step, {tags.OVERHEAD: self.ledger.share})

    def _draw(self, trainer: Trainer) -> None:
        start = self._pictures_drawn = perf_counter()
        with self.failures.guard(PICTURES):
            self.publisher.draw(trainer)
        self.ledger.book(PICTURES, perf_counter() - start)

    def never_done(self) -> list[str]:
        """Kinds of work that were wanted and never done, because the run was too short for the budget."""
        if isinstance(self.schedule, EveryNSteps):
            return []
        works = [GRADIENTS] if self.reader.streaming else [GRADIENTS, PROBE]
        return [work for work in works if self._wanted(work) and work not in self.ledger.accounts]

    def _wanted(self, work: str) -> bool:
        if self.failures.off(work):
            return False
        if work == PICTURES:
            return self._board and self.publisher.has_pictures
        live = [i.needs for i in self.instruments if not self.failures.off(type(i).__name__)]
        if work == GRADIENTS:
            return any((needs.gradients and not self.sampler.off) or needs.trajectory for needs in live)
        return not self._probe_refused and any(needs.probe for needs in live)

    def _due(self, work: str, trainer: Trainer) -> bool:
        if isinstance(self.schedule, EveryNSteps):
            at_period = self.schedule.due(work, total_batches(trainer), {}, 0.0, self.ledger)
            if work == PICTURES:  # nobody looks at every sample
                at_period = perf_counter() - self._pictures_drawn > PICTURE_PAUSE
            return at_period and self._wanted(work)
        now = perf_counter()
        if now < self._ask_again[work] or len(self._step_times) < STEP_TIMES:
            return False
        due = self._wanted(work) and self._affordable(work, trainer)
        if not due:
            self._ask_again[work] = now + ASK_AGAIN
        return due

    def _affordable(self, work: str, trainer: Trainer) -> bool:
        if work == PICTURES and perf_counter() - self._pictures_drawn < PICTURE_PAUSE:
            return False
        step = median(self._step_times)
        guesses = {
            GRADIENTS: GRADIENT_SECONDS + GRADIENT_STEPS * step,
            PROBE: self.reader.estimate(step),
            PICTURES: PICTURE_SECONDS,
        }
        estimates = {name: guess for name, guess in guesses.items() if self._wanted(name)}
        # The first batches are slow; what is left is counted in plain steps, and loading comes in as it passes.
        planned = self.ledger.elapsed + step * max(0.0, planned_batches(trainer) - self._batches)
        return self.schedule.due(work, total_batches(trainer), estimates, planned, self.ledger)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self._step_cost += perf_counter() - start

    @contextmanager
    def _refusing_probe(self) -> Iterator[None]:
        """What a probe says it cannot do on this data or model will not change: tell it once and leave it."""
        try:
            yield
        except ValueError as refusal:
            if self.failures.strict:
                raise
            self._probe_refused = True
            self.failures.tell(f"the probe is off: {refusal}", PROBE)

    def _measure_gradients(self, batch: Any) -> None:
        sample = self.sampler.sample
        if sample is None:
            return
        features = self.features.read(batch, self._examples)
        self._measure(Observation(self._step, gradients=sample, features=features), lambda needs: needs.gradients)

    def _read_probe(self, trainer: Trainer, module: LightningModule) -> None:
        start = perf_counter()
        one_off = 0.0
        with self.failures.guard(PROBE), self._refusing_probe():
            self.reader.prepare()
            one_off = perf_counter() - start
            reading = self.reader.read(trainer, module)
            measuring = perf_counter()
            self._measure(Observation(self._step, probe=reading), lambda needs: needs.probe)
            if self.reader.read_count == 1:
                one_off += perf_counter() - measuring  # the first reading builds the basis
        self.ledger.book(PROBE, perf_counter() - start, one_off)

    def _measure(self, observation: Observation, concerned: Callable[[Needs], bool]) -> None:
        for instrument in self.instruments:
            name = type(instrument).__name__
            if concerned(instrument.needs) and not self.failures.off(name):
                with self.failures.guard(name):
                    self._readings.append(instrument.measure(observation))
