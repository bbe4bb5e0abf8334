"""The budget is kept, by every kind of work together, whatever the work costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.callbacks.budget import EveryNSteps, Ledger, OverheadBudget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    share: float,
    step: float,
    steps: int,
    costs: dict[str, float],
    guesses: dict[str, float],
    planned: float | None = None,
) -> tuple[Ledger, dict[str, list[int]]]:
    clock = Clock()
    ledger, schedule = Ledger(clock), OverheadBudget(share)
    ledger.start()
    done: dict[str, list[int]] = {work: [] for work in costs}
    for batch in range(steps):
        clock.now += step
        for work, cost in costs.items():
            if schedule.due(work, batch, guesses, step * steps if planned is None else planned, ledger):
                clock.now += cost
                ledger.book(work, cost)
                done[work].append(batch)
    return ledger, done


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.005, 0.3),
    st.lists(st.floats(0.05, 30), min_size=1, max_size=3),
)
def test_the_share_is_kept_when_guesses_are_right(share: float, sizes: list[float]) -> None:
    costs = {f"work {i}": size * 0.01 for i, size in enumerate(sizes)}
    ledger, _ = simulate(share, 0.01, 3000, costs, costs)
    assert ledger.share <= share * 1.001


def test_a_wrong_guess_is_paid_back_before_the_work_is_done_again() -> None:
    ledger, done = simulate(0.02, 0.01, 10_000, {"a": 0.05}, {"a": 0.001})
    assert ledger.share <= 0.02
    assert len(done["a"]) > 10


def test_a_cheap_kind_of_work_does_not_starve_a_dear_one() -> None:
    costs = {"cheap": 0.001, "dear": 0.5}
    _, done = simulate(0.02, 0.01, 20_000, costs, costs)
    assert len(done["dear"]) >= 3
    assert len(done["cheap"]) >= 100


def test_a_kind_that_the_whole_run_cannot_afford_holds_nothing_back() -> None:
    costs = {"cheap": 0.01, "out of reach": 1000.0}
    ledger, done = simulate(0.02, 0.01, 2000, costs, costs)
    assert not done["out of reach"]
    assert len(done["cheap"]) * 0.01 > 0.8 * 0.02 * ledger.elapsed  # nearly the whole budget


def test_the_first_reading_comes_early_on_credit_of_the_planned_run() -> None:
    costs = {"probe": 0.2}
    _, done = simulate(0.02, 0.01, 10_000, costs, costs)
    assert done["probe"][0] == 0
    _, late = simulate(0.02, 0.01, 1500, costs, costs)
    assert not late["probe"] or late["probe"][0] > 500  # too dear for credit: it has to be saved up for


def test_a_run_of_unknown_length_gets_credit_for_ten_minutes() -> None:
    costs = {"probe": 0.2}
    _, done = simulate(0.02, 0.01, 10, costs, costs, planned=math.inf)
    assert done["probe"] == [0]
    _, none = simulate(0.02, 0.01, 10, {"probe": 30.0}, {"probe": 30.0}, planned=math.inf)
    assert none["probe"] == []


def test_one_off_costs_count_as_spent_but_not_as_the_price_of_the_next_time() -> None:
    ledger = Ledger(Clock())
    ledger.book("a", 3.0, one_off=2.5)
    assert ledger.spent == 3.0
    assert ledger.cost("a", 99.0) == 0.5


def test_every_n_steps_is_a_plain_period() -> None:
    schedule = EveryNSteps(3)
    due = [b for b in range(10) if schedule.due("any", b, {}, 0.0, Ledger())]
    assert due == [0, 3, 6, 9]


def test_the_share_before_the_start_is_unknown() -> None:
    assert math.isnan(Ledger().share)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        OverheadBudget(share)
