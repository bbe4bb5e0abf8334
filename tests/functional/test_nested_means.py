"""The error of a mean is found from means over growing parts, and narrows with the share that was looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_cx.functional.curvature import half_width, nested_mean_error


def test_parts_of_one_example_give_the_textbook_error() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    means = np.cumsum(values) / np.arange(1, 31)
    expected = stats.sem(values)
    assert float(nested_mean_error(means, np.arange(1, 31))) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[8, 16, 24, 32, 40, 48, 56, 64], [5, 20, 21, 40, 64]])
def test_it_is_unbiased_for_equal_and_unequal_parts_and_its_interval_covers(counts: list[int]) -> None:
    draws = np.random.default_rng(1).standard_normal((4000, 64))
    means = np.stack([draws[:, :count].mean(1) for count in counts], 1)
    errors = np.array([float(nested_mean_error(row, counts)) for row in means])
    assert np.mean(errors**2) == pytest.approx(1 / 64, rel=0.05)
    widths = np.array([half_width(error, len(counts) - 1) for error in errors])
    assert np.mean(np.abs(means[:, -1]) <= widths) == pytest.approx(0.95, abs=0.012)


def test_a_finite_population_narrows_the_interval_as_samples_from_one_do() -> None:
    rng = np.random.default_rng(2)
    population = rng.standard_normal(100)
    held = 0
    for _ in range(2000):
        sample = rng.permutation(population)[:50]
        width = half_width(stats.sem(sample), 49, share=0.5)
        held += abs(sample.mean() - population.mean()) <= width
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_degenerate_parts() -> None:
    assert math.isnan(nested_mean_error([1.0], [5]))
    assert math.isnan(nested_mean_error([1.0, math.nan], [1, 2]))
    assert float(nested_mean_error(torch.ones(4), torch.arange(1, 5))) == 0
    assert math.isnan(half_width(1.0, 0))
    assert half_width(math.nan, 0, share=1.0) == 0
    assert half_width(1.0, 7, share=-1.0) == half_width(1.0, 7)
    for counts in ([2, 1], [0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="each mean has a count, ascending"):
            nested_mean_error([1.0, 2.0], counts)
