"""Keeps the probe of a run: draws it, or collects it from a stream, and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from lightning_cx.callbacks._trainer import (
    LightningModule,
    Trainer,
    move_to_device,
    replayable,
    replayed_loss,
    to_device,
    total_batches,
    training_data,
)
from lightning_cx.callbacks.collectives import gathered_rows
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.processes import together
from lightning_cx.callbacks.sharded import is_sharded
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments import Needs
from lightning_cx.probe import LossOf, ProbePasses, ProbeReading, ProbeSet

BASIS_SECONDS = 5e-10  # times n^3: what a graph basis of 512 examples took on two cores (46 ms), and some
GRADIENT_SHARE = 2.0  # the same for per-example gradients: a backward, and the Gram matrix on top
PASS_EXAMPLES = 256  # what an instrument calls a pass
PASS_SHARE = 0.7  # of a training step for as many examples: forward, and the backward of the head alone


class ProbeReader:
    """The probe set of one fit.

    Args:
        probe: What to draw and how to read it.
        needs: What the instruments want of it.
        failures: Where refusals are told.
    """

    def __init__(self, probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> None:
        self.probe = probe
        self._gradient_examples = max((need.probe_gradients for need in needs), default=0)
        self._per_layer = any(need.probe_gradients and need.per_layer for need in needs)
        self._failures = failures
        self._data: tuple[Any, Callable[[list[Any]], Any], int] | None = None
        self.read_count = 0
        self._chunk_seconds = 0.0

    def start(self, trainer: Trainer) -> bool:
        """Look at the training data: choose indices where there are any.

        Returns:
            Whether the examples of a checkpoint had to be given up.

        Raises:
            ValueError: If the data set has fewer than 128 examples.
        """
        self._data = training_data(trainer)
        self.probe.latest = None
        if self._data is not None:
            self.probe.forget()  # the data set may be another one than in the last fit; indices stay if they can
            before = self.probe.indices
            chosen = self.probe.choose(len(self._data[0]))
            self._draw_chunk()  # one batch, to learn what fetching costs
            return before is not None and chosen != before
        return self.probe.lost

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
        """Whether examples have no index and are still being collected as they come by."""
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

    def view(self, trainer: Trainer, module: LightningModule) -> ProbePasses:
        """The model as it is now, for passes over the probe."""
        examples = None if self._data is None else len(self._data[0])
        # Of several each moves a part of the model or has a loss of its own: what holds for one is wrong for all.
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        return self.probe.passes(module, *self._ways(trainer, module), optimizer, examples)

    def _gradient_passes(self, examples: int, chunk_size: int) -> int:
        if not self._gradient_examples:
            return 0
        if self.probe.examples:
            return self.probe.passes_for_gradients(self._gradient_examples)
        wanted = min(examples, self._gradient_examples)
        return wanted * max(1, -(-wanted // max(1, chunk_size)) - 1)

    def prepare(self) -> None:
        """Draw what is missing of an indexed probe."""
        while self._data is not None and not self.probe.complete:
            self._draw_chunk()

    def read(self, trainer: Trainer, module: LightningModule) -> ProbeReading:
        """Pass the probe through the module, without a trace; once, whoever asks after the same batch.

        Processes share the work, and every one of them has to call.
        """
        reading = self.join(trainer, together(trainer, lambda: self.read_share(trainer, module)))
        self.read_count += 1
        gradients = self.gradients(trainer, module) if self._gradient_examples else None
        return replace(reading, gradients=gradients)

    def read_share(self, trainer: Trainer, module: LightningModule) -> ProbeReading:
        """The rows of the probe that fall to this process; processes take turns at the chunks of an indexed probe."""
        share = self.share(trainer)
        reading = self._known(trainer)
        if reading is not None and share[1] > 1:
            own = self.probe.positions(share)
            return replace(reading, outputs=reading.outputs[own], residuals=reading.residuals[own])
        return self.probe.read(module, *self._ways(trainer, module), share) if reading is None else reading

    def share(self, trainer: Trainer) -> tuple[int, int]:
        """Which of how many processes this is; streams show each process examples of its own."""
        return (0, 1) if self._data is None else (trainer.global_rank, trainer.world_size)

    def join(self, trainer: Trainer, own: ProbeReading) -> ProbeReading:
        """Put the rows of all processes together; every process has to call."""
        _, processes = self.share(trainer)
        if processes == 1:
            self._remember(trainer, own)
            return own
        outputs, residuals = gathered_rows(trainer, own.outputs), gathered_rows(trainer, own.residuals)
        weight = float(len(own.residuals))
        parts = gathered_rows(trainer, torch.tensor([[weight, weight and weight * own.loss]]))
        total = torch.cat(parts).sum(0)
        order = torch.cat([self.probe.positions((rank, processes)) for rank in range(processes)]).argsort()
        whole = replace(own, outputs=torch.cat(outputs)[order], residuals=torch.cat(residuals)[order])
        whole = replace(whole, loss=float(total[1] / total[0]))
        self._remember(trainer, whole)
        return whole

    def _known(self, trainer: Trainer) -> ProbeReading | None:
        latest = self.probe.latest
        return latest[1] if latest is not None and latest[0] == total_batches(trainer) else None

    def _remember(self, trainer: Trainer, reading: ProbeReading) -> None:
        self.probe.latest = total_batches(trainer), reading

    def _ways(self, trainer: Trainer, module: LightningModule) -> tuple[LossOf | None, Callable[[Any], Any]]:
        """How to replay a loss, and how to put a batch where the model is."""
        place = (lambda b: move_to_device(b, module)) if self._data is None else lambda b: to_device(trainer, module, b)
        if replayable(module, together=True) is not None:
            return None, place
        return lambda batch: replayed_loss(trainer, module, batch, 0), place

    def gradients(self, trainer: Trainer, module: LightningModule) -> GradientSample | None:
        """Per-example gradients of the first examples; None, told once, where they cannot be had."""
        replay, place = self._ways(trainer, module)
        try:
            return together(trainer, lambda: self._gradients(module, replay, place))
        except (UnsupportedGradientError, ValueError) as refusal:  # the model or the data, and it will not change
            if self._failures.strict:
                raise
            self._gradient_examples = 0
            self._failures.tell(f"gradients on the probe are off: {refusal}", "gradients on the probe")
            return None

    def _gradients(self, module: LightningModule, replay: LossOf | None, place: Callable[[Any], Any]) -> GradientSample:
        if is_sharded(module):  # before a pass is begun: an unfinished one would leave it half put together
            raise UnsupportedGradientError("the module is sharded, and is read in training batches alone")
        return self.probe.passes(module, replay, place).gradients(self._gradient_examples, self._per_layer)
