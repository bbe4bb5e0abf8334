"""How much of each band is fitted, and which side of the target is being learned now."""

import math

import pytest
import torch

from lightning_cx.functional import fitted_fraction, octave_bands
from lightning_cx.functional.complexity.residuals import high_complexity_dominance

LEVELS = torch.tensor([0, 1, 1, 2, 3, 4, 5, 6, 7, 7])
BANDS = octave_bands(8)


def coefficients(seed: int = 0, outputs: int = 3) -> torch.Tensor:
    return torch.randn(10, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_dynamics_give_one_minus_the_exponential():
    rates = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).double()  # one rate for each band
    initial = coefficients()
    current = torch.exp(-rates * 1.5)[:, None] * initial
    expected = 1 - torch.exp(-1.5 * torch.tensor([2.0, 1.0, 0.5, 0.1]).double())
    torch.testing.assert_close(fitted_fraction(initial, current, LEVELS, BANDS), expected)


def test_new_errors_across_the_target_do_not_count_as_unfitted():
    initial = torch.zeros(10, 2, dtype=torch.float64)
    initial[:, 0] = 1
    current = torch.zeros_like(initial)
    current[:, 1] = 5  # all of the target fitted, and noise made in the other output
    assert fitted_fraction(initial, current, LEVELS, BANDS).tolist() == [1.0] * 4


def test_overshooting_and_moving_away_are_clipped():
    initial = coefficients()
    assert fitted_fraction(initial, -initial, LEVELS, BANDS).tolist() == [1.0] * 4
    assert fitted_fraction(initial, 2 * initial, LEVELS, BANDS).tolist() == [0.0] * 4


def test_rotating_the_functions_of_a_level_and_scaling_change_nothing():
    initial, current = coefficients(0), coefficients(1)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = []
    for values in (initial, current):
        values = 1e3 * values
        values[1:3] = turn @ values[1:3]
        turned.append(values)
    torch.testing.assert_close(
        fitted_fraction(*turned, LEVELS, BANDS), fitted_fraction(initial, current, LEVELS, BANDS)
    )


def test_an_empty_band_and_numbers_that_are_not_finite_give_nan():
    initial = coefficients()
    initial[0] = 0
    current = initial.clone()
    current[3] = math.nan
    assert fitted_fraction(initial, current, LEVELS, BANDS).isnan().tolist() == [True, False, True, False]


def test_a_vector_is_one_output_and_shapes_must_agree():
    assert fitted_fraction(torch.ones(10), torch.zeros(10), LEVELS, BANDS).tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="different shape"):
        fitted_fraction(torch.ones(10), torch.ones(9), LEVELS, BANDS)


@pytest.mark.parametrize(("low_rate", "high_rate", "expected"), [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.5, 0.5, 0.5)])
def test_dominance_says_which_side_is_being_learned(low_rate, high_rate, expected):
    initial = torch.tensor([3.0, 1.0, 1.0, 3.0])
    after = initial * torch.exp(-torch.tensor([low_rate, low_rate, high_rate, high_rate]))
    assert float(high_complexity_dominance(initial, initial, after)) == pytest.approx(expected, abs=1e-7)


def test_dominance_cuts_at_the_median_of_the_initial_residual_not_in_the_middle_of_the_axis():
    initial = torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0])
    after = initial - torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])  # below the middle of the axis, above the median
    assert float(high_complexity_dominance(initial, initial, after)) == 1.0


def test_a_side_that_grows_has_lost_nothing():
    initial = torch.ones(2)
    assert float(high_complexity_dominance(initial, initial, torch.tensor([1.5, 0.9]))) == 1.0


def test_dominance_is_unknown_where_nothing_is_lost_or_numbers_are_not_finite():
    one = torch.ones(2)
    assert high_complexity_dominance(one, one, one).isnan()
    assert high_complexity_dominance(one, one, 2 * one).isnan()
    assert high_complexity_dominance(one, one, torch.tensor([math.nan, 0.5])).isnan()
    assert high_complexity_dominance(torch.zeros(2), one, one / 2).isnan()
    with pytest.raises(ValueError, match="different length"):
        high_complexity_dominance(one, one, torch.ones(3))
