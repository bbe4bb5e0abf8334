"""The spectral bias index under dynamics whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cx.functional import spectral_bias_index
from lightning_cx.functional.complexity.residuals import energies_at_half


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0.05, 2), st.integers(1, 40))
def test_linear_dynamics_give_the_hyperbolic_tangent_of_the_difference_of_rates(
    low: float, high: float, time: float, half: int
) -> None:
    initial = torch.ones(2 * half, dtype=torch.float64)
    rates = torch.tensor([low] * half + [high] * half, dtype=torch.float64)
    current = initial * torch.exp(-2 * rates * time)  # amplitudes decay at `rates`, energies twice as fast
    assert spectral_bias_index(initial, current).item() == pytest.approx(math.tanh((low - high) * time), abs=1e-9)


@given(st.floats(0.1, 100))
def test_the_index_does_not_depend_on_the_scale(scale: float) -> None:
    initial, current = torch.rand(9).double() + 0.1, torch.rand(9).double()
    expected = spectral_bias_index(initial, current)
    torch.testing.assert_close(spectral_bias_index(initial * scale, current * scale), expected)


def test_reversing_the_axis_changes_the_sign() -> None:
    initial, current = torch.rand(8).double() + 0.1, torch.rand(8).double()
    forwards = spectral_bias_index(initial, current)
    torch.testing.assert_close(spectral_bias_index(initial.flip(0), current.flip(0)), -forwards)


def test_learning_everything_alike_is_no_bias() -> None:
    initial = torch.rand(12).double()
    assert spectral_bias_index(initial, initial * 0.3).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("current", [torch.zeros(3), torch.tensor([1.0, float("nan"), 1.0])])
def test_nothing_left_or_not_finite_gives_nan(current: torch.Tensor) -> None:
    assert spectral_bias_index(torch.ones(3), current).isnan()
    assert spectral_bias_index(torch.zeros(3), torch.ones(3)).isnan()


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different length"):
        spectral_bias_index(torch.ones(3), torch.ones(4))


def test_the_moment_of_half_energy_is_found_on_exponential_decay() -> None:
    rates = torch.tensor([2.0, 0.1], dtype=torch.float64)
    initial = torch.tensor([0.7, 0.3], dtype=torch.float64)
    before, after = initial * torch.exp(-rates * 0.1), initial * torch.exp(-rates * 4)
    at_half = energies_at_half(initial, before, after)
    assert at_half is not None
    assert at_half.sum().item() == pytest.approx(0.5, abs=1e-9)
    time = -torch.log(at_half / initial) / rates  # the same moment for both
    assert time[0].item() == pytest.approx(time[1].item(), abs=1e-9)


def test_a_sum_that_does_not_cross_half_gives_none() -> None:
    one = torch.ones(2)
    assert energies_at_half(one, one * 0.4, one * 0.3) is None
    assert energies_at_half(one, one, one * 0.6) is None
    assert energies_at_half(one, one, one * float("nan")) is None


def test_a_band_that_was_fitted_exactly_is_no_obstacle() -> None:
    at_half = energies_at_half(torch.ones(2), torch.ones(2), torch.tensor([0.0, 0.9]))
    assert at_half is not None
    assert at_half.isfinite().all()
