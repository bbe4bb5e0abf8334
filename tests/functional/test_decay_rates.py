"""Rates of decay with intervals that hold, and a half-life only where something falls."""

import math

import pytest
import torch
from scipy.stats import linregress

from lightning_cx.functional import decay_rates

STEPS = torch.arange(0, 200, 10)


def test_exponentials_give_their_rates():
    rates = torch.tensor([0.01, 0.05, 0.0, -0.02], dtype=torch.float64)
    found = decay_rates(STEPS, 3 * torch.exp(-rates * STEPS[:, None]))
    torch.testing.assert_close(found.rate, rates, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.half_life[:2], math.log(2) / rates[:2])
    assert found.half_life[3] == math.inf


def test_the_line_is_that_of_least_squares():
    noise = torch.randn(len(STEPS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = torch.exp(-0.02 * STEPS + 0.1 * noise)
    found = decay_rates(STEPS, energy[:, None])
    expected = linregress(STEPS.numpy(), energy.log().numpy())
    assert float(found.rate) == pytest.approx(-expected.slope)
    # Never narrower than for independent readings.
    assert float(found.high - found.rate) > 0.99 * 2.1 * expected.stderr


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.93), (0.5, 0.87), (0.8, 0.8)])
def test_the_interval_holds_the_rate_though_readings_hang_together(correlation, least):
    draw = torch.Generator().manual_seed(1)
    state, deviations = torch.randn(1000, generator=draw, dtype=torch.float64), []
    for _ in range(16):
        fresh = torch.randn(1000, generator=draw, dtype=torch.float64)
        state = correlation * state + (1 - correlation**2) ** 0.5 * fresh
        deviations.append(0.1 * state)
    found = decay_rates(torch.arange(16), torch.exp(-0.05 * torch.arange(16)[:, None] + torch.stack(deviations)))
    covered = (found.low <= 0.05) & (found.high >= 0.05)
    assert float(covered.double().mean()) > least


def test_falling_is_claimed_only_where_the_interval_is_above_zero():
    noise = torch.randn(len(STEPS), 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = decay_rates(STEPS, torch.exp(-torch.tensor([0.05, 0.0]) * STEPS[:, None] + 0.2 * noise))
    assert found.falls.tolist() == [True, False]


def test_units_of_time_and_energy_scale_as_they_should():
    energy = torch.rand(len(STEPS), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    plain, scaled = decay_rates(STEPS, energy), decay_rates(10 * STEPS + 7, 1e6 * energy)
    torch.testing.assert_close(10 * scaled.rate, plain.rate)
    torch.testing.assert_close(10 * scaled.high, plain.high)


def test_too_few_or_unusable_readings_are_refused():
    energy = torch.exp(-0.1 * torch.arange(8.0))[:, None].repeat(1, 4)
    energy[:3, 1] = math.nan
    energy[:3, 2] = 0
    energy[:2, 3] = math.inf
    found = decay_rates(torch.arange(8), energy)
    assert found.rate.isnan().tolist() == [False, True, True, False]
    assert found.half_life.isnan().tolist() == [False, True, True, False]
    assert decay_rates(torch.zeros(8), energy).rate.isnan().all()
    assert decay_rates(torch.zeros(0), torch.zeros(0, 2)).rate.isnan().all()


def test_each_step_needs_a_row():
    with pytest.raises(ValueError, match=r"steps \[3\] and energies \[2, 1\]"):
        decay_rates(torch.arange(3), torch.ones(2, 1))
