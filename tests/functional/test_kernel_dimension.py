"""How many directions eigenvalues use, and how fast they fall."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import effective_rank, eigenvalue_decay, participation_ratio
from lightning_cx.functional.linalg import gram_participation_ratio

eigenvalues = (
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=10)
    .filter(any)
    .map(lambda v: torch.tensor(v).double())
)


@pytest.mark.parametrize("count", [participation_ratio, effective_rank])
def test_equal_eigenvalues_are_counted_and_a_lone_one_is_one(count):
    assert float(count(torch.tensor([5.0, 5.0, 5.0, 0.0]))) == pytest.approx(3)
    assert float(count(torch.tensor([1e200, 0.0], dtype=torch.float64))) == pytest.approx(1)


def test_participation_ratio_and_effective_rank_by_hand():
    spectrum = torch.tensor([3.0, 1.0])
    assert float(participation_ratio(spectrum)) == pytest.approx(16 / 10)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(effective_rank(spectrum)) == pytest.approx(math.exp(entropy))


@given(eigenvalues)
def test_one_to_participation_ratio_to_effective_rank_to_count(spectrum):
    narrow, wide = float(participation_ratio(spectrum)), float(effective_rank(spectrum))
    assert 1 - 1e-9 <= narrow <= wide + 1e-9 <= len(spectrum) + 2e-9


def test_small_negative_eigenvalues_are_rounding():
    noisy = torch.tensor([1.0, 1.0, -1e-17], dtype=torch.float64)
    assert float(participation_ratio(noisy)) == pytest.approx(2)
    assert float(effective_rank(noisy)) == pytest.approx(2)


@pytest.mark.parametrize("count", [participation_ratio, effective_rank])
@pytest.mark.parametrize("spectrum", [[0.0, 0.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_eigenvalues_without_a_sum_give_nan(count, spectrum):
    assert math.isnan(count(torch.tensor(spectrum)))


@pytest.mark.parametrize("scale", [1.0, 1e200])
def test_the_gram_shortcut_agrees_with_the_eigenvalues(scale):
    factors = torch.randn(3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grams = factors @ factors.mT
    expected = participation_ratio(torch.linalg.eigvalsh(grams))
    torch.testing.assert_close(gram_participation_ratio(scale * grams), expected)


@pytest.mark.parametrize("gram", [torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.zeros(0, 0)])
def test_grams_without_directions_give_nan(gram):
    assert math.isnan(gram_participation_ratio(gram))


# Decay ----------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_matrix(beta: float, n: int = 512, seed: int = 0) -> Tensor:
    """A matrix whose eigenvalues are k^-beta, in random directions."""
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator(seed)))[0]
    return (rotation * torch.arange(1, n + 1).double() ** -beta) @ rotation.T


def planted_features(beta: float, n: int = 512, count: int = 4096, seed: int = 0) -> Tensor:
    """The Gram matrix of Gaussian features of variance k^-beta."""
    deviations = torch.arange(1, count + 1).double() ** (-beta / 2)
    features = torch.randn(n, count, dtype=torch.float64, generator=generator(seed)) * deviations
    return features @ features.T


@pytest.mark.parametrize("beta", [1.2, 1.5, 2.0])
@pytest.mark.parametrize("plant", [planted_matrix, planted_features])
def test_a_planted_exponent_returns(plant, beta):
    decay = eigenvalue_decay(plant(beta))
    assert float(decay.exponent) == pytest.approx(beta, abs=0.15)
    assert decay.last_rank == 64


@pytest.mark.parametrize("beta", [1.2, 2.0])
def test_the_spread_is_about_what_drawing_other_examples_gives(beta):
    drawn = [eigenvalue_decay(planted_features(beta, count=1024, seed=seed)) for seed in range(12)]
    redrawn = float(torch.stack([decay.exponent for decay in drawn]).std())
    claimed = float(torch.stack([decay.spread for decay in drawn]).mean())
    assert 1 / 2 < claimed / redrawn < 2


@pytest.mark.parametrize("n", [56, 61, 200])
def test_the_exponent_is_the_median_slope_of_scipy(n):
    gram = planted_features(1.3, n=n, count=300)
    eigenvalues = np.linalg.eigvalsh(gram.numpy())[::-1]
    ranks = np.arange(3, n // 8 + 1)
    expected = -scipy.stats.theilslopes(np.log(eigenvalues[ranks - 1]), np.log(ranks)).slope
    assert float(eigenvalue_decay(gram).exponent) == pytest.approx(expected, abs=1e-9)


def test_scale_and_rotation_of_the_examples_do_not_change_the_exponent():
    gram = planted_features(1.5, n=128, count=300)
    rotation = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64, generator=generator(1)))[0]
    expected = eigenvalue_decay(gram).exponent
    for changed in (1e150 * gram, 1e-150 * gram, rotation @ gram @ rotation.T):
        torch.testing.assert_close(eigenvalue_decay(changed).exponent, expected)
    torch.testing.assert_close(eigenvalue_decay(gram.float().numpy()).exponent, expected, rtol=0, atol=1e-4)


def test_two_readings_of_one_matrix_are_the_same_and_draw_no_global_random_numbers():
    gram = planted_features(1.5, n=64, count=100)
    before = torch.random.get_rng_state()
    assert str(eigenvalue_decay(gram)) == str(eigenvalue_decay(gram))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_equal_eigenvalues_do_not_fall():
    decay = eigenvalue_decay(torch.eye(64))
    assert str(decay) == "eigenvalues fall as k^-0.00 +- 0.00 over ranks 3 to 8"


def test_a_low_rank_ends_the_ranks_early():
    deviations = torch.arange(1, 11).double() ** -0.5
    features = torch.randn(256, 10, dtype=torch.float64, generator=generator()) * deviations
    assert eigenvalue_decay(features @ features.T).last_rank == 10
    assert eigenvalue_decay(features[:, :6] @ features[:, :6].T).last_rank == 0


@pytest.mark.parametrize(
    "gram",
    [torch.zeros(64, 64), torch.full((64, 64), math.nan), torch.eye(64) * math.inf, torch.eye(55), torch.eye(0)],
    ids=["zero", "nan", "inf", "55 examples", "empty"],
)
def test_grams_without_enough_eigenvalues_have_no_decay(gram):
    decay = eigenvalue_decay(gram)
    assert math.isnan(decay.exponent)
    assert math.isnan(decay.spread)
    assert decay.last_rank == 0
    assert str(decay).startswith("eigenvalue decay unknown")


def test_a_matrix_that_is_not_square_has_no_eigenvalues():
    with pytest.raises(ValueError, match=r"square, got shape \[64, 3\]"):
        eigenvalue_decay(torch.ones(64, 3))
