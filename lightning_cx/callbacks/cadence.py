"""When a fit is looked at: the clock, the time of a plain step, and what the schedule makes of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from lightning_cx.callbacks._trainer import Trainer, planned_batches, total_batches
from lightning_cx.callbacks.collectives import numbers_of_all
from lightning_cx.callbacks.schedule import EveryNSteps, Ledger, Schedule

GRADIENTS, PROBE, PICTURES = "gradients", "the probe", "pictures"  # the kinds of work that share the budget, beside
PARAMETERS = "the parameters"  # and the passes of single instruments, which go by the instrument's name

WARM_UP_BATCHES = 2  # the first batches are slower than all others and tell nothing about the step time
STEP_TIMES = 16  # recent plain steps whose median is the step time
GRADIENT_STEPS = 2.0  # first guess: a sampled step takes so many plain steps longer (.2 to 3.9 were measured),
GRADIENT_SECONDS = 0.05  # and this on top: calibration and first use of kernels took a small convnet 15 to 75 ms
ASK_AGAIN = 0.25  # seconds for which a "not yet" of the budget is taken for granted: to ask takes 100 microseconds
PARAMETER_SECONDS = 0.001  # first guess: a copy of some millions of numbers
PICTURE_SECONDS = 0.3  # first guess for both pictures; .25 was measured, fonts included
PICTURE_PAUSE = 30.0  # seconds between pictures; the last come at the end of the run


@dataclass(frozen=True)
class PassesOf:
    """Passes that one instrument makes by itself.

    Attributes:
        name: Of the instrument.
        every_n_steps: A period of its own; None follows the schedule.
        seconds: Guess of the seconds that they take, from those of a step.
    """

    name: str
    every_n_steps: int | None
    seconds: Callable[[float], float]


class Cadence:
    """Decides which kind of work is due.

    Args:
        schedule: A fixed period, or a share of the wall time.
        ledger: What was spent so far.
        wanted: Whether anybody wants a kind of work.
        probe_seconds: Guess of the seconds that a look at the probe takes, from those of a step.
        passes: Kinds of work that are passes of single instruments.
    """

    def __init__(
        self,
        schedule: Schedule,
        ledger: Ledger,
        wanted: Callable[[str], bool],
        probe_seconds: Callable[[float], float],
        passes: Sequence[PassesOf] = (),
    ) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._wanted = wanted
        self._probe_seconds = probe_seconds
        self._pictures_drawn = perf_counter()
        self._passes = {work.name: work for work in passes}
        self._ask_again = dict.fromkeys((GRADIENTS, PROBE, PARAMETERS, PICTURES, *self._passes), -math.inf)
        self._batches = 0
        self._outlook_at: tuple[int, dict[str, float], float] = (-1, {}, 0.0)
        self._step_times: deque[float] = deque(maxlen=STEP_TIMES)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a plain step of late, None before there was one."""
        return median(self._step_times) if self._step_times else None

    def end_batch(self, plain_seconds: float | None) -> None:
        """Count a batch, and its seconds if nothing was sampled in it."""
        self._batches += 1
        if plain_seconds is not None and self._batches > WARM_UP_BATCHES:
            self._step_times.append(plain_seconds)

    def begin_batch(self, trainer: Trainer) -> None:
        """Before each batch: several processes agree here on what is due."""

    def drawn(self) -> None:
        """Pictures were drawn just now."""
        self._pictures_drawn = perf_counter()

    def end(self) -> None:
        """The fit is over: pictures need not wait."""
        self._pictures_drawn = self._ask_again[PICTURES] = -math.inf

    def due(self, work: str, trainer: Trainer) -> bool:
        """Whether a kind of work is to be done now."""
        period = self._period(work)
        if period is not None:
            at_period = total_batches(trainer) % period == 0
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

    def _period(self, work: str) -> int | None:
        """Batches between two times, where they are fixed."""
        own = self._passes[work].every_n_steps if work in self._passes else None
        return self._schedule.n if own is None and isinstance(self._schedule, EveryNSteps) else own

    def _affordable(self, work: str, trainer: Trainer) -> bool:
        if work == PICTURES and perf_counter() - self._pictures_drawn < PICTURE_PAUSE:
            return False
        estimates, planned = self._outlook(trainer)
        return self._schedule.due(work, total_batches(trainer), estimates, planned, self._ledger)

    def _outlook(self, trainer: Trainer) -> tuple[dict[str, float], float]:
        """What each kind of work will take and how long the run will last, in seconds; once a batch for all kinds."""
        if self._outlook_at[0] == self._batches:
            return self._outlook_at[1:]
        step = median(self._step_times)
        guesses: Mapping[str, float] = {
            GRADIENTS: GRADIENT_SECONDS + GRADIENT_STEPS * step,
            PROBE: self._probe_seconds(step),
            PARAMETERS: PARAMETER_SECONDS,
            PICTURES: PICTURE_SECONDS,
            **{name: work.seconds(step) for name, work in self._passes.items()},
        }
        free = (name for name in guesses if self._period(name) is None)
        estimates = {name: guesses[name] for name in free if self._wanted(name)}
        # The first batches are slow; what is left is counted in plain steps, and loading comes in as it passes.
        planned = self._ledger.elapsed + step * max(0.0, planned_batches(trainer) - self._batches)
        self._outlook_at = self._batches, estimates, planned
        return estimates, planned


class SharedCadence(Cadence):
    """The cadence of several processes: the clock of the first decides for all, at batches that all know beforehand.

    Clocks differ, and so may what has failed; a process that sampled alone would wait for the others for ever. To ask
    costs a collective operation, so it is done about four times a second, or once a period.
    """

    _next_ask = 0
    _planned: frozenset[str] = frozenset()

    def begin_batch(self, trainer: Trainer) -> None:
        self._planned = frozenset()
        works = [work for work in self._ask_again if work != PICTURES]
        periods = {self._period(work) for work in works} - {None}
        at_period = any(total_batches(trainer) % period == 0 for period in periods if period is not None)
        if not at_period and (isinstance(self._schedule, EveryNSteps) or self._batches < self._next_ask):
            return
        pause = max(1.0, WARM_UP_BATCHES + STEP_TIMES - self._batches)
        if self.step_seconds is not None and len(self._step_times) == STEP_TIMES:
            pause = max(1.0, ASK_AGAIN / max(self.step_seconds, 1e-6))
        own = (pause, *(super(SharedCadence, self).due(work, trainer) for work in works))
        decided = numbers_of_all(trainer, own)[0].tolist()
        self._next_ask = self._batches + int(decided[0])
        self._planned = frozenset(work for work, due in zip(works, decided[1:], strict=True) if due)

    def due(self, work: str, trainer: Trainer) -> bool:
        return super().due(work, trainer) if work == PICTURES else work in self._planned


def cadence_for(
    trainer: Trainer,
    schedule: Schedule,
    ledger: Ledger,
    wanted: Callable[[str], bool],
    probe_seconds: Callable[[float], float],
    passes: Sequence[PassesOf] = (),
) -> Cadence:
    """The cadence of a fit, by one process or by several."""
    return (SharedCadence if trainer.world_size > 1 else Cadence)(schedule, ledger, wanted, probe_seconds, passes)
