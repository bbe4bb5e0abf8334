"""When to measure: at a fixed period, or as often as a share of the wall time allows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import final

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
        """Begin to count, once."""
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
        """Seconds that a kind of work will take: what it took the last time, or else the guess."""
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


def next_check(step: int, every_n_steps: int | None, least_gap: int = 1) -> int:
    """The step of the next check of a stopping rule: at a fixed period, or ever more rarely.

    Args:
        step: Optimizer steps done at the last check.
        every_n_steps: The period; None checks again after a sixteenth of the steps done so far.
        least_gap: Steps between two checks at least, in the latter case.

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
    return step + max(least_gap, step // SIXTEENTH, 1)


class Schedule(ABC):
    """Decides whether a kind of work is due."""

    @abstractmethod
    def due(self, work: str, batch: int, estimates: Mapping[str, float], planned: float, ledger: Ledger) -> bool:
        """Whether to do it now.

        Args:
            work: Name of the kind of work.
            batch: Number of the batch since the start of the fit.
            estimates: For every kind of work, the seconds that it takes, guessed; used until it was done once.
            planned: How many seconds the whole run will last, inf if unknown.
            ledger: What was spent so far.
        """


@final
class EveryNSteps(Schedule):
    """Every kind of work at every n-th batch.

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
    """As often as `share` of the wall time allows, told from what the work really took.

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
        """Kinds of work that a fair share of the whole planned run can pay for at least once."""
        cheapest_first = sorted(costs, key=lambda name: costs[name])
        while cheapest_first and costs[cheapest_first[-1]] > self.share * planned / len(cheapest_first):
            cheapest_first.pop()
        return set(cheapest_first)
