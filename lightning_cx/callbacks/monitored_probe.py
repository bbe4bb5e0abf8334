"""The probe as the monitor uses it: kept, read, and left alone where the model or the data forbid it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from lightning_cx.callbacks._trainer import LightningModule, Trainer, batch_size_of
from lightning_cx.callbacks.cadence import PROBE
from lightning_cx.callbacks.collectives import any_process
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.probe_reader import ProbeReader
from lightning_cx.callbacks.processes import together
from lightning_cx.instruments import Needs
from lightning_cx.probe import ProbePasses, ProbeReading, ProbeSet


class MonitoredProbe:
    """Looks at the probe when told to; what fails is told and counted.

    Args:
        probe: The fixed examples.
        needs: What the instruments want.
        failures: Where refusals are told.

    Attributes:
        refused: Whether no look will ever succeed; the reason was told.
        one_off_seconds: Time that the last look spent on what will not be needed again.
    """

    def __init__(self, probe: ProbeSet, needs: Sequence[Needs], failures: Failures) -> None:
        self._probe, self._failures = probe, failures
        self.reader = ProbeReader(probe, needs, failures)
        self.refused = False
        self.one_off_seconds = 0.0

    def start(self, trainer: Trainer) -> None:
        """Look at the training data.

        Raises:
            ValueError: Under `strict`, if it cannot make a probe.
        """
        with self._refusing():
            if together(trainer, lambda: self.reader.start(trainer)):
                self._failures.tell(
                    "the checkpoint's probe does not fit this data set: other examples are drawn, and "
                    "residual spectra start afresh"
                )

    def keep(self, trainer: Trainer, batch: Any) -> None:
        """Keep examples of a stream as they come by."""
        if self.reader.streaming:
            with self._failures.guard(PROBE, last=False):
                self._probe.keep(batch, batch_size_of(trainer, batch))

    def close(self, trainer: Trainer, wanted: bool) -> None:
        """After an epoch: a stream that is over has shown all its examples."""
        if self.reader.streamed and any_process(trainer, wanted and self.reader.streaming):
            with self._refusing():
                together(trainer, lambda: self._probe.close() if self.reader.streaming else None)

    def read(self, trainer: Trainer, module: LightningModule) -> ProbeReading | None:
        """Outputs and residuals of the probe now; None where examples are still missing, or it failed."""
        self.one_off_seconds = 0.0
        if any_process(trainer, self.reader.streaming):
            return None
        start = perf_counter()
        with self._failures.guard(PROBE), self._refusing():
            together(trainer, self.reader.prepare)
            self.one_off_seconds = perf_counter() - start
            return self.reader.read(trainer, module)
        return None

    def view(self, trainer: Trainer, module: LightningModule) -> ProbePasses | None:
        """The model as it is now, for passes over the probe; None where examples are still missing, or it failed."""
        self.one_off_seconds = 0.0
        if any_process(trainer, self.reader.streaming):
            return None
        start = perf_counter()
        with self._failures.guard(PROBE, last=False), self._refusing():
            together(trainer, self.reader.prepare)
            self.one_off_seconds = perf_counter() - start
            return together(trainer, lambda: self.reader.view(trainer, module))
        return None

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """What a probe says it cannot do on this data or model will not change: tell it once and leave it."""
        try:
            yield
        except ValueError as refusal:
            if self._failures.strict:
                raise
            self.refused = True
            self._failures.tell(f"the probe is off: {refusal}", PROBE)
