"""Hill's index and the extreme value index, on laws whose tails are known."""

from __future__ import annotations

import math

import pytest
import torch
from _tail_laws import draw, naive_hill, naive_xi, pareto, stable, student
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize

from lightning_cx.functional import hill, xi_dedh

SEEDS = range(60)
N = 4096


def normal(seed: int) -> torch.Tensor:
    return torch.randn(N, generator=draw(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("law", "xi", "tolerance"),
    [
        (lambda seed: pareto(1.5, N, seed), 1 / 1.5, 0.22),
        (lambda seed: student(2, N, seed), 0.5, 0.22),
        (lambda seed: student(3, N, seed), 1 / 3, 0.24),
    ],
    ids=["Pareto 1.5", "t2", "t3"],
)
def test_xi_of_power_laws_is_found(law, xi: float, tolerance: float) -> None:
    assert max(abs(float(xi_dedh(law(seed)).index) - xi) for seed in SEEDS) <= tolerance


def test_xi_of_normal_numbers_is_not_above_zero() -> None:
    assert max(float(xi_dedh(normal(seed)).index) for seed in SEEDS) <= 0.10


@pytest.mark.parametrize(
    ("law", "alpha"),
    [(lambda s: pareto(1.5, N, s), 1.5), (lambda s: student(2, N, s), 2.0), (lambda s: student(3, N, s), 3.0)],
    ids=["Pareto 1.5", "t2", "t3"],
)
def test_hill_finds_the_exponent_within_a_third(law, alpha: float) -> None:
    assert max(abs(float(hill(law(seed)).index) / alpha - 1) for seed in SEEDS) <= 0.34


@pytest.mark.parametrize("seed", range(3))
def test_both_are_the_plain_formulas(seed: int) -> None:
    samples = student(2.5, 400, seed)
    assert float(hill(samples).index) == pytest.approx(naive_hill(samples, 40), rel=1e-12)
    assert float(hill(samples, k=25).index) == pytest.approx(naive_hill(samples, 25), rel=1e-12)
    assert float(xi_dedh(samples).index) == pytest.approx(naive_xi(samples, 40), rel=1e-12)
    assert float(xi_dedh(samples, fraction=0.25).index) == pytest.approx(naive_xi(samples, 100), rel=1e-12)


def test_intervals_cover_a_power_law_in_95_of_100_cases() -> None:
    power = [hill(pareto(1.5, 1024, seed)) for seed in range(400)]
    assert 0.92 <= sum(bool(fit.low <= 1.5 <= fit.high) for fit in power) / 400 <= 0.98
    moment = [xi_dedh(pareto(1.5, 4096, seed)) for seed in range(400)]
    assert 0.90 <= sum(bool(fit.low <= 1 / 1.5 <= fit.high) for fit in moment) / 400 <= 0.98


@pytest.mark.parametrize("n", [128, 256, 512])
def test_the_interval_of_xi_covers_with_small_tails_too(n: int) -> None:
    for alpha in (1.5, 2.0, 3.0):
        fits = [xi_dedh(pareto(alpha, n, seed)) for seed in range(300)]
        assert sum(bool(fit.low <= 1 / alpha <= fit.high) for fit in fits) / 300 >= 0.92


def test_the_interval_of_xi_covers_where_magnitudes_have_an_end_too() -> None:
    ends = [xi_dedh(torch.rand(4096, generator=draw(seed), dtype=torch.float64)) for seed in range(300)]  # xi = -1
    assert 0.90 <= sum(bool(fit.low <= -1 <= fit.high) for fit in ends) / 300 <= 0.98


def test_norms_of_vectors_count() -> None:
    vectors = torch.randn(600, 7, generator=draw(0)) * pareto(1.8, 600, 1)[:, None]
    norms = vectors.double().norm(dim=1)
    assert float(hill(vectors).index) == pytest.approx(float(hill(norms).index), rel=1e-9)
    assert float(xi_dedh(vectors).index) == pytest.approx(float(xi_dedh(norms).index), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-100, 1e100))
def test_scale_sign_and_order_do_not_matter(seed: int, scale: float) -> None:
    samples = student(2, 200, seed)
    order = torch.randperm(200, generator=draw(seed))
    for estimate in (hill, xi_dedh):
        plain = float(estimate(samples).index)
        for other in (samples * scale, -samples, samples[order]):
            assert float(estimate(other).index) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("estimate", [hill, xi_dedh])
@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (torch.zeros(0), "0 samples are too few"),
        (torch.rand(127), "127 samples are too few"),
        (torch.zeros(200), "degenerate: 100% of the samples are zero"),
        (torch.ones(200), "values are the same number"),
        (torch.cat([torch.zeros(110), torch.rand(90)]), "degenerate: 55% of the samples are zero"),
        (torch.cat([torch.rand(200), torch.tensor([math.inf])]), "1 of 201 samples are not finite"),
        (torch.cat([torch.rand(200), torch.tensor([math.nan])]), "1 of 201 samples are not finite"),
    ],
    ids=["none", "127", "zeros", "ones", "half zeros", "inf", "nan"],
)
def test_too_little_to_go_on_is_refused_with_the_reason(estimate, samples: torch.Tensor, why: str) -> None:
    fit = estimate(samples)
    assert math.isnan(fit.index)
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)
    assert why in fit.reason


def test_a_tail_of_equal_values_above_others_is_refused() -> None:
    samples = torch.cat([torch.rand(500), torch.full((100,), 5.0)])
    assert "largest 50 values" in hill(samples, k=49).reason
    assert "values are the same number" in xi_dedh(samples).reason


def test_wrong_sizes_of_the_tail_raise() -> None:
    samples = torch.rand(200)
    for k in (1, 0, 200):
        with pytest.raises(ValueError, match=f"between 2 and 199 of 200 samples, got k={k}"):
            hill(samples, k=k)
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            xi_dedh(samples, fraction=fraction)


def test_extreme_ranges_neither_overflow_nor_vanish() -> None:
    samples = torch.logspace(-300, 300, 400, dtype=torch.float64)
    assert math.isfinite(hill(samples).index)
    assert math.isfinite(xi_dedh(samples).index)
    vectors = torch.randn(400, 3, generator=draw(0), dtype=torch.float64)
    for scale in (1e300, 1e-300):
        assert float(hill(vectors * scale).index) == pytest.approx(float(hill(vectors).index), rel=1e-9)


def test_the_index_of_a_stable_law_shows_in_its_extremes_too() -> None:
    assert max(abs(float(hill(stable(1.3, N, seed)).index) / 1.3 - 1) for seed in range(20)) <= 0.34


def kesten_index(rate: float) -> float:
    """Solve ``E|1 - rate a^2|^s = 1`` for s > 0, with a standard normal: the tail of SGD on a line."""

    def moment(s: float) -> float:
        def integrand(a: float) -> float:
            return abs(1 - rate * a * a) ** s * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)

        kink = 1 / math.sqrt(rate)
        return 2 * (integrate.quad(integrand, 0, kink)[0] + integrate.quad(integrand, kink, 40, limit=200)[0])

    return optimize.brentq(lambda s: moment(s) - 1, 0.2, 20)


@pytest.mark.parametrize("rate", [0.7, 0.9])
def test_trajectories_of_linear_regression_have_the_tail_that_kesten_says(rate: float) -> None:
    """x <- (1 - rate a^2) x + rate a b: the stationary law has the index that makes the moment of the factor 1."""
    generator = draw(0)
    x = torch.zeros(40_000, dtype=torch.float64)
    for _ in range(400):
        a, b = torch.randn(2, len(x), generator=generator, dtype=torch.float64)
        before, x = x, (1 - rate * a * a) * x + rate * a * b
    alpha = kesten_index(rate)
    k = 400
    for tail in (x, x - before):  # where training stands, and its increments
        assert float(hill(tail, k=k).index) == pytest.approx(alpha, rel=0.2)
        assert float(xi_dedh(tail, fraction=0.02).index) == pytest.approx(1 / alpha, abs=0.15)
