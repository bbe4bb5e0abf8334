"""The bound index: the theorem's constant, its limit, and that nobody calls it more."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import gamma

from lightning_cx.functional import bound_index
from lightning_cx.functional.trajectories.geometry import levy_dimension_constant


def constant_by_hand(alpha: float, d: float) -> float:
    """The formula as THEORY 7 writes it, singular at 2."""
    return (2 - alpha) * gamma(1 - alpha / 2) * d ** (1 - alpha / 2) / (alpha * 2 ** (alpha / 2))


def test_the_constant_is_that_of_the_theory() -> None:
    assert float(levy_dimension_constant(1.6, 45258)) == pytest.approx(5.625324653930493, rel=1e-12)


@pytest.mark.parametrize("d", [1, 10, 10_000_000])
def test_the_constant_is_the_formula_and_goes_to_one_half_without_a_jump(d: int) -> None:
    for alpha in (1.0, 1.3, 1.7, 1.99, 2 - 1e-6):
        assert float(levy_dimension_constant(alpha, d)) == pytest.approx(constant_by_hand(alpha, d), rel=1e-6)
    assert float(levy_dimension_constant(2.0, d)) == 0.5
    assert float(levy_dimension_constant(2 - 1e-12, d)) == pytest.approx(0.5, abs=1e-9)


def test_the_index_is_the_formula() -> None:
    alpha, sigma, steps, rate, squared, n, d, radius = 1.6, 0.02, 3000, 0.05, 0.8, 1200, 45258, 2.5
    inside = constant_by_hand(alpha, d) * steps * rate * squared / (2 * n * radius ** (2 - alpha) * sigma**alpha)
    found = bound_index(alpha, sigma, steps, rate, squared, n, d, radius)
    assert float(found) == pytest.approx(100 * math.sqrt(inside), rel=1e-12)


def test_under_gaussian_noise_it_is_the_divergence_of_two_walks() -> None:
    """Steps of variance 2 eta sigma^2: the index is 100 sqrt(KL / n), with KL = eta g^2 / (4 sigma^2) for each."""
    rate, sigma, squared, steps, n = 0.1, 0.3, 2.0, 50, 700
    kl = (rate**2 * squared) / (2 * (2 * rate * sigma**2))
    expected = 100 * math.sqrt(steps * kl / n)
    assert float(bound_index(2.0, sigma, steps, rate, squared, n, d := 31)) == pytest.approx(expected, rel=1e-12)
    for radius in (0.1, 10.0):  # and neither the radius nor the dimension counts
        assert float(bound_index(2.0, sigma, steps, rate, squared, n, 7 * d, radius)) == pytest.approx(expected)


def test_several_indices_at_once_are_those_one_by_one() -> None:
    alphas = [1.2, 1.6, 2.0, 2.5, 0.5]
    together = bound_index(torch.tensor(alphas), 0.1, 100, 0.01, 1.0, 500, 1000)
    assert together[:3].tolist() == pytest.approx(
        [float(bound_index(a, 0.1, 100, 0.01, 1.0, 500, 1000)) for a in alphas[:3]]
    )
    assert bool(together[3:].isnan().all())


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_without_noise_there_is_no_index(sigma: float) -> None:
    assert math.isnan(bound_index(1.5, sigma, 100, 0.01, 1.0, 500, 1000))


def test_a_negative_gradient_is_no_gradient() -> None:
    assert math.isnan(bound_index(1.5, 0.1, 100, 0.01, -1.0, 500, 1000))
    assert float(bound_index(1.5, 0.1, 100, 0.01, 0.0, 500, 1000)) == 0.0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least one example, got examples=0"):
        bound_index(2.0, 0.1, 1, 0.1, 1.0, 0, 10)
    with pytest.raises(ValueError, match="at least one parameter, got parameters=0"):
        bound_index(2.0, 0.1, 1, 0.1, 1.0, 10, 0)
    with pytest.raises(ValueError, match="radius is a positive length, got radius=0"):
        bound_index(2.0, 0.1, 1, 0.1, 1.0, 10, 10, radius=0)
