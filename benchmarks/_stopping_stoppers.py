"""What decides when to stop: our rules, and their rivals, each shown the same checks of one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from _evidence import evidence_of_moments, moments, per_example_gradients
from _stopping_problems import Data
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from lightning_cx.gradients import GradientSample
from lightning_cx.probe import ProbeReading
from lightning_cx.rules import (
    HighComplexityDominance,
    RefusedError,
    ResidualStopper,
    ResidualWhiteness,
    SpectralRisk,
    StoppingRule,
)

PATIENCE = 10  # checks of the rivals that count them, as many as our own rule's
EVIDENCE_EXAMPLES = 512
EVIDENCE_EVERY = 2  # checks, for its cost; so five in a row span as many checks as PATIENCE
COLUMNS = 512  # parameters whose gradients are held in float64 at a time, few enough for the processor's cache


@dataclass(frozen=True)
class Look:
    """What can be seen at one check.

    Attributes:
        number: Of the check, from 0.
        step: Optimizer steps done.
        network: As it is now.
        data: What it is trained on.
        loss: On all training examples.
        held_out_loss: On examples kept from training; nan if there are none.
        reading: Of the probe; None on the path that holds examples out, where nobody asks for it.
        gradients: Of the probe's first examples, at the first check.
    """

    number: int
    step: int
    network: nn.Module
    data: Data
    loss: float
    held_out_loss: float
    reading: ProbeReading | None = None
    gradients: GradientSample | None = None


@dataclass(frozen=True)
class Stop:
    """How one way of stopping ended a run.

    Attributes:
        step: Where; None if it did not stop.
        kept: Step whose weights it keeps.
        refusal: Why it did not act at all; empty if it did.
    """

    step: int | None
    kept: int
    refusal: str = ""


class Stopper(ABC):
    """Sees every check until it stops.

    Attributes:
        stopped: The step at which it stopped; None before.
        refusal: Why it does not act.
    """

    stopped: int | None = None
    refusal: str = ""

    def look(self, look: Look) -> None:
        if self.stopped is None and not self.refusal and self.fires(look):
            self.stopped = look.step

    @abstractmethod
    def fires(self, look: Look) -> bool:
        """Take in a check."""

    def kept(self, last: int) -> int:
        """The step whose weights remain, of a run of `last` steps: unless overridden, those at the stop."""
        return last if self.stopped is None else self.stopped

    def result(self, last: int) -> Stop:
        return Stop(self.stopped, last if self.refusal else self.kept(last), self.refusal)


class Rule(Stopper):
    """One of ours, as `ComplexityEarlyStopping` asks it."""

    def __init__(self, rule: StoppingRule) -> None:
        self.stopper = ResidualStopper(rule)

    def fires(self, look: Look) -> bool:
        assert look.reading is not None
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
        self.trainer.callback_metrics = {self.monitor: torch.tensor(value)}
        self.callback._run_early_stopping_check(self.trainer)
        if self.callback.wait_count == 0 and not self.trainer.should_stop:
            self.best = look.step
        return self.trainer.should_stop

    def kept(self, last: int) -> int:
        return self.best if self.held_out else super().kept(last)


class Criterion:
    """The evidence of Mahsereci et al. 2017, computed once for all who ask at the same check."""

    def __init__(self) -> None:
        self.number, self.value = -1, 0.0

    def at(self, look: Look) -> float:
        if look.number != self.number:
            self.number, self.value = look.number, evidence_now(look.network, look.data)
        return self.value


class Evidence(Stopper):
    """Stops where the gradients of all examples cannot be told from noise.

    Args:
        criterion: That says so.
        in_a_row: Times that it must; the paper stops at the first.
    """

    def __init__(self, criterion: Criterion, in_a_row: int) -> None:
        self.criterion, self.in_a_row, self.times = criterion, in_a_row, 0

    def fires(self, look: Look) -> bool:
        if look.number % EVIDENCE_EVERY == 0:
            self.times = self.times + 1 if self.criterion.at(look) > 0 else 0
        return self.times >= self.in_a_row


def evidence_now(network: nn.Module, data: Data) -> float:
    """From all training examples, the first 512 if there are more."""
    x, y = data.x[:EVIDENCE_EXAMPLES], data.y[:EVIDENCE_EXAMPLES]
    rows = per_example_gradients(network, data.losses, x, y, chunk=128)
    parts = [moments(block.double()) for block in rows.split(COLUMNS, dim=1)]
    mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return float(evidence_of_moments(mean, variance, len(x)))


def on_full_data() -> dict[str, Stopper]:
    """All ways to stop that train on everything."""
    criterion = Criterion()
    return {
        "evidence": Evidence(criterion, 1),
        "evidence-5": Evidence(criterion, 5),
        "train-loss": Lightning(held_out=False),
        "dominance": Rule(HighComplexityDominance()),
        "whiteness": Rule(ResidualWhiteness()),
        "ours": Rule(SpectralRisk()),
    }
