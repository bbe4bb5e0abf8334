"""How many directions eigenvalues use."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cx.functional import effective_rank, gram_participation_ratio, participation_ratio

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
