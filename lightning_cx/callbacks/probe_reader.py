"""Keeps the probe of a run: draws it, or collects it from a stream, and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from lightning_cx.callbacks._trainer import (
    LightningModule,
    Trainer,
    move_to_device,
    replayable,
    replayed_loss,
    to_device,
    training_data,
)
from lightning_cx.callbacks.failures import Failures
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments import Needs
from lightning_cx.probe import ProbeReading, ProbeSet
from lightning_cx.probe.passes import LossOf

BASIS_SECONDS = 5e-10  # times n^3: what a graph basis of 512 examples took on two cores (46 ms), and some
GRADIENT_SHARE = 2.0  # the same for per-example gradients: a backward, and the Gram matrix on top
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
            Whether indices of a checkpoint had to be given up.

        Raises:
            ValueError: If the data set has fewer than 128 examples.
        """
        self._data = training_data(trainer)
        if self._data is not None:
            before = self.probe.indices
            chosen = self.probe.choose(len(self._data[0]))
            self._draw_chunk()  # one batch, to learn what fetching costs
            return before is not None and chosen != before
        return False

    def _draw_chunk(self) -> None:
        if self._data is not None and not self.probe.complete:
            start = perf_counter()
            dataset, collate, size = self._data
            self.probe.draw(dataset, collate, size)
            self._chunk_seconds = perf_counter() - start

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
        """Pass the probe through the module, without a trace."""
        place = (lambda b: move_to_device(b, module)) if self._data is None else lambda b: to_device(trainer, module, b)
        replay = None if replayable(module) else (lambda batch: replayed_loss(trainer, module, batch, 0))
        reading = self.probe.read(module, replay, place)
        self.read_count += 1
        return (
            reading
            if not self._gradient_examples
            else replace(reading, gradients=self._gradients(module, replay, place))
        )

    def _gradients(
        self, module: LightningModule, replay: LossOf | None, place: Callable[[Any], Any]
    ) -> GradientSample | None:
        try:
            return self.probe.gradients(module, replay, place, self._gradient_examples, self._per_layer)
        except (UnsupportedGradientError, ValueError) as refusal:  # the model or the data, and it will not change
            if self._failures.strict:
                raise
            self._gradient_examples = 0
            self._failures.tell(f"gradients on the probe are off: {refusal}", "gradients on the probe")
            return None
