"""What a monitor does at each hook of the trainer, in the order in which the hooks run.

    on_train_start             start         start the clock, choose the probe
    on_train_batch_start       begin_step    decide whether to sample this batch, and prepare
    on_before_backward         attach        tap the backward of a sampled batch
    on_after_backward          finish        take what the tap saw
    on_before_optimizer_step   stepping      note whose step the gradients feed
    on_train_batch_end         end_step      measure, log, draw; book what all of it took
    on_train_epoch_end         end_epoch     a stream that is over has shown all its examples
    on_train_end               end           the last pictures

Most batches are not sampled: for them `begin_step` and `end_step` ask whether anything is due, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_cx.callbacks._trainer import Callback
from lightning_cx.callbacks.budget import (
    GRADIENTS,
    PICTURES,
    PROBE,
    EveryNSteps,
    FullBatches,
    Ledger,
    Schedule,
    cadence_for,
)
from lightning_cx.callbacks.dispatch import FIRST, Dispatcher, OwnPasses, Show
from lightning_cx.callbacks.distributed import Processes
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit, told_in
from lightning_cx.callbacks.probing import MonitoredProbe
from lightning_cx.callbacks.publishing import Publisher
from lightning_cx.callbacks.sampling import Backwards, ParameterFollower, features_and_targets
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, Method, Reading, Series, needs_of, quantities
from lightning_cx.probe import ProbeSet

TRAJECTORY = "the trajectory"


class Session:
    """The running state of a monitor in one fit.

    Where several processes share a fit, all of them sample at the same steps; the first one measures what they saw
    together, and the others are told the numbers.

    Args:
        fit: That is monitored.
        dispatcher: Holds the instruments.
        probe: The fixed examples.
        schedule: When to measure.
        strict: Raise where sampling fails.
        callback: The monitor.
        name: The monitor's; its tags end in it.
        verbose: Whether to say what is only worth knowing.

    Attributes:
        sampling: Whether the batch that runs now is sampled.
    """

    def __init__(
        self,
        fit: Fit,
        dispatcher: Dispatcher,
        probe: ProbeSet,
        schedule: Schedule,
        strict: bool,
        callback: Callback,
        name: str = "",
        verbose: bool = True,
    ) -> None:
        self.fit, self.dispatcher, self.schedule = fit, dispatcher, schedule
        self.ledger, self.failures = Ledger(), Failures(strict, told_in(fit.trainer), verbose)
        given = dispatcher.instruments.values()
        of_gradients = needs_of(given, "on_gradients")
        self.full_batches = FullBatches()
        self.backwards = Backwards(fit, self.failures, of_gradients)
        self.features, self.targets = features_and_targets(probe, of_gradients, self.failures)
        self.follower = ParameterFollower(fit, self.failures, bool(dispatcher.asking("on_step")))
        self.probe = MonitoredProbe(fit, probe, needs_of(given, "on_probe"), self.failures)
        self.own = OwnPasses(fit, dispatcher, self.probe, self.failures)
        self.publisher = Publisher(fit, self.failures, callback, name)
        self.processes = Processes(fit, self.failures) if fit.world_size > 1 else None
        reader = self.probe.reader
        self._cadence = cadence_for(fit, schedule, self.ledger, self._wanted, reader.estimate, self.own.works)
        self.sampling = False
        self._readings: list[Reading] = []  # of this step, to be logged at its end
        self._examples = self._step = self._described = 0
        self._last_step: int | None = None  # the last one that was sampled
        self._step_started = 0.0
        self._step_cost = 0.0  # seconds of this step that were ours

    def start(self) -> None:
        """Start the clock and choose the probe.

        Raises:
            ValueError: Under `strict`, if the training data cannot make a probe.
        """
        self.ledger.start()
        with self.ledger.timed():
            if self._uses_probe:
                self.probe.start()

    # A batch, from its start to its end.

    def begin_step(self, batch: Any, batch_idx: int) -> None:
        """Decide before a batch whether to sample it, and prepare for that."""
        self._step_started = perf_counter()
        self.sampling = False
        self.backwards.drop()
        if self.probe.reader.streaming and self._uses_probe:
            self.probe.keep(batch)
        # Three reasons to sample: it is time; it was time at the last batch, which was too short; or one of several
        # optimizers did not step in the batch that was sampled (`owed`), and may step in this one. With accumulated
        # gradients many batches feed one optimizer step, and one sample of them is enough.
        self._cadence.begin_batch()
        due = self.full_batches.owed or self._cadence.due(GRADIENTS)
        due_again = bool(self.backwards.owed) and not self.failures.off(GRADIENTS)
        if (due or due_again) and self.fit.log_step != self._last_step:
            with self.failures.guard(GRADIENTS, last=False):
                self._begin_sample(batch, batch_idx, due)
        self._step_cost = perf_counter() - self._step_started

    def _begin_sample(self, batch: Any, batch_idx: int, due: bool) -> None:
        if not self._is_full(batch):
            return
        self._last_step = self.fit.log_step
        self._do(lambda: self.backwards.begin(batch, batch_idx, self._examples, due))
        if not self.failures.off(TRAJECTORY):
            with self.failures.guard(TRAJECTORY, last=False):
                self.follower.begin()

    def _is_full(self, batch: Any) -> bool:
        """Return whether the batch is as large as those before, in every process by what it is used to."""
        self._examples = self.fit.together(lambda: self.fit.batch_size_of(batch))
        full = self.full_batches.take(self._examples)
        if self.processes is not None:
            full = self.processes.all_full(full, self.backwards, self._examples)
            self.full_batches.owed = not full
        return full

    def attach(self, loss: Tensor) -> None:
        """Tap the backward of a sampled step, before it runs."""
        with self._timed():
            self._do(lambda: self.backwards.attach(loss))

    def finish(self) -> None:
        """Take what the tap saw, after a backward of a sampled step."""
        with self._timed():
            self._step_cost += self.backwards.hook_seconds
            self._do(self.backwards.finish, last=True)

    def stepping(self, optimizer: Optimizer) -> None:
        """Note before an optimizer step of a sampled batch which gradients feed it."""
        with self._timed():
            self._do(lambda: self.backwards.stepping(optimizer))

    def end_step(self, batch: Any) -> None:
        """Measure after a batch what was sampled and what else is due, and log it."""
        ended = perf_counter()
        sampled = self.sampling
        self._step = self.fit.log_step
        # What an unsampled step takes is the unit in which costs are guessed, so our own share of it is left out.
        self._cadence.end_batch(None if sampled else ended - self._step_started - self._step_cost)
        if self.follower.waiting:
            with self._alone():
                self._follow()
        if sampled:
            self._settle(batch, ended - self._step_started)
        probe_is_due = self._cadence.due(PROBE)
        works = self.own.due(self._cadence.due)
        if self._readings or probe_is_due or works:
            with self.ledger.timed(), self._alone():
                self._read_and_publish(probe_is_due, works)
                self._describe(batch)
        else:
            self._step_cost += perf_counter() - ended
        if self.processes is not None and (sampled or probe_is_due or works):
            with self._timed():
                self.processes.tell_all(self.publisher)
        self.ledger.other += self._step_cost
        self._step_cost = 0.0

    def _describe(self, batch: Any) -> None:
        """Say once what a batch is taken to be, and again if it turns out to be something else."""
        with self.failures.guard("the description of a batch"):
            if self._described != (known := self.fit.anatomies.known) and known:
                self._described = known
                found = self.fit.anatomies.of(batch)
                self.failures.say(str(found), f"a batch is {found.inputs} {found.targets}")

    def _follow(self) -> None:
        with self._timed(), self.failures.guard(TRAJECTORY):
            change = self.follower.end()
            if change is not None:
                self._measure("on_step", lambda instrument: instrument.on_step(self._step, change))

    def _settle(self, batch: Any, seconds: float) -> None:
        """Measure a sampled step that took so many seconds, and book what it cost."""
        plain = self._cadence.step_seconds
        if self.backwards.eager and plain is not None:  # what compiled code would have saved is our cost too
            self._step_cost = max(self._step_cost, seconds - plain)
        with self._timed(), self.failures.guard(GRADIENTS, last=self.processes is not None):
            found = self.backwards.samples()
            if self.processes is not None:
                found = self.processes.merge(self.backwards, found)
            with self._alone():
                for series, sample in found:
                    self._measure_gradients(batch, series, sample)
        self.ledger.book(GRADIENTS, self._step_cost, one_off=self.backwards.one_off_seconds)
        self._step_cost = 0.0
        self.backwards.drop()
        self.sampling = False

    def _measure_gradients(self, batch: Any, series: Series, sample: GradientSample) -> None:
        if self.fit.is_first:
            of_examples = sample.batch_size == self._examples  # else rows are of what the loss averages
            parts = (self.features, self.targets)
            view = BatchView(*(part.read(batch, self._examples) if of_examples else None for part in parts))
            self._measure("on_gradients", lambda instrument: instrument.on_gradients(self._step, sample, view), series)

    def _read_and_publish(self, probe_is_due: bool, works: Sequence[str]) -> None:
        if probe_is_due:
            self._read_probe()
        for work in works:
            self._make_passes(work)
        if self._readings:
            self._publish()
            if self._cadence.due(PICTURES):
                self._draw()

    def _read_probe(self) -> None:
        start = perf_counter()
        reading = self.probe.read()
        one_off, measuring = self.probe.one_off_seconds, perf_counter()
        if reading is not None:
            self._measure("on_probe", lambda instrument: instrument.on_probe(self._step, reading))
            if self.probe.reader.read_count == 1:
                one_off += perf_counter() - measuring  # the first reading builds the basis
        if not self.probe.reader.streaming:
            self.ledger.book(PROBE, perf_counter() - start, one_off)

    def _make_passes(self, work: str) -> None:
        """Show the model or the parameters to the instruments that a kind of work belongs to."""
        start = perf_counter()
        self.probe.one_off_seconds = 0.0
        how = self.own.show(work, self._step)
        if how is not None:
            method, show = how
            self._measure(method, show, concerned=lambda key: method == "on_parameters" or key == work)
            self.ledger.book(work, perf_counter() - start, self.probe.one_off_seconds)

    def _measure(
        self, method: Method, show: Show, series: Series = FIRST, concerned: Callable[[str], bool] = lambda key: True
    ) -> None:
        if self.fit.is_first:
            self._readings += self.dispatcher.show(method, show, self.failures, series, concerned)
        elif method != "on_step":
            # The first process measures for all, with one exception. What an instrument with passes of its own saw
            # before may decide which passes it makes next, and these wait for each other in all processes; so such an
            # instrument has to see in all of them what it sees in the first. Its readings here are dropped.
            passing = set(self.dispatcher.asking("on_model"))
            self.dispatcher.show(method, show, self.failures, concerned=lambda key: key in passing and concerned(key))

    # Between and after batches.

    def end_epoch(self) -> None:
        """Take what a stream has shown for all that it has, and forget an unfinished step."""
        self.backwards.drop()
        self.probe.close(self._uses_probe)

    def end(self) -> None:
        """Draw the last pictures if the budget allows it, and log what all of it took."""
        self._cadence.end()
        if self._cadence.due(PICTURES):
            self._draw()
        self._publish()
        self.failures.tell_reasons()

    def sum_up(self, budget: float) -> None:
        """Say in one line what was measured, how often, and what was not."""
        accounts = self.ledger.accounts
        done = [f"{work} {accounts[work].count} times" for work in self._works if work in accounts]
        words = f"measured: {', '.join(done) or 'nothing'}; {self.ledger.share:.1%} of the time"
        never = [work for work in self._works if self._wanted(work) and work not in accounts]
        if never and not isinstance(self.schedule, EveryNSteps):
            words += (
                f"; never measured, since the run was too short for {budget:.0%} of its time: {', '.join(never)}. "
                "Raise overhead_budget, or pass every_n_steps"
            )
        off = [work for work in self._works if self.failures.off(work)]
        if off:
            words += f"; disabled: {', '.join(off)}, as was said above"
        self.failures.say(words, f"at the end of {id(self)}")

    @property
    def _works(self) -> list[str]:
        works = [] if self.dispatcher.asking("on_gradients") == [] else [GRADIENTS]
        if self._uses_probe:
            works += [PROBE, *(work.key for work in self.own.works)]
        return works

    def _publish(self) -> None:
        readings, self._readings = self._readings, []
        with self.failures.guard("logging"):
            self.publisher.publish(readings, self._step, {quantities.OVERHEAD: self.ledger.share})

    def _draw(self) -> None:
        start = perf_counter()
        self._cadence.drawn()
        with self.failures.guard(PICTURES):
            self.publisher.draw()
        self.ledger.book(PICTURES, perf_counter() - start)

    # What is still wanted, what it takes, and what happens when it fails.

    def _wanted(self, work: str) -> bool:
        """Return whether an instrument that did not fail too often wants a kind of work that is possible."""
        if self.failures.off(work):
            return False
        if work == PICTURES:
            return self.fit.has_tensorboard and self.publisher.has_pictures
        if work == GRADIENTS:
            gradients = not self.backwards.off and self._anyone("on_gradients")
            return gradients or self._anyone("on_step")
        if work == PROBE:
            return not self.probe.refused and self._anyone("on_probe")
        return self.own.wanted(work)

    def _anyone(self, method: Method) -> bool:
        return any(not self.failures.off(key) for key in self.dispatcher.asking(method))

    @property
    def _uses_probe(self) -> bool:
        return any(map(self._wanted, (PROBE, *(work.key for work in self.own.works))))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count a block as our share of this step."""
        start = perf_counter()
        try:
            yield
        finally:
            self._step_cost += perf_counter() - start

    def _alone(self) -> AbstractContextManager[None]:
        """Keep an exception of what the first process does without the others, who would wait for it."""
        return nullcontext() if self.processes is None else self.processes.holding_back()

    def _do(self, work: Callable[[], None], last: bool = False) -> None:
        """Do a part of sampling a step; if it fails, the step is not sampled.

        In one process a failure ends the sample at once: `sampling` is False until the part has succeeded, so the hooks
        that follow pass by. Of several processes none may leave the step before the others know, since they meet in
        `Processes.merge`: there `sampling` stays True, and the exception is kept until all can hear of it.
        """
        self.sampling = self.processes is not None
        with self.failures.guard(GRADIENTS, last) if self.processes is None else self.processes.holding_back():
            work()
            self.sampling = True
