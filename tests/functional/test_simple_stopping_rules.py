"""Dominance and whiteness fire where they should, stay silent where the order is reversed, and say why."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_spectral_risk import INDEX, RATES, SMOOTH, K, exact_dynamics
from torch import Tensor

from lightning_cx.functional.stopping import Decision, DominanceTracker, WhitenessTracker
from lightning_cx.functional.stopping.target import f_test

STRONG = 4 * SMOOTH


def followed(tracker: DominanceTracker | WhitenessTracker, residuals: Tensor) -> tuple[int | None, Decision]:
    for number, coefficients in enumerate(residuals):
        decision = tracker.check(coefficients)
        if decision.stop:
            return number, decision
    return None, decision


SEEDS = pytest.mark.parametrize("seeds", [5, pytest.param(20, marks=pytest.mark.slow)])


@SEEDS
@pytest.mark.parametrize("kind", [DominanceTracker, WhitenessTracker])
def test_a_noisy_target_is_left_before_its_noise_is_fitted(kind, seeds: int) -> None:
    ratios = []
    for seed in range(seeds):
        residuals, error = exact_dynamics(STRONG, 0.5, seed)
        stop, decision = followed(kind(), residuals)
        assert stop is not None
        assert decision.best_check == stop
        ratios.append(float(error[stop] / error.min()))
        assert error[stop] < error[-1] / 2
    # A few strong functions drown among the simple eighth long before they are learned: whiteness stops early here.
    assert np.mean(ratios) < {DominanceTracker: 2, WhitenessTracker: 4}[kind]


@SEEDS
def test_dominance_does_not_fire_where_complex_functions_are_learned_first(seeds: int) -> None:
    for seed in range(seeds):
        residuals, _ = exact_dynamics(STRONG, 0.5, seed, rates=RATES.flip(0))
        assert followed(DominanceTracker(), residuals[:200])[0] is None


def test_whiteness_does_not_fire_while_something_simple_is_left() -> None:
    residuals, error = exact_dynamics(STRONG, 0.5, 0)
    stop, decision = followed(WhitenessTracker(), residuals)
    early = WhitenessTracker().check(residuals[0])
    assert early.reason.startswith("the residual is not white yet (p = ")
    assert "is not distinguishable from white noise" in decision.reason
    assert stop is not None
    assert error[stop] < 0.1 * error[0]


def test_a_target_that_is_white_from_the_start_counts_from_the_second_check_on() -> None:
    noise = torch.randn(K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tracker = WhitenessTracker(patience=1)
    assert not tracker.check(noise).stop
    assert tracker.check(noise).stop


def test_patience_puts_the_stop_off() -> None:
    residuals, _ = exact_dynamics(STRONG, 0.5, 3)
    for kind in (DominanceTracker, WhitenessTracker):
        first = followed(kind(patience=1), residuals)[0]
        later = followed(kind(patience=4), residuals)[0]
        assert first is not None
        assert later is not None
        assert later >= first + 3


def test_dominance_says_how_much_of_what_was_learned_is_complex() -> None:
    residuals, _ = exact_dynamics(STRONG, 0.5, 0)
    tracker = DominanceTracker()
    decisions = [tracker.check(coefficients) for coefficients in residuals]
    assert all(math.isnan(decision.value) for decision in decisions[:5])
    assert "3 of 6 checks" in decisions[2].reason
    assert "something simple is still left to learn" in decisions[6].reason
    assert all(0 <= decision.value <= 1 for decision in decisions[5:] if not math.isnan(decision.value))


def test_the_f_test_is_scipys() -> None:
    some, others = torch.rand(10, dtype=torch.float64) * 3, torch.rand(40, dtype=torch.float64)
    expected = stats.f.sf(float(some.mean() / others.mean()), 30, 120)
    assert f_test(some, others, 3) == pytest.approx(expected)
    assert f_test(some, torch.zeros(4), 1) == 0
    assert f_test(torch.zeros(4), torch.zeros(4), 1) == 1


@pytest.mark.parametrize("kind", [DominanceTracker, WhitenessTracker])
def test_what_cannot_be_read_does_not_stop(kind) -> None:
    tracker = kind(patience=1)
    decision = tracker.check(torch.full((K,), math.nan))
    assert not decision.stop
    assert math.isnan(decision.value)
    for _ in range(12):  # nothing is learned at all
        decision = tracker.check(torch.zeros(K))
    assert decision.stop is (kind is WhitenessTracker)
    with pytest.raises(ValueError, match="16 functions at least, got shape"):
        tracker.check(INDEX[:15])
    with pytest.raises(ValueError, match="patience counts checks"):
        kind(patience=0)
