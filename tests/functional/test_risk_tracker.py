"""What the callback's rule does beyond THEORY's: ties, doubt about noise, steps, and checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_cx.functional import spectral_risk
from lightning_cx.functional.stopping import (
    DominanceTracker,
    RiskTracker,
    WhitenessTracker,
    dominance,
    residual_whiteness,
)

K = 256
INDEX = np.arange(K)
RATES = 1 / (1 + INDEX)


def path(seed: int = 0, noise: float = 0.5, checks: int = 120, growth: float = 1.08) -> tuple[np.ndarray, np.ndarray]:
    """Exact linear dynamics with checks ever more rarely: steps ``[T]`` and residuals ``[T, K]``."""
    draw = np.random.default_rng(seed)
    start = 30 / (1 + INDEX) ** 2 + noise * draw.normal(size=K)
    steps = np.concatenate([[0.0], growth ** np.arange(checks - 1)])
    return steps, start * np.exp(-np.outer(steps, RATES))


def follow(tracker: RiskTracker, steps: np.ndarray | None, residuals: np.ndarray) -> tuple[int | None, int]:
    for number, coefficients in enumerate(residuals):
        decision = tracker.check(coefficients, None if steps is None else float(steps[number]))
        if decision.stop:
            return number, decision.best_check
    return None, tracker.best_check


def test_doubling_counts_steps_where_they_are_known() -> None:
    steps, residuals = path()
    plain, best = follow(RiskTracker(patience=3), steps, residuals)
    doubled, same = follow(RiskTracker(patience=3, doubling=True), steps, residuals)
    assert plain is not None
    assert doubled is not None
    assert same == best
    assert steps[doubled] >= 2 * steps[best] > steps[doubled - 1] or doubled == plain
    by_checks, _ = follow(RiskTracker(patience=3, doubling=True), None, residuals)
    assert by_checks is None or by_checks >= 2 * best


def test_of_risks_that_cannot_be_told_apart_the_later_is_kept() -> None:
    for seed in range(10):
        steps, residuals = path(seed)
        lowest, late = RiskTracker(), RiskTracker(tie=1.0)
        stop, best = follow(lowest, steps, residuals)
        again, kept = follow(late, steps, residuals)
        assert stop == again  # when to stop is no matter of ties
        assert best <= kept < (stop or len(steps))
        curve = spectral_risk(residuals[:, :, None])
        assert curve.risk[kept] - curve.risk[best] <= curve.standard_error[kept] + 1e-12
        assert curve.best_check == best


def test_noise_in_doubt_does_not_stop() -> None:
    _, residuals = path()
    sure, _ = follow(RiskTracker(), None, residuals)
    half, _ = follow(RiskTracker(least_sigma2=0.2), None, residuals)
    none, _ = follow(RiskTracker(least_sigma2=0.0), None, residuals)
    assert sure is not None
    assert none is None
    assert half is None or half >= sure
    same, _ = follow(RiskTracker(sigma2=0.25, least_sigma2=0.25), None, residuals)
    given, _ = follow(RiskTracker(sigma2=0.25), None, residuals)
    assert same == given


def test_a_step_that_went_wrong_does_not_count_as_fitting_noise() -> None:
    steps, residuals = path(checks=40)
    broken = residuals[25] + 3 * residuals[0] * (INDEX < 8)  # the simple part comes back, as large steps make it
    tracker = RiskTracker(patience=3)
    for number in range(26):
        tracker.check(residuals[number], float(steps[number]))
    for _ in range(10):
        decision = tracker.check(broken, 100.0)
        assert not decision.stop
        assert tracker.certainly_past  # at the end of the run the best weights would be put back all the same


@pytest.mark.parametrize("kind", [lambda: RiskTracker(patience=5, tie=1.0), DominanceTracker, WhitenessTracker])
@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_checkpoint_changes_nothing(kind, cut: int) -> None:
    _, residuals = path(3)
    whole, first, second = kind(), kind(), kind()
    straight = [whole.check(r) for r in residuals[:60]]
    before = [first.check(r) for r in residuals[:cut]]
    second.load_state_dict(first.state_dict())
    after = [second.check(r) for r in residuals[cut:60]]
    assert [str(d) for d in straight] == [str(d) for d in before + after]
    assert [d.best_check for d in straight] == [d.best_check for d in before + after]


def test_a_basis_that_was_made_again_with_other_signs_gives_the_same_decisions() -> None:
    _, residuals = path(4)
    signs = np.where(np.random.default_rng(0).random(K) < 0.5, -1.0, 1.0)
    whole, first, second = RiskTracker(), RiskTracker(), RiskTracker()
    straight = [whole.check(r) for r in residuals[:60]]
    for r in residuals[:20]:
        first.check(r)
    second.load_state_dict(first.state_dict())
    second.rebase(residuals[0] * signs)
    after = [second.check(r * signs) for r in residuals[20:60]]
    np.testing.assert_allclose([d.value for d in after], [d.value for d in straight[20:]], rtol=1e-12)
    assert [d.stop for d in after] == [d.stop for d in straight[20:]]


def test_memory_does_not_grow_with_the_number_of_checks() -> None:
    steps, residuals = path(checks=80)
    sizes = []
    tracker = RiskTracker(patience=10**6)
    for number, coefficients in enumerate(residuals):
        tracker.check(coefficients, float(steps[number]))
        state = tracker.state_dict()
        sizes.append(sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor)))
    assert max(sizes[1:]) == sizes[1] <= K + 2 * 9


def test_all_at_once_is_check_by_check() -> None:
    _, residuals = path(5)
    for function, tracker in ((dominance, DominanceTracker()), (residual_whiteness, WhitenessTracker())):
        at_once = function(residuals)
        for number, coefficients in enumerate(residuals):
            decision = tracker.check(coefficients)
            if decision.stop:
                assert at_once.best_check == number
                break
        assert str(decision) == str(at_once)
        assert at_once.stop
        with pytest.raises(ValueError, match="with a check at least"):
            function(np.zeros((0, 32)))
        with pytest.raises(ValueError, match="with a check at least"):
            function(np.zeros(32))


def test_guarded_dominance_does_not_fire_where_complex_functions_are_learned_first() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        start = 30 / (1 + INDEX) ** 2 + 0.5 * draw.normal(size=K)
        steps = np.concatenate([[0.0], np.geomspace(0.1, 2000, 100)])
        assert not dominance(start * np.exp(-np.outer(steps, RATES[::-1]))).stop


def test_numbers_out_of_range_are_refused() -> None:
    for options in ({"least_sigma2": -1.0}, {"tie": -0.1}, {"tie": math.nan}, {"least_sigma2": math.nan}):
        with pytest.raises(ValueError, match="got"):
            RiskTracker(**options)
