"""Draws of stable laws have the laws that they are said to have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _tail_laws import draw, stable
from scipy import stats

from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("alpha", "law"), [(2.0, stats.norm(scale=math.sqrt(2))), (1.0, stats.cauchy())], ids=["normal", "Cauchy"]
)
def test_two_members_are_known_by_other_names(alpha: float, law, dtype: torch.dtype) -> None:
    samples = symmetric_stable(alpha, (20_000,), draw(0), dtype)
    assert samples.dtype is dtype
    assert stats.kstest(samples.double().numpy(), law.cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.6, 1.3, 1.5, 1.8])
def test_the_characteristic_function_is_exp_of_minus_t_to_the_alpha(alpha: float) -> None:
    samples = symmetric_stable(alpha, (100_000,), draw(1))
    for t in (0.3, 1.0, 2.0):
        assert float(torch.cos(t * samples).mean()) == pytest.approx(math.exp(-(t**alpha)), abs=0.012)


def test_it_agrees_with_a_draw_by_numpy() -> None:
    ours = symmetric_stable(1.4, (20_000,), draw(2)).numpy()
    assert stats.ks_2samp(ours, stable(1.4, 20_000, 3).numpy()).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1.2, 1.6, 2.0])
def test_every_projection_of_an_elliptical_vector_is_stable(alpha: float) -> None:
    vectors = elliptical_stable(alpha, 20_000, 5, draw(0))
    direction = torch.tensor([0.6, 0.0, -0.8, 0.0, 0.0], dtype=torch.float64)  # of length 1
    assert stats.ks_2samp((vectors @ direction).numpy(), stable(alpha, 20_000, 1).numpy()).pvalue > 0.01


def test_the_entries_of_a_vector_share_their_scale() -> None:
    vectors = elliptical_stable(1.2, 5000, 2, draw(0)).abs().log()
    correlation = float(np.corrcoef(vectors.T.numpy())[0, 1])
    assert correlation > 0.3
    normal = elliptical_stable(2.0, 5000, 2, draw(0)).abs().log()
    assert abs(float(np.corrcoef(normal.T.numpy())[0, 1])) < 0.06


def test_the_global_stream_is_left_alone_and_the_own_one_repeats() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = symmetric_stable(1.5, (10, 3), draw(0)), elliptical_stable(1.5, 10, 3, draw(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(symmetric_stable(1.5, (10, 3), draw(0)), first[0])
    assert torch.equal(elliptical_stable(1.5, 10, 3, draw(0)), first[1])


@pytest.mark.parametrize("alpha", [0.0, -1.0, 2.1, math.nan])
def test_other_indices_are_no_stable_laws(alpha: float) -> None:
    with pytest.raises(ValueError, match="tail index in"):
        symmetric_stable(alpha, (3,), draw(0))
    with pytest.raises(ValueError, match="tail index in"):
        elliptical_stable(alpha, 3, 2, draw(0))
