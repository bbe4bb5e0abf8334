"""Decide which measurements are due, from step timings, a schedule, and what was spent so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import final

from lightning_cx.callbacks.fit import Fit

GRADIENTS, PROBE, PICTURES = "gradients", "the probe", "pictures"  # the kinds of work that share the budget, beside
PARAMETERS = "the parameters"  # and the passes of single instruments, each under the instrument's key

WARM_UP_BATCHES = 2  # the first batches are slower than all others and tell nothing about the step time
STEP_TIMES = 16  # recent plain steps whose median is the step time
GRADIENT_STEPS = 2.0  # first guess: a sampled step takes so many plain steps longer (.2 to 3.9 were measured),
GRADIENT_SECONDS = 0.05  # and this on top: calibration and first use of kernels took a small convnet 15 to 75 ms
ASK_AGAIN = 0.25  # seconds for which a "not yet" of the budget is taken for granted: to ask takes 100 microseconds
PARAMETER_SECONDS = 0.001  # first guess: a copy of some millions of numbers
PICTURE_SECONDS = 0.3  # first guess for both pictures; .25 was measured, fonts included
PICTURE_PAUSE = 30.0  # seconds between pictures; the last come at the end of the run


UNKNOWN_LENGTH = 600.0  # seconds that a run of unknown length is taken to last, when its first readings are weighed
RESERVE = 0.1  # of the budget, kept for work that takes longer than the last time and for steps without any
EARLY_SHARE = 0.5  # of its account of the whole planned run, a kind of work may spend on its first reading


@dataclass
class Account:
    """Time spent on one kind of work.

    Attributes:
        spent: Seconds so far.
        last: Seconds that the work took the last time; None before the first.
        count: How often it was done.
    """

    spent: float = 0.0
    last: float | None = None
    count: int = 0


@dataclass
class Ledger:
    """Wall time of the run, and how much of it each kind of work took."""

    clock: Callable[[], float] = perf_counter
    accounts: dict[str, Account] = field(default_factory=dict)
    other: float = 0.0
    started: float | None = None

    def start(self) -> None:
        """Start the clock, once."""
        if self.started is None:
            self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def spent(self) -> float:
        """Seconds spent on everything."""
        return self.other + sum(account.spent for account in self.accounts.values())

    @property
    def share(self) -> float:
        """Share of the wall time that was ours, 0 to 1; nan before any time has passed."""
        elapsed = self.elapsed
        return self.spent / elapsed if elapsed > 0 else math.nan

    def cost(self, work: str, guess: float) -> float:
        """Return the seconds that a kind of work will take: what it took the last time, or else the guess."""
        last = self.accounts.get(work, Account()).last
        return guess if last is None else last

    def book(self, work: str, seconds: float, one_off: float = 0.0) -> None:
        """Enter that a kind of work was done once and took so long, `one_off` of it never to be needed again."""
        account = self.accounts.setdefault(work, Account())
        account.spent += seconds
        account.last = max(0.0, seconds - one_off)
        account.count += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the block as spent; what is booked by name inside it is not counted twice."""
        start, booked = self.clock(), self.spent
        try:
            yield
        finally:
            self.other += self.clock() - start - (self.spent - booked)


SIXTEENTH = 16
"""A check at every sixteenth: a fit changes by the logarithm of time, and gaps four times as wide cost .04 of the error
(THEORY section 5)."""


def next_check(step: int, every_n_steps: int | None, least_gap: int = 1, growth: float = 1 / SIXTEENTH) -> int:
    """Return the step of the next check of a stopping rule: at a fixed period, or ever more rarely.

    Args:
        step: Optimizer steps done at the last check.
        every_n_steps: The period; None checks again after a share of the steps done so far.
        least_gap: Steps between two checks at least, in the latter case.
        growth: That share.

    Example:
        >>> step, steps = 0, []
        >>> while step < 100:
        ...     step = next_check(step, None, least_gap=8)
        ...     steps.append(step)
        >>> steps[-3:], next_check(1600, None), next_check(105, every_n_steps=50)
        ([88, 96, 104], 1700, 150)
    """
    if every_n_steps is not None:
        return (step // every_n_steps + 1) * every_n_steps
    return step + max(least_gap, int(step * growth), 1)


class Schedule(ABC):
    """Decide whether a kind of work is due."""

    @abstractmethod
    def due(self, work: str, batch: int, estimates: Mapping[str, float], planned: float, ledger: Ledger) -> bool:
        """Return whether to do it now.

        Args:
            work: Name of the kind of work.
            batch: Number of the batch since the start of the fit.
            estimates: For every kind of work, the seconds that it takes, guessed; used until it was done once.
            planned: How many seconds the whole run will last, inf if unknown.
            ledger: What was spent so far.
        """


@final
class EveryNSteps(Schedule):
    """Do every kind of work at every n-th batch.

    Args:
        n: The period, at least 1.

    Raises:
        ValueError: If `n` is less than 1.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {n}.")
        self.n = n

    def due(self, work: str, batch: int, estimates: Mapping[str, float], planned: float, ledger: Ledger) -> bool:
        del work, estimates, planned, ledger
        return batch % self.n == 0


@final
class OverheadBudget(Schedule):
    """Measure as often as `share` of the wall time allows, by what the work really took.

    The share is split evenly over the kinds of work that the planned run can afford at all, so that a cheap kind
    cannot starve a dear one, and one that is out of reach holds nothing back. Work is due when its account has saved
    up for it. The first reading of each kind may come early, on credit: a spectrum needs its beginning.

    Args:
        share: Share of the wall time, between 0 and 1.

    Raises:
        ValueError: If `share` does not lie between 0 and 1.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"overhead_budget must lie between 0 and 1, got {share}.")
        self.share = share

    def due(self, work: str, batch: int, estimates: Mapping[str, float], planned: float, ledger: Ledger) -> bool:
        del batch
        planned = UNKNOWN_LENGTH if math.isinf(planned) else planned
        costs = {name: ledger.cost(name, guess) for name, guess in estimates.items()}
        sharers = self._sharers(costs, planned)
        if work not in sharers:
            return False
        own_share = self.share / len(sharers)
        account = ledger.accounts.get(work, Account())
        if account.count == 0 and costs[work] <= EARLY_SHARE * own_share * planned:
            return True
        saved_up = account.spent + costs[work] <= own_share * ledger.elapsed
        return saved_up and ledger.spent + costs[work] <= (1 - RESERVE) * self.share * ledger.elapsed

    def _sharers(self, costs: Mapping[str, float], planned: float) -> set[str]:
        """Return the kinds of work that a fair share of the whole planned run can pay for at least once."""
        cheapest_first = sorted(costs, key=lambda name: costs[name])
        while cheapest_first and costs[cheapest_first[-1]] > self.share * planned / len(cheapest_first):
            cheapest_first.pop()
        return set(cheapest_first)


@dataclass(frozen=True)
class PassesOf:
    """Passes that one instrument makes by itself.

    Attributes:
        key: Of the instrument.
        every_n_steps: A period of its own; None follows the schedule.
        seconds: Guess of the seconds that they take, from those of a step.
    """

    key: str
    every_n_steps: int | None
    seconds: Callable[[float], float]


class Cadence:
    """Decide which kind of work is due.

    Args:
        fit: That is measured.
        schedule: A fixed period, or a share of the wall time.
        ledger: What was spent so far.
        wanted: Whether an instrument wants a kind of work.
        probe_seconds: Guess of the seconds that a reading of the probe takes, from those of a step.
        passes: Kinds of work that are passes of single instruments.
    """

    def __init__(
        self,
        fit: Fit,
        schedule: Schedule,
        ledger: Ledger,
        wanted: Callable[[str], bool],
        probe_seconds: Callable[[float], float],
        passes: Sequence[PassesOf] = (),
    ) -> None:
        self._fit = fit
        self._schedule = schedule
        self._ledger = ledger
        self._wanted = wanted
        self._probe_seconds = probe_seconds
        self._pictures_drawn = perf_counter()
        self._passes = {work.key: work for work in passes}
        self._ask_again = dict.fromkeys((GRADIENTS, PROBE, PARAMETERS, PICTURES, *self._passes), -math.inf)
        self._batches = 0
        self._outlook_at: tuple[int, dict[str, float], float] = (-1, {}, 0.0)
        self._step_times: deque[float] = deque(maxlen=STEP_TIMES)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a recent plain step; None before there was one."""
        return median(self._step_times) if self._step_times else None

    def end_batch(self, plain_seconds: float | None) -> None:
        """Count a batch, and its seconds if nothing was sampled in it."""
        self._batches += 1
        if plain_seconds is not None and self._batches > WARM_UP_BATCHES:
            self._step_times.append(plain_seconds)

    def begin_batch(self) -> None:
        """Agree with other processes on what is due, before each batch."""

    def drawn(self) -> None:
        """Note that pictures were drawn just now."""
        self._pictures_drawn = perf_counter()

    def end(self) -> None:
        """Let pictures wait no longer: the fit is over."""
        self._pictures_drawn = self._ask_again[PICTURES] = -math.inf

    def due(self, work: str) -> bool:
        """Return whether a kind of work is to be done now."""
        period = self._period(work)
        if period is not None:
            at_period = self._fit.batches % period == 0
            if work == PICTURES:  # drawn at every sample they would hide one another
                at_period = perf_counter() - self._pictures_drawn > PICTURE_PAUSE
            return at_period and self._wanted(work)
        now = perf_counter()
        if now < self._ask_again[work] or len(self._step_times) < STEP_TIMES:
            return False
        due = self._wanted(work) and self._affordable(work)
        if not due:
            self._ask_again[work] = now + ASK_AGAIN
        return due

    def _period(self, work: str) -> int | None:
        """Return the period of a kind of work, in batches, where it is fixed."""
        own = self._passes[work].every_n_steps if work in self._passes else None
        return self._schedule.n if own is None and isinstance(self._schedule, EveryNSteps) else own

    def _affordable(self, work: str) -> bool:
        if work == PICTURES and perf_counter() - self._pictures_drawn < PICTURE_PAUSE:
            return False
        estimates, planned = self._outlook()
        return self._schedule.due(work, self._fit.batches, estimates, planned, self._ledger)

    def _outlook(self) -> tuple[dict[str, float], float]:
        """Return what each kind of work will take and how long the run will last, in seconds; once a batch for all."""
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
        planned = self._ledger.elapsed + step * max(0.0, self._fit.planned_batches - self._batches)
        self._outlook_at = self._batches, estimates, planned
        return estimates, planned


class SharedCadence(Cadence):
    """Decide for several processes: the clock of the first counts for all, at batches that all know beforehand.

    Clocks differ, and so may what has failed; a process that sampled alone would wait for the others for ever. Asking
    takes a collective operation, so it is done about four times a second, or once a period.
    """

    _next_ask = 0
    _planned: frozenset[str] = frozenset()

    def begin_batch(self) -> None:
        self._planned = frozenset()
        works = [work for work in self._ask_again if work != PICTURES]
        periods = {self._period(work) for work in works} - {None}
        at_period = any(self._fit.batches % period == 0 for period in periods if period is not None)
        if not at_period and (isinstance(self._schedule, EveryNSteps) or self._batches < self._next_ask):
            return
        pause = max(1.0, WARM_UP_BATCHES + STEP_TIMES - self._batches)
        if self.step_seconds is not None and len(self._step_times) == STEP_TIMES:
            pause = max(1.0, ASK_AGAIN / max(self.step_seconds, 1e-6))
        own = (pause, *(super(SharedCadence, self).due(work) for work in works))
        decided = self._fit.numbers_of_all(own)[0].tolist()
        self._next_ask = self._batches + int(decided[0])
        self._planned = frozenset(work for work, due in zip(works, decided[1:], strict=True) if due)

    def due(self, work: str) -> bool:
        return super().due(work) if work == PICTURES else work in self._planned


def cadence_for(
    fit: Fit,
    schedule: Schedule,
    ledger: Ledger,
    wanted: Callable[[str], bool],
    probe_seconds: Callable[[float], float],
    passes: Sequence[PassesOf] = (),
) -> Cadence:
    """Return the cadence of a fit, of one process or several."""
    return (SharedCadence if fit.world_size > 1 else Cadence)(fit, schedule, ledger, wanted, probe_seconds, passes)


SHORT_BATCH = 0.5  # a batch smaller than this share of the largest seen is passed over


class FullBatches:
    """Pass over batches much smaller than others: a full one says more, and the next one is near.

    Attributes:
        owed: Whether a batch was passed over, so that the next one is due.
    """

    def __init__(self) -> None:
        self.owed = False
        self._largest = 0

    def take(self, examples: int) -> bool:
        """Return whether a batch of so many examples is full; if not, one is owed.

        Example:
            >>> batches = FullBatches()
            >>> [batches.take(32), batches.take(3), batches.owed, batches.take(32), batches.owed]
            [True, False, True, True, False]
        """
        self._largest = max(self._largest, examples)
        self.owed = examples < SHORT_BATCH * self._largest
        return not self.owed

    def state_dict(self) -> dict[str, int]:
        """Return what has to survive a checkpoint, for a resumed run to sample the batches of an uninterrupted one."""
        return {"owed": self.owed, "largest": self._largest}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what `state_dict` returned."""
        self.owed, self._largest = bool(state["owed"]), state["largest"]
