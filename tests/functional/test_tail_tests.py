"""The tests of a tail keep their level, have power, and are the textbook's where there is one."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from _tail_laws import draw, heteroscedastic, scale_mixture, stable
from scipy import stats

from lightning_cx.functional.tails.goodness_of_fit import (
    aggregation_test,
    anderson_darling,
    normality_p_value,
    normality_statistics,
    stable_null,
    stable_test,
)
from lightning_cx.functional.tails.pooling import grouped_sums, sum_size
from lightning_cx.functional.tails.stable import elliptical_stable


def test_the_statistic_is_scipys() -> None:
    for seed, n in ((0, 200), (1, 333)):
        samples = stable(1.8, n, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # scipy 1.17 announces another way to get p-values
            theirs = stats.anderson(samples.numpy()).statistic
        ours = float(anderson_darling(samples).statistic)
        assert ours == pytest.approx(theirs * (1 + 0.75 / n + 2.25 / n**2), rel=1e-9)


@pytest.mark.parametrize("n", [64, pytest.param(512, marks=pytest.mark.slow)])
def test_small_p_values_of_normal_samples_are_as_rare_as_they_say(n: int) -> None:
    samples = torch.randn(20_000, n, generator=draw(0), dtype=torch.float64) * 3 + 1
    p_values = np.array([normality_p_value(float(a)) for a in normality_statistics(samples)])
    for level in (0.001, 0.01, 0.05, 0.2):
        error = math.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(p_values < level) == pytest.approx(level, abs=4 * error + 0.05 * level)


def test_p_values_fall_with_the_statistic_and_never_reach_zero() -> None:
    statistics = np.linspace(0.05, 200, 4000)
    p_values = [normality_p_value(float(a)) for a in statistics]
    assert all(b <= a + 2e-3 for a, b in pairwise(p_values))  # the fits meet to a thousandth
    assert p_values[-1] > 0


def test_projections_of_normal_vectors_are_hardly_ever_ruled_out() -> None:
    p_values = [float(anderson_darling(heteroscedastic(512, 200, seed)).p_value) for seed in range(100)]
    assert sum(p < 0.05 for p in p_values) <= 5
    assert min(p_values) > 1e-3


def test_heavy_samples_are_ruled_out_as_normal() -> None:
    p_values = [float(anderson_darling(stable(1.7, 512, seed)).p_value) for seed in range(100)]
    assert sum(p < 1e-3 for p in p_values) >= 95
    assert max(float(anderson_darling(stable(1.7, 2048, seed)).p_value) for seed in range(50)) < 1e-6


def test_a_stable_law_is_seldom_ruled_out_as_one() -> None:
    p_values = [float(stable_test(stable(1.5, 1024, seed)).p_value) for seed in range(100)]
    assert 0 <= sum(p < 0.05 for p in p_values) <= 12  # 5 +- 3 of 2.2
    assert 0.3 < np.mean(p_values) < 0.7


@pytest.mark.parametrize("seeds", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_scale_mixture_is_ruled_out_as_stable(seeds: int) -> None:
    p_values = [float(stable_test(scale_mixture(2048, seed)).p_value) for seed in range(seeds)]
    assert max(p_values) < 0.05
    assert float(stable_test(scale_mixture(2048, 0, d=40)).p_value) < 0.05


def test_sums_of_a_scale_mixture_are_lighter() -> None:
    tests = [aggregation_test(scale_mixture(2048, seed), 16) for seed in range(60)]
    assert min(float(t.statistic) for t in tests) > 0.3
    assert max(float(t.p_value) for t in tests) < 0.05


def test_sums_of_a_stable_law_keep_its_index() -> None:
    tests = [aggregation_test(stable(1.5, 2048, seed), 16) for seed in range(60)]
    shifts = np.array([float(t.statistic) for t in tests])
    # 128 sums: a shift of .4 is 2.8 standard deviations, and comes about once in 150 draws.
    assert (np.abs(shifts) >= 0.4).sum() <= 2
    assert abs(shifts.mean()) < 0.08
    assert sum(float(t.p_value) < 0.05 for t in tests) <= 8


def test_sums_of_normal_samples_are_normal() -> None:
    tests = [aggregation_test(torch.randn(2048, generator=draw(seed)), 16) for seed in range(30)]
    assert max(abs(float(t.statistic)) for t in tests) < 0.06


@pytest.mark.parametrize("alpha", [0.9, 1.5, 1.9])
def test_the_null_of_many_samples_is_that_of_fewer_sums_of_fewer(alpha: float) -> None:
    """Beyond 16384 samples fewer are drawn; here both ways meet at their border."""
    there, beyond = stable_null(alpha, 1 << 14, 128, 0), stable_null(alpha, 1 << 15, 256, 0)
    assert torch.equal(beyond.shifts, there.shifts)
    assert torch.equal(beyond.distances, there.distances / 2)


def test_distances_from_the_fitted_law_fall_with_the_number_of_samples() -> None:
    small, large = stable_null(1.5, 1024, 16, 0).distances, stable_null(1.5, 8192, 128, 0).distances
    assert float(small.mean() / large.mean()) == pytest.approx(8, rel=0.35)


def test_groups_are_disjoint_and_add_up() -> None:
    samples = torch.arange(1000.0, dtype=torch.float64)
    sums = grouped_sums(samples, 10, 0)
    assert sums.shape == (8, 100)
    assert torch.equal(sums.sum(1), torch.full((8,), samples.sum(), dtype=torch.float64))
    assert len({tuple(row.tolist()) for row in sums}) == 8
    assert grouped_sums(samples, 7, 0).shape == (8, 142)


@pytest.mark.parametrize(
    ("batch_size", "n", "size"), [(16, 4096, 16), (16, 1024, 16), (16, 1023, 15), (64, 512, 8), (1, 512, 2), (9, 0, 2)]
)
def test_at_least_64_sums_remain(batch_size: int, n: int, size: int) -> None:
    assert sum_size(batch_size, n) == size


@pytest.mark.parametrize("test", [anderson_darling, stable_test, aggregation_test])
@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (torch.randn(127), "127 samples are too few"),
        (torch.zeros(400), "degenerate"),
        (torch.full((400, 3), math.nan), "400 of 400 samples are not finite"),
    ],
    ids=["few", "zeros", "nan"],
)
def test_too_little_to_go_on_is_refused_with_the_reason(test, samples: torch.Tensor, why: str) -> None:
    result = test(samples)
    assert math.isnan(result.statistic)
    assert math.isnan(result.p_value)
    assert why in result.reason
    assert str(result).startswith("unknown")


def test_results_do_not_depend_on_scale_place_and_global_random_numbers() -> None:
    samples = elliptical_stable(1.6, 600, 20, draw(0))
    for test in (anderson_darling, stable_test, aggregation_test):
        first = test(samples)
        torch.manual_seed(5)
        assert float(test(samples * 1e-300).statistic) == pytest.approx(float(first.statistic), abs=1e-6)
        again = test(samples * 1e6 + 3)
        assert float(again.statistic) == pytest.approx(float(first.statistic), abs=1e-6)
        assert float(again.p_value) == pytest.approx(float(first.p_value), abs=0.006)


def test_a_batch_holds_at_least_one() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        aggregation_test(torch.randn(200), 0)
