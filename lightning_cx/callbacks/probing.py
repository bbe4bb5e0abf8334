"""The probe in a fit: drawn or collected, read by all processes together, and checked for a stopping rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lightning_cx.batch import BatchSpecError
from lightning_cx.callbacks._trainer import move_to_device
from lightning_cx.callbacks.budget import PROBE
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit, TrainingData, attempt
from lightning_cx.functional import stopping
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments import Needs
from lightning_cx.probe import LossOf, ProbePasses, ProbeReading, ProbeSet, ResidualGradients, used_up
from lightning_cx.rules import Elapsed, PathStopper, RefusedError, ResidualStopper, why_no_residual

BASIS_SECONDS = 5e-10  # times n^3: what a graph basis of 512 examples took on two cores (46 ms), and some
GRADIENT_SHARE = 2.0  # the same for per-example gradients: a backward, and the Gram matrix on top
READING_SECONDS = 3.0  # for which a fit may wait while examples are read that training would read later
PASS_EXAMPLES = 256  # what an instrument calls a pass
PASS_SHARE = 0.7  # of a training step for as many examples: forward, and the backward of the head alone


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class ProbeReader:
    """Draw or collect the probe of one fit, and read it.

    Args:
        fit: That it belongs to.
        probe: What to draw and how to read it.
        needs: What the instruments want of it.
        failures: Where refusals are told.
    """

    def __init__(self, fit: Fit, probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> None:
        self._fit, self.probe = fit, probe
        self._gradient_examples = max((need.probe_gradients for need in needs), default=0)
        self._per_layer = any(need.probe_gradients and need.per_layer for need in needs)
        self._failures = failures
        self._data: TrainingData | None = None  # none before start, and none of a stream
        self.read_count = 0
        self._chunk_seconds = 0.0
        self._own_examples = False  # whether each process has examples of its own

    def start(self) -> bool:
        """Choose examples of the training data, where they can be fetched outside of the loader.

        Every process has to call: all of them read by index, or none does.

        Returns:
            Whether the examples of a checkpoint had to be given up.

        Raises:
            ValueError: If the data set has fewer than 128 examples.
        """
        self.probe.latest = None
        refusal: ValueError | None = None
        before, why = self.probe.indices, ""
        self._data, error = attempt(lambda: self._fit.training_data)
        if error is not None:
            why = _in_words(error)
        if self._data is not None:
            self.probe.forget()  # the data set may be another one than in the last fit; indices stay if they can
            try:
                self.probe.choose(len(self._data[0]))
            except ValueError as few:
                refusal = few
            except Exception as error:  # the user's own __len__
                why = _in_words(error)
            if refusal is None and not why:
                try:
                    why = self._begin(before)
                except BatchSpecError as wrong:
                    refusal = wrong
        indexed = self._data is not None
        if self._fit.any_process(bool(why)):
            self._collect(why)
        elif not self._fit.agreed(self.probe.fingerprint):
            self._own_examples = True
            self._failures.tell(
                "the processes hold different training examples under the same index, so each reads a probe of its "
                "own, and the numbers are those of the first"
            )
        if refusal is not None:
            raise refusal
        if indexed:
            return before is not None and self.probe.indices != before
        return self.probe.lost

    def _begin(self, before: list[int] | None) -> str:
        """Read the first examples; return in words why the rest cannot be read like them, empty if it can."""
        assert self._data is not None
        dataset, collate, _ = self._data
        try:
            if (found := used_up(dataset, ("__getitem__", "__getitems__"))) is not None:
                return f"to read examples would use up {found}"
            seconds = self.probe.reading_seconds(dataset, collate)
            if seconds > READING_SECONDS and before is None:
                return f"to read {self.probe.size} of them apart from training would take {seconds:.0f} s"
            if seconds > READING_SECONDS:
                self._failures.say(f"reading the examples of the checkpoint's probe takes about {seconds:.0f} s", PROBE)
            self._draw_chunk()  # one batch, to learn what fetching costs
        except BatchSpecError:
            raise
        except Exception as error:  # the user's data set, sampler or collate function
            return _in_words(error)
        return ""

    def _collect(self, why: str) -> None:
        """Take the batches that come by in place of examples by index."""
        self._data = None
        self.probe.forget()
        self.probe.indices = None
        reason = f" ({why})" if why else ""
        self._failures.tell(
            f"the probe takes the first batches that come by, since its examples cannot be fetched by index{reason}",
            "the probe takes batches",
        )

    def _draw_chunk(self) -> None:
        if self._data is not None and not self.probe.complete:
            start = perf_counter()
            dataset, collate, size = self._data
            self.probe.draw(dataset, collate, size)
            self._chunk_seconds = perf_counter() - start

    @property
    def streamed(self) -> bool:
        """Whether the training data is a stream, whose examples have no index."""
        return self._data is None

    @property
    def streaming(self) -> bool:
        """Whether examples have no index and are still being collected as they arrive."""
        return self._data is None and not self.probe.complete

    def estimate(self, step_seconds: float) -> float:
        """Guess the seconds of the next reading from those of a training step."""
        n = self.probe.size if self.probe.indices is None else len(self.probe.indices)
        size = self._data[2] if self._data is not None else self.probe.chunk_size
        batches = n / max(1, size)
        first = 0.0 if self.read_count else BASIS_SECONDS * n**3 + batches * self._chunk_seconds
        gradients = GRADIENT_SHARE * self._gradient_passes(n, size) / max(1, size)
        return first + (PASS_SHARE * batches + gradients) * step_seconds

    def pass_seconds(self, passes: float, step_seconds: float) -> float:
        """Guess the seconds of so many passes of 256 examples from those of a training step."""
        size = self._data[2] if self._data is not None else self.probe.chunk_size
        return passes * PASS_EXAMPLES / max(1, size) * step_seconds

    def view(self) -> ProbePasses:
        """Return the model as it is now, for passes over the probe."""
        optimizers = self._fit.trainer.optimizers
        # Of several each moves a part of the model or has a loss of its own: what holds for one is wrong for all.
        optimizer = optimizers[0] if len(optimizers) == 1 else None
        return self.probe.passes(self._fit.module, *self._ways(), optimizer, self._fit.training_examples)

    def _gradient_passes(self, examples: int, chunk_size: int) -> int:
        if not self._gradient_examples:
            return 0
        if self.probe.examples:
            return self.probe.passes_for_gradients(self._gradient_examples)
        wanted = min(examples, self._gradient_examples)
        return wanted * max(1, -(-wanted // max(1, chunk_size)) - 1)

    def prepare(self) -> bool:
        """Draw what is missing of an indexed probe; every process has to call.

        Returns:
            Whether the examples are there: where one could not be read, those that come by are taken instead.
        """
        why = ""
        try:
            while self._data is not None and not self.probe.complete:
                self._draw_chunk()
        except Exception as error:  # the user's data set or collate function
            why = _in_words(error)
        if self._fit.any_process(bool(why)):
            self._collect(why)
        return not self.streaming

    def read(self) -> ProbeReading:
        """Pass the probe through the module, without a trace; once after each batch, whoever asks.

        Processes share the work, and every one of them has to call.
        """
        reading = self.join(self._fit.together(self.read_share))
        self.read_count += 1
        gradients = self.gradients() if self._gradient_examples else None
        return replace(reading, gradients=gradients)

    def read_share(self) -> ProbeReading:
        """Return the rows of the probe that fall to this process; processes take turns at the chunks of a probe."""
        share = self.share
        reading = self._known
        if reading is not None and share[1] > 1:
            own = self.probe.positions(share)
            return replace(reading, outputs=reading.outputs[own], residuals=reading.residuals[own])
        return self.probe.read(self._fit.module, *self._ways(), share) if reading is None else reading

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many processes this is; streams show each process examples of its own."""
        alone = self.streamed or self._own_examples
        return (0, 1) if alone else (self._fit.rank, self._fit.world_size)

    def passes_of_share(self) -> tuple[ProbePasses, int]:
        """Passes over the chunks of the probe that fall to this process, and how many examples of them count.

        A forward pass may wait for other processes, so each makes as many: one that has run out passes the first.
        """
        passes = self.probe.passes(self._fit.module, *self._ways())
        number, processes = self.share
        own = list(passes.chunks[number::processes])
        spare = [passes.chunks[0]] * (-(-len(passes.chunks) // processes) - len(own))
        return replace(passes, chunks=[*own, *spare]), sum(count for _, count in own)

    def in_order(self, rows: Tensor) -> Tensor:
        """Put rows of all processes together in the order of the probe; every process has to call."""
        _, processes = self.share
        if processes == 1:
            return rows
        parts = self._fit.gathered_rows(rows.reshape(len(rows), rows.shape[1:].numel()))
        order = torch.cat([self.probe.positions((rank, processes)) for rank in range(processes)]).argsort()
        return torch.cat(parts)[order].reshape(-1, *rows.shape[1:])

    def join(self, own: ProbeReading) -> ProbeReading:
        """Put the rows of all processes together; every process has to call."""
        _, processes = self.share
        if processes == 1:
            self._remember(own)
            return own
        outputs, residuals = self._fit.gathered_rows(own.outputs), self._fit.gathered_rows(own.residuals)
        weight = float(len(own.residuals))
        parts = self._fit.gathered_rows(torch.tensor([[weight, weight and weight * own.loss]]))
        total = torch.cat(parts).sum(0)
        order = torch.cat([self.probe.positions((rank, processes)) for rank in range(processes)]).argsort()
        whole = replace(own, outputs=torch.cat(outputs)[order], residuals=torch.cat(residuals)[order])
        whole = replace(whole, loss=float(total[1] / total[0]))
        self._remember(whole)
        return whole

    @property
    def _known(self) -> ProbeReading | None:
        latest = self.probe.latest
        return latest[1] if latest is not None and latest[0] == self._fit.batches else None

    def _remember(self, reading: ProbeReading) -> None:
        self.probe.latest = self._fit.batches, reading

    def _ways(self) -> tuple[LossOf | None, Callable[[Any], Any]]:
        """Return how to replay a loss, and how to put a batch where the model is."""
        # What was kept of a stream went through the transfer hooks already.
        place = (lambda batch: move_to_device(batch, self._fit.module)) if self.streamed else self._fit.to_device
        why = self._fit.why_not_replayed(together=True)
        if self.probe.loss_fn is None and why is not None:
            raise ValueError(
                f"training_step cannot be run again, {why}; or pass ProbeSet(loss_fn=...), a function (module, batch) "
                "-> losses [n]"
            )
        return self._fit.loss_of(together=True), place

    def gradients(self) -> GradientSample | None:
        """Return per-example gradients of the first examples; None, told once, where they cannot be had."""
        try:
            return self._fit.together(self._gradients)
        except (UnsupportedGradientError, ValueError) as refusal:  # the model or the data, and it will not change
            if self._failures.strict:
                raise
            self._gradient_examples = 0
            self._failures.tell(f"gradients on the probe are off: {refusal}", "gradients on the probe")
            return None

    def _gradients(self) -> GradientSample:
        if self._fit.is_sharded:  # before a pass is begun: an unfinished one would leave the module half gathered
            raise UnsupportedGradientError("the module is sharded, and is read in training batches alone")
        passes = self.probe.passes(self._fit.module, *self._ways())
        return passes.gradients(self._gradient_examples, self._per_layer)


class MonitoredProbe:
    """Read the probe for a monitor; what fails is told and counted.

    Args:
        fit: That is monitored.
        probe: The fixed examples.
        needs: What the instruments want.
        failures: Where refusals are told.

    Attributes:
        refused: Whether no reading will ever succeed; the reason was told.
        one_off_seconds: Time that the last reading spent on what will not be needed again.
    """

    def __init__(self, fit: Fit, probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> None:
        self._fit, self._probe, self._failures = fit, probe, failures
        self.reader = ProbeReader(fit, probe, needs, failures)
        self.refused = False
        self.one_off_seconds = 0.0

    def start(self) -> None:
        """Choose examples of the training data.

        Raises:
            ValueError: Under `strict`, if it cannot make a probe.
        """
        with self._refusing():
            changed, error = attempt(self.reader.start)
            met = self._fit.trouble(error)
            if met is not None:
                raise error or met.kind(f"process {met.process}: {met.words}")
            if changed:
                self._failures.tell(
                    "the checkpoint's probe does not fit this data set: other examples are drawn, and "
                    "residual spectra start afresh"
                )

    def keep(self, batch: Any) -> None:
        """Keep examples of a stream as they arrive."""
        if self.reader.streaming:
            with self._failures.guard(PROBE, last=False):
                self._probe.keep(batch, self._fit.batch_size_of(batch))

    def close(self, wanted: bool) -> None:
        """After an epoch, take what a stream has shown for all that it has."""
        if self.reader.streamed and self._fit.any_process(wanted and self.reader.streaming):
            with self._refusing():
                self._fit.together(lambda: self._probe.close() if self.reader.streaming else None)

    def read(self) -> ProbeReading | None:
        """Return outputs and residuals of the probe now; None where examples are missing, or it failed."""
        self.one_off_seconds = 0.0
        if self._fit.any_process(self.reader.streaming):
            return None
        start = perf_counter()
        with self._failures.guard(PROBE), self._refusing():
            ready = self._fit.together(self.reader.prepare)
            self.one_off_seconds = perf_counter() - start
            return self.reader.read() if ready else None
        return None

    def view(self) -> ProbePasses | None:
        """Return the model as it is now, for passes over the probe; None where examples are missing, or it failed."""
        self.one_off_seconds = 0.0
        if self._fit.any_process(self.reader.streaming):
            return None
        start = perf_counter()
        with self._failures.guard(PROBE, last=False), self._refusing():
            ready = self._fit.together(self.reader.prepare)
            self.one_off_seconds = perf_counter() - start
            return self._fit.together(self.reader.view) if ready else None
        return None

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tell once what a probe cannot do on this data or model, which will not change, and leave it."""
        try:
            yield
        except ValueError as refusal:
            if self._failures.strict:
                raise
            self.refused = True
            topic = str(refusal) if isinstance(refusal, BatchSpecError) else PROBE
            self._failures.tell(f"the probe is off: {refusal}", topic)


CHECK = "the check of the stopping rule"
GATE_EXAMPLES = 256  # whose gradients are asked, once, whether simple functions are learned first
FEWEST_GRADIENTS = 64  # of fewer, as from batches of one, a rank correlation below 0 may be chance (-.36 was seen)
STREAM_GAP = 8  # steps between checks at least where batches of a stream may differ from process to process


class ProbeCheck:
    """Read the probe and ask a stopping rule, with the same outcome in every process.

    Each process passes a share of the probe. Whatever can fail in one of them is tried by all, and all go on only where
    all succeeded, so that no collective operation waits for a process that has left.

    Args:
        fit: That may be stopped.
        probe: The fixed examples.
        watch: Holds the rule.
        failures: Where refusals are told.

    Attributes:
        off: Whether no further check makes sense.
        refusal: Why, in words.
    """

    def __init__(self, fit: Fit, probe: ProbeSet, watch: ResidualStopper | PathStopper, failures: Failures) -> None:
        self._fit, self.probe, self.watch, self.failures = fit, probe, watch, failures
        gate = Needs(probe_gradients=GATE_EXAMPLES if isinstance(watch, ResidualStopper) else 0)
        self.reader = ProbeReader(fit, probe, [gate], failures)
        self.clock = LearningClock(fit)
        self.off = False
        self.refusal = ""

    def start(self) -> bool:
        """Choose the examples.

        Returns:
            Whether indices of a checkpoint had to be given up, and with them all that was known of the run.
        """
        changed, error = attempt(self.reader.start)
        return not self._failed(error) and bool(changed)

    def keep(self, batch: Any) -> None:
        """Keep examples of a stream as they arrive."""
        if self.reader.streaming:
            with self.failures.guard(PROBE, last=False):
                self.probe.keep(batch, self._fit.batch_size_of(batch))

    def close(self) -> None:
        """After an epoch, take what a stream has shown for all that it has."""
        if self.reader.streamed:
            _, error = attempt(self.probe.close)
            self._failed(error)

    @property
    def least_gap(self) -> int:
        """Steps that one check is worth: as many as pass the probe's examples once."""
        if self.reader.streamed:
            return STREAM_GAP
        return max(1, self.probe.examples // (self.probe.chunk_size * self._fit.world_size))

    def ready(self) -> bool:
        """Return whether all processes have their examples: streams fill up one batch after another."""
        return not self.reader.streamed or not self._fit.any_process(self.reader.streaming)

    def describe(self) -> None:
        """Say once what a batch is taken to be."""
        if (found := self.probe.anatomy) is not None:
            self.failures.say(str(found), f"a batch is {found.inputs} {found.targets}")

    def check(self, step: int) -> stopping.Decision | None:
        """Pass the probe once and ask the rule; None where that failed in some process.

        Args:
            step: Optimizer steps done.
        """
        decide = self._by_residuals if isinstance(self.watch, ResidualStopper) else self._by_gradients
        decision = decide(step)
        if decision is not None:
            with self.failures.guard(CHECK):  # all of it went well: failures are counted in a row
                return decision
        return None

    def _by_residuals(self, step: int) -> stopping.Decision | None:
        own, error = attempt(self._read)
        if own is not None:
            self.describe()
        if self._failed(error) or own is None:
            return None
        whole = self.reader.join(own)
        decision, error = attempt(lambda: self._ask(step, whole))
        return None if self._failed(error) else decision

    def _by_gradients(self, step: int) -> stopping.Decision | None:
        watch = self.watch
        assert isinstance(watch, PathStopper)
        own, error = attempt(self._read_gradients)
        if own is not None:
            self.describe()
        if self._failed(error) or own is None:
            return None
        in_order = self.reader.in_order
        gradients = in_order(own.gradients).to(own.gradients)
        sizes, bend = in_order(torch.stack([own.sizes, own.bend], 1)).unbind(1)
        whole = gradients, sizes, bend, in_order(own.directions)
        elapsed, error = attempt(self.clock.read)
        if self._failed(error) or elapsed is None:
            return None
        sketch = self.clock.sketch
        shift, error = attempt(lambda: watch.follow(whole, sketch, elapsed))
        if self._failed(error) or shift is None:
            return None
        self.clock.restart()
        errors, error = attempt(lambda: watch.errors(own, shift[self._own_rows]))
        if self._failed(error) or errors is None:
            return None
        every = in_order(errors)
        decision, error = attempt(lambda: watch.decide(step, every, self._fit.schedule_left()))
        return None if self._failed(error) else decision

    @property
    def _own_rows(self) -> Tensor:
        number, processes = self.reader.share
        return torch.arange(self.probe.examples) if processes == 1 else self.probe.positions((number, processes))

    def _read_gradients(self) -> ResidualGradients | None:
        if self._fit.is_sharded:
            raise RefusedError("the module is sharded: take ComplexityEarlyStopping(SpectralRisk())")
        if self.reader.streamed:
            raise RefusedError(
                "the training data is a stream, whose size is not known: take ComplexityEarlyStopping(SpectralRisk()) "
                "or stop by a validation set (Lightning's EarlyStopping)"
            )
        if not self.reader.prepare():
            return None
        assert isinstance(self.watch, PathStopper)
        self.watch.training_examples = self._fit.training_examples
        passes, examples = self.reader.passes_of_share()
        if why := why_no_residual(passes.calibration.mixed, passes.calibration.drawn, passes.law.why_not):
            raise RefusedError(why)
        if passes.law.flat:
            raise RefusedError(
                f"{passes.law.flat}: take ComplexityEarlyStopping(SpectralRisk()), or pass ProbeSet(loss_fn=...) with "
                "squared errors, a function (module, batch) -> losses [n]"
            )
        self.clock.times = passes.chunks[0][1] if passes.calibration.sums else 1
        found = passes.residual_gradients(self.clock.sketch, self.watch.kind).first(examples)
        self.watch.kind = self.watch.kind or found.kind
        return found

    def _read(self) -> ProbeReading | None:
        if not self.reader.prepare():
            return None
        if self.probe.augmented:
            self.failures.tell(
                "training examples are augmented at random, and the probe holds one version of each: labels that are "
                "wrong are then hardly memorised, and weights may be kept that are too early; pass "
                "ProbeSet(features=...) that augmentation does not change, or stop by a validation set"
            )
        return self.reader.read_share()

    def _ask(self, step: int, whole: ProbeReading) -> stopping.Decision:
        assert isinstance(self.watch, ResidualStopper)
        first = not self.watch.begun
        decision = self.watch.check(step, whole)
        if first:
            self._ask_gradients(whole)
        return decision

    def _ask_gradients(self, whole: ProbeReading) -> None:
        try:
            sample = self.reader.gradients()
        except (UnsupportedGradientError, ValueError):  # under strict; the rule can do without
            sample = None
        if sample is not None and sample.gram is not None and len(sample.gram) >= FEWEST_GRADIENTS:
            assert isinstance(self.watch, ResidualStopper)
            self.watch.check_gradients(sample.gram, whole.features[: len(sample.gram)])

    def _failed(self, error: Exception | None) -> bool:
        """Return whether any process failed; then all know why, and all count it."""
        met = self._fit.trouble(error)
        if met is None:
            return False
        if self.failures.strict:
            raise error or RuntimeError(f"{CHECK} failed in process {met.process}: {met.words}")
        if met.lasting:
            self.off, self.refusal = True, met.words
            self.failures.tell(f"ComplexityEarlyStopping is disabled: {met.words}")
        else:
            with self.failures.guard(CHECK):
                raise error or RuntimeError(met.words)
            self.off = self.failures.off(CHECK)
            self.refusal = met.words if self.off else ""
        return True


class LearningClock:
    """Counts the learning time of each parameter: learning rate times preconditioner, summed over optimizer steps.

    Args:
        fit: Whose optimizers are read.

    Attributes:
        times: By how much the gradient of training exceeds that of the mean loss, as where the loss is a sum.
    """

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self.times = 1
        self._rates: dict[int, float] = {}  # of each group of parameters, by the identity of the group
        self._decays: dict[int, float] = {}
        self._before: dict[str, float] | None = None  # preconditioner at the last check
        self._now: dict[str, float] = {}
        self._sketch: stopping.GradientSketch | None = None

    @property
    def sketch(self) -> stopping.GradientSketch:
        """Of the gradients of all trainable parameters."""
        if self._sketch is None:
            sizes = {name: p.numel() for name, p in self._fit.module.named_parameters() if p.requires_grad}
            self._sketch = stopping.GradientSketch(sizes, max(stopping.GRADIENT_WIDTH, len(sizes)))
        return self._sketch

    def step(self) -> None:
        """Count one optimizer step; called after each, it costs about a microsecond."""
        for optimizer in self._fit.trainer.optimizers:
            for group in optimizer.param_groups:
                rate, key = float(group["lr"]), id(group)
                self._rates[key] = self._rates.get(key, 0.0) + rate
                if decay := group.get("weight_decay"):
                    self._decays[key] = self._decays.get(key, 0.0) + rate * float(decay)

    def read(self) -> Elapsed:
        """Return what passed since the last check, or the start."""
        parameters = {name: p for name, p in self._fit.module.named_parameters() if p.requires_grad}
        time, decay, words, known = dict.fromkeys(parameters, 0.0), dict.fromkeys(parameters, 0.0), [], True
        self._now = dict.fromkeys(parameters, 0.0)
        for optimizer in self._fit.trainer.optimizers:
            of = {id(p): id(group) for group in optimizer.param_groups for p in group["params"]}
            held = {name: p for name, p in parameters.items() if id(p) in of}
            found = stopping.preconditioner(optimizer, held)
            known, words = known and found.known, [*words, found.words]
            decoupled = "AdamW" in type(optimizer).__name__ or type(optimizer).__name__ == "Muon"
            for name, p in held.items():
                scale = found.scale[name]
                before = scale if self._before is None else self._before[name]
                self._now[name] = scale
                time[name] = self._rates.get(of[id(p)], 0.0) * (scale + before) / 2 * self.times
                own = decoupled or any(g.get("decoupled_weight_decay") for g in optimizer.param_groups)
                decay[name] = self._decays.get(of[id(p)], 0.0) * (1.0 if own else (scale + before) / 2)
        return Elapsed(time, decay, known, "; ".join(words))

    def restart(self) -> None:
        """Count from here on: what passed was taken in."""
        # Before its first step an optimizer has no state, and the preconditioner is that of the first interval's end.
        self._before = self._now if self._rates else None
        self._rates, self._decays = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint, groups by their order."""
        groups = [id(group) for optimizer in self._fit.trainer.optimizers for group in optimizer.param_groups]
        numbers = [(self._rates.get(key, 0.0), self._decays.get(key, 0.0)) for key in groups]
        return {"passed": numbers, "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, once the optimizers are there."""
        groups = [id(group) for optimizer in self._fit.trainer.optimizers for group in optimizer.param_groups]
        for key, (rate, decay) in zip(groups, state["passed"], strict=False):
            self._rates[key], self._decays[key] = rate, decay
        self._before = state["before"]
