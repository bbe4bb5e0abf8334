"""One look at the probe on behalf of a stopping rule, which ends alike in every process."""

from __future__ import annotations

from typing import Any

from lightning_cx.callbacks._trainer import LightningModule, Trainer, batch_size_of
from lightning_cx.callbacks.collectives import any_process
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.probe_reader import ProbeReader
from lightning_cx.callbacks.processes import attempt, trouble
from lightning_cx.functional import stopping
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.instruments import Needs
from lightning_cx.probe import ProbeReading, ProbeSet
from lightning_cx.rules import ResidualWatch

CHECK = "the check of the stopping rule"
GATE_EXAMPLES = 256  # whose gradients are asked, once, whether simple functions are learned first
FEWEST_GRADIENTS = 64  # of fewer, as from batches of one, a rank correlation below 0 may be chance (-.36 was seen)
STREAM_GAP = 8  # steps between checks at least where batches of a stream may differ from process to process


class ProbeCheck:
    """Reads the probe and asks the rule.

    Processes pass a share of the probe each. Whatever can fail in one of them is tried by all, and all go on only where
    all succeeded, so no collective operation waits for a process that has left.

    Args:
        probe: The fixed examples.
        watch: Who asks the rule.
        failures: Where refusals are told.

    Attributes:
        off: Whether no further look makes sense.
        refusal: Why, in words.
    """

    def __init__(self, probe: ProbeSet, watch: ResidualWatch, failures: Failures) -> None:
        self.probe, self.watch, self.failures = probe, watch, failures
        self.reader = ProbeReader(probe, [Needs(probe_gradients=GATE_EXAMPLES)], failures)
        self.off = False
        self.refusal = ""

    def start(self, trainer: Trainer) -> bool:
        """Choose the examples.

        Returns:
            Whether indices of a checkpoint had to be given up, and with them all that was known of the run.
        """
        changed, error = attempt(lambda: self.reader.start(trainer))
        return not self._failed(trainer, error) and bool(changed)

    def keep(self, trainer: Trainer, batch: Any) -> None:
        """Keep examples of a stream as they come by."""
        if self.reader.streaming:
            with self.failures.guard("the probe", last=False):
                self.probe.keep(batch, batch_size_of(trainer, batch))

    def close(self, trainer: Trainer) -> None:
        """After an epoch: a stream that is over has shown all its examples."""
        if self.reader.streamed:
            _, error = attempt(self.probe.close)
            self._failed(trainer, error)

    def least_gap(self, trainer: Trainer) -> int:
        """Steps that one look is worth: as many as pass the probe's examples once."""
        if self.reader.streamed:
            return STREAM_GAP
        return max(1, self.probe.examples // (self.probe.chunk_size * trainer.world_size))

    def ready(self, trainer: Trainer) -> bool:
        """Whether all processes have their examples: streams fill up one batch after another."""
        return not self.reader.streamed or not any_process(trainer, self.reader.streaming)

    def look(self, trainer: Trainer, module: LightningModule, step: int) -> stopping.Decision | None:
        """Pass the probe once and ask the rule; None where that failed somewhere.

        Args:
            trainer: Of the fit.
            module: Passed in isolation.
            step: Optimizer steps done.
        """
        own, error = attempt(lambda: self._read(trainer, module))
        if self._failed(trainer, error) or own is None:
            return None
        whole = self.reader.join(trainer, own)
        decision, error = attempt(lambda: self._ask(trainer, module, step, whole))
        if self._failed(trainer, error):
            return None
        with self.failures.guard(CHECK):  # all of it went well: failures are counted in a row
            return decision

    def _read(self, trainer: Trainer, module: LightningModule) -> ProbeReading:
        self.reader.prepare()
        if self.probe.augmented:
            self.failures.tell(
                "training examples are augmented at random, and the probe holds one version of each: labels that are "
                "wrong are then hardly learned by heart, and weights may be kept that are too early; pass "
                "ProbeSet(features=...) that augmentation leaves alone, or stop by a validation set"
            )
        return self.reader.read_share(trainer, module)

    def _ask(self, trainer: Trainer, module: LightningModule, step: int, whole: ProbeReading) -> stopping.Decision:
        first = not self.watch.begun
        decision = self.watch.check(step, whole)
        if first:
            self._ask_gradients(trainer, module, whole)
        return decision

    def _ask_gradients(self, trainer: Trainer, module: LightningModule, whole: ProbeReading) -> None:
        try:
            sample = self.reader.gradients(trainer, module)
        except (UnsupportedGradientError, ValueError):  # under strict; the rule can do without
            sample = None
        if sample is not None and sample.gram is not None and len(sample.gram) >= FEWEST_GRADIENTS:
            self.watch.check_gradients(sample.gram, whole.features[: len(sample.gram)])

    def _failed(self, trainer: Trainer, error: Exception | None) -> bool:
        """Whether any process failed; then all know why, and all count it."""
        met = trouble(trainer, error)
        if met is None:
            return False
        if self.failures.strict:
            raise error or RuntimeError(f"{CHECK} failed in process {met.process}: {met.words}")
        if met.lasting:
            self.off, self.refusal = True, met.words
            self.failures.tell(f"ComplexityEarlyStopping does not act: {met.words}")
        else:
            with self.failures.guard(CHECK):
                raise error or RuntimeError(met.words)
            self.off = self.failures.off(CHECK)
            self.refusal = met.words if self.off else ""
        return True
