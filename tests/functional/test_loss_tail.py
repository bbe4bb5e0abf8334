"""The law of a loss curve's end, its rate, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from lightning_cx.functional import loss_tail
from lightning_cx.functional.convergence import LossTail

Array = NDArray[Any]
STEPS = np.linspace(0, 1000, 101)

CURVES = {
    "power of 1": (lambda t: (1 + t) ** -1.0, "power", 1.0, 0.015),
    "power of 3": (lambda t: (1 + t) ** -3.0, "power", 3.0, 0.04),
    "rate of .01": (lambda t: 3 * np.exp(-0.01 * t), "exponential", 0.01, 5e-5),
    "floor, rate of .02": (lambda t: 3 * np.exp(-0.02 * t) + 0.05, "exponential with floor", 0.02, 2e-4),
    "flat": (lambda t: 0 * t + 0.7, "flat", 0.0, 0.0),
}


def noise(n: int, seed: int, correlation: float = 0.0) -> Array:
    """Standard normal deviations, each with its neighbour correlated."""
    fresh = np.random.default_rng(seed).normal(size=n)
    for i in range(1, n):
        fresh[i] = correlation * fresh[i - 1] + math.sqrt(1 - correlation**2) * fresh[i]
    return fresh


def tail_of(name: str, size: float, seed: int, correlation: float = 0.0, steps: Array = STEPS) -> LossTail:
    return loss_tail(steps, CURVES[name][0](steps) * np.exp(size * noise(len(steps), seed, correlation)))


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_law_and_its_rate_come_out_of_noisy_readings(name: str, seed: int) -> None:
    _, law, rate, tolerance = CURVES[name]
    tail = tail_of(name, 0.02, seed)
    assert tail.law == law
    assert tail.rate == pytest.approx(rate, abs=tolerance)
    assert tail.readings == 101
    assert tail.bic[law] == min(tail.bic.values())


@pytest.mark.parametrize("name", CURVES)
def test_without_noise_the_rate_is_exact(name: str) -> None:
    _, law, rate, _ = CURVES[name]
    tail = tail_of(name, 0.0, 0)
    assert tail.law == law
    assert tail.rate == pytest.approx(rate, rel=1e-5)


def test_the_law_is_found_in_most_runs_even_if_readings_hang_together() -> None:
    for name, (_, law, _, _) in CURVES.items():
        found = Counter(tail_of(name, 0.02, seed, 0.6).law for seed in range(20))
        assert found[law] >= 16, (name, found)


@pytest.mark.parametrize("seeds", [10, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_interval_holds_the_rate_about_as_often_as_it_says(correlation: float, seeds: int) -> None:
    for name in ("power of 1", "rate of .01", "floor, rate of .02", "flat"):
        _, law, rate, _ = CURVES[name]
        tails = [tail_of(name, 0.05, seed, correlation) for seed in range(seeds)]
        held = [tail.low <= rate <= tail.high for tail in tails if tail.law == law]
        assert len(held) >= 0.8 * seeds
        assert sum(held) / len(held) >= 0.8, name


def test_a_floor_is_fitted_as_by_scipy() -> None:
    def law(t: Array, size: float, rate: float, floor: float) -> Array:
        return np.log(size * np.exp(-rate * t) + floor)

    losses = CURVES["floor, rate of .02"][0](STEPS) * np.exp(0.02 * noise(101, 4))
    (_, rate, floor), covariance = curve_fit(law, STEPS, np.log(losses), p0=(2, 0.01, 0.02))
    tail = loss_tail(STEPS, losses)
    assert tail.rate == pytest.approx(rate, rel=1e-4)
    assert tail.floor == pytest.approx(floor, rel=1e-4)
    assert math.sqrt(covariance[1, 1]) <= tail.error <= 1.5 * math.sqrt(covariance[1, 1])  # at least as wide


def test_an_exponential_is_fitted_as_by_a_line_through_the_logarithms() -> None:
    losses = 3 * np.exp(-0.01 * STEPS + 0.02 * noise(101, 5))
    assert loss_tail(STEPS, losses).rate == pytest.approx(-np.polyfit(STEPS, np.log(losses), 1)[0], rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(CURVES)), st.floats(1e-6, 1e6), st.floats(1e-2, 1e3), st.floats(-1e3, 1e3))
def test_units_of_the_loss_of_the_step_and_the_first_step_do_not_matter(
    name: str, unit: float, stretch: float, start: float
) -> None:
    plain = tail_of(name, 0.02, 7)
    losses = unit * CURVES[name][0](STEPS) * np.exp(0.02 * noise(101, 7))
    moved = loss_tail(start + stretch * STEPS, losses)
    assert moved.law == plain.law
    assert moved.rate * (1 if plain.law == "power" else stretch) == pytest.approx(plain.rate, rel=1e-3)
    assert moved.level == pytest.approx(unit * plain.level, rel=1e-3)


def test_what_kind_of_array_it_is_does_not_matter() -> None:
    losses = np.exp(-0.01 * STEPS)
    expected = loss_tail(STEPS, losses)
    assert loss_tail(torch.tensor(STEPS), torch.tensor(losses)) == expected
    assert loss_tail(STEPS.tolist(), losses.tolist()) == expected
    assert loss_tail(torch.arange(0, 1010, 10), losses) == expected


def test_the_present_pace_of_a_power_law_falls_with_the_step() -> None:
    tail = tail_of("power of 1", 0.01, 0)
    assert tail.rate_now == pytest.approx(1 / 1001, rel=0.03)
    assert tail.half_life == pytest.approx(math.log(2) * 1001, rel=0.03)
    assert str(tail).startswith("falling as a power of the step, exponent 1 (95%: ")


def test_the_verdict_is_said_in_words() -> None:
    steps = np.arange(0, 3000, 30)
    converging = loss_tail(steps, np.exp(-0.0012 * steps + 0.01 * noise(100, 0)))
    assert str(converging).startswith(
        "converging at a linear rate of .0012 per step; the loss would halve every 580 steps (95%: "
    )
    floored = str(tail_of("floor, rate of .02", 0.02, 0))
    assert floored.startswith("converging at a linear rate of .02 per step to a floor of .05; what is above it halves")
    assert str(tail_of("flat", 0.02, 0)).startswith("flat at .7")
    assert str(loss_tail(steps, np.exp(0.001 * steps))).startswith("the loss is rising at .001 per step")


def test_laws_that_cannot_be_told_apart_are_said_so() -> None:
    late = np.linspace(500, 1000, 16)
    tails = [loss_tail(late, late**-1.0 * np.exp(0.02 * noise(16, seed))) for seed in range(8)]
    assert any(tail.lead < 2 for tail in tails)
    assert all(("another law fits nearly as well" in str(tail)) is (tail.lead < 2) for tail in tails)


def test_a_loss_that_rises_is_not_called_a_tail() -> None:
    tail = loss_tail(STEPS, np.exp(0.003 * STEPS + 0.02 * noise(101, 1)))
    assert tail.law == "rising"
    assert tail.rate == pytest.approx(-0.003, abs=1e-4)
    assert math.isnan(tail.floor)
    assert tail.half_life == math.inf


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], "0 usable readings of the loss, 16 are needed"),
        ([1.0], "1 usable readings of the loss, 16 are needed"),
        ([1.0] * 15, "15 usable readings of the loss, 16 are needed"),
        ([0.0] * 40, "0 usable readings of the loss, 16 are needed (40 are zero, negative or not finite"),
        ([-1.0] * 30 + [1.0] * 15, "15 usable readings of the loss, 16 are needed (30 are zero"),
        ([math.nan] * 20 + [math.inf] * 20, "0 usable readings"),
    ],
    ids=["none", "one", "15", "zeros", "negative", "not finite"],
)
def test_too_few_usable_readings_give_nan_and_the_reason(losses: list[float], reason: str) -> None:
    tail = loss_tail(range(len(losses)), losses)
    assert tail.law == "unknown"
    assert tail.reason.startswith(reason)
    assert all(math.isnan(v) for v in (tail.rate, tail.error, tail.low, tail.high, tail.rate_now, tail.half_life))
    assert str(tail) == f"no law of the loss: {tail.reason}"
    assert math.isnan(tail.lead)


def test_readings_without_a_logarithm_are_left_out() -> None:
    losses = np.exp(-0.01 * STEPS)
    spoilt = losses.copy()
    spoilt[[3, 50, 100]] = [0.0, math.nan, math.inf]
    tail = loss_tail(STEPS, spoilt)
    assert tail.readings == 98
    assert tail.rate == pytest.approx(loss_tail(STEPS, losses).rate, rel=1e-6)


@pytest.mark.parametrize("value", [1e-30, 1.0, 1e30])
def test_a_constant_loss_is_flat(value: float) -> None:
    tail = loss_tail(range(20), [value] * 20)
    assert tail.law == "flat"
    assert tail.floor == pytest.approx(value)
    assert tail.half_life == math.inf


def test_wrong_arrays_raise() -> None:
    with pytest.raises(ValueError, match=r"steps \[3\] and losses \[2\]"):
        loss_tail([1, 2, 3], [1.0, 2.0])
    with pytest.raises(ValueError, match="steps must ascend"):
        loss_tail([1, 1, 2], [1.0, 2.0, 3.0])
