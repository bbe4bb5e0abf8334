"""The order of complexity that suits the target is found, and noise that is certain is told from structure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional import laplacian_basis
from lightning_cx.functional.sketching import coordinate_hash
from lightning_cx.functional.stopping import noise_floor, order_of_target, target_is_ordered
from lightning_cx.functional.stopping.target import (
    FEATURES,
    NEIGHBOURS,
    basis_by_name,
    description_length,
    gaussian_basis,
)


def friedman(seed: int, noise: float, count: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten inputs, five of which matter: a cloud in which 500 points have no near neighbours."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(-1, 1, (count, 10))
    u = (x + 1) / 2
    y = 10 * np.sin(np.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
    y = (y - y.mean()) / y.std()
    return torch.tensor(x), torch.tensor(y + noise * draw.normal(size=count))


def rolled(seed: int, noise: float, count: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A spiral sheet: points of two turns are near to each other, but far along the sheet."""
    draw = np.random.default_rng(seed)
    angle = draw.uniform(1.5 * np.pi, 7.5 * np.pi, count)
    x = np.c_[angle * np.cos(angle), angle * np.sin(angle)] / 20
    return torch.tensor(x), torch.tensor(np.sin(angle / 1.5) + noise * draw.normal(size=count))


def test_a_cloud_in_ten_dimensions_is_ordered_by_its_features() -> None:
    along, names = [], []
    for seed in range(8):
        x, y = friedman(seed, 0.5)
        order = order_of_target(x, y)
        names.append(order.name)
        assert order.least_noise == pytest.approx(0.25, rel=0.4)
        along.append(noise_floor(laplacian_basis(x).vectors.T @ y).sigma2)
    assert names.count(FEATURES) >= 7  # 29 of 30 at this noise, all of them at less
    assert np.mean(along) > 1.3 * 0.25  # structure that a graph takes for noise


@pytest.mark.parametrize("seed", range(5))
def test_a_rolled_sheet_is_ordered_along_its_neighbours(seed: int) -> None:
    x, y = rolled(seed, 0.3)
    order = order_of_target(x, y)
    assert order.name == NEIGHBOURS
    assert order.least_noise == pytest.approx(0.09, rel=0.4)


@pytest.mark.parametrize("seed", range(5))
def test_no_noise_is_certain_in_a_clean_target(seed: int) -> None:
    x, y = friedman(seed, 0.0)
    order = order_of_target(x, y)
    assert order.least_noise < 0.02
    assert order.least_noise < noise_floor(order.basis.vectors.T @ y).sigma2


def test_what_is_certain_of_white_noise_is_hardly_less_than_the_mean() -> None:
    draw = np.random.default_rng(0)
    floors = [noise_floor(draw.normal(size=512)) for _ in range(200)]
    ratios = np.array([floor.least / floor.sigma2 for floor in floors])
    assert np.all(ratios <= 1)
    assert np.mean(ratios == 1) > 0.85
    assert ratios.mean() > 0.96
    assert np.mean([floor.least for floor in floors]) == pytest.approx(1, abs=0.05)


def test_the_order_does_not_depend_on_unit_or_place_of_examples() -> None:
    x, y = friedman(3, 0.5)
    permuted = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    one, other = order_of_target(x, y), order_of_target(x[permuted], 1000 * y[permuted])
    assert one.name == other.name
    assert other.least_noise == pytest.approx(1e6 * one.least_noise, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_gaussian_basis_is_orthonormal_with_the_constant_first(d: int, seed: int, scale: float) -> None:
    x = scale * np.random.default_rng(seed).normal(size=(60, d))
    vectors = gaussian_basis(x).vectors
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(60, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(vectors[:, 0].abs(), torch.full((60,), 60**-0.5, dtype=torch.float64))


def test_on_a_line_the_gaussian_basis_counts_zeros() -> None:
    vectors = gaussian_basis(torch.linspace(-1, 1, 100)).vectors
    zeros = [int((vectors[1:, k] * vectors[:-1, k] < 0).sum()) for k in range(1, 6)]
    assert zeros == [1, 2, 3, 4, 5]


def test_features_that_tell_nothing_apart_order_nothing() -> None:
    y = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = order_of_target(torch.ones(200, 3), y)
    assert not target_is_ordered(order.basis.vectors.T @ y)[0]


def test_a_shuffled_target_is_not_ordered_in_either_basis() -> None:
    passed = 0
    for seed in range(25):
        x, y = friedman(seed, 0.5, count=256)
        y = y[torch.randperm(256, generator=torch.Generator().manual_seed(seed))]
        passed += target_is_ordered(order_of_target(x, y).basis.vectors.T @ y)[0]
    assert passed == 0


def test_description_length_against_the_definition_and_degenerate_values() -> None:
    values = np.random.default_rng(0).normal(size=(16, 3))
    energy = ((values / np.abs(values).max()) ** 2).sum(1)
    bands = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16)]
    naive = sum((stop - start) * math.log(energy[start:stop].mean()) for start, stop in bands)
    assert description_length(values) == pytest.approx(naive)
    assert description_length(np.zeros(8)) == math.inf
    assert description_length([1.0, math.nan]) == math.inf
    assert math.isfinite(description_length([1.0, 0.0, 0.0, 0.0]))


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="features of 5 examples"):
        order_of_target(torch.zeros(5, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="no order of complexity is called 'random'"):
        basis_by_name("random", torch.zeros(5, 1))


def test_hashes_are_fair_coins_and_fair_places() -> None:
    hashes = coordinate_hash((300, 400), 0)
    assert len(hashes.unique()) == len(hashes)
    assert abs(float((hashes & 1).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(len(hashes))
    counts = torch.bincount((hashes >> 1) % 256, minlength=256).double()
    chi2 = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    assert not torch.equal(hashes, coordinate_hash((300, 400), 1))
