"""The index of a stable law is found, whatever the scale, the place and the direction, and refused where it must be."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from _tail_laws import anisotropic_stable, draw, heteroscedastic, naive_alpha, stable
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional import alpha_ecf
from lightning_cx.functional.tails.ecf import mean_squared_correlation, project
from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable

SEEDS = range(60)


@pytest.mark.parametrize(
    ("alpha", "n", "tolerance"),
    [
        (1.1, 4096, 0.12),
        (1.3, 4096, 0.12),
        (1.5, 4096, 0.12),
        (1.7, 4096, 0.12),
        (1.9, 4096, 0.08),
        (2.0, 4096, 0.03),
        (1.3, 512, 0.32),
        (1.5, 512, 0.32),
        (1.7, 512, 0.32),
        (1.9, 512, 0.22),
        (2.0, 512, 0.08),
    ],
)
def test_the_index_of_a_stable_law_is_found(alpha: float, n: int, tolerance: float) -> None:
    errors = [abs(float(alpha_ecf(stable(alpha, n, seed)).index) - alpha) for seed in SEEDS]
    assert max(errors) <= tolerance


@pytest.mark.parametrize(("alpha", "tolerance"), [(1.3, 0.22), (1.7, 0.25), (2.0, 0.04)])
def test_the_index_of_anisotropic_vectors_is_found(alpha: float, tolerance: float) -> None:
    errors = [abs(float(alpha_ecf(anisotropic_stable(alpha, 512, 200, seed)).index) - alpha) for seed in SEEDS]
    assert max(errors) <= tolerance


def test_normal_coordinates_of_unequal_scales_are_not_heavy() -> None:
    fits = [alpha_ecf(heteroscedastic(512, 200, seed)) for seed in SEEDS]
    assert max(abs(float(fit.index) - 2) for fit in fits) <= 0.05


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_the_plain_formula(seed: int) -> None:
    for samples in (stable(1.4, 700, seed), torch.randn(300, generator=draw(seed)), stable(1.9, 2001, seed) * 7 - 3):
        assert float(alpha_ecf(samples).index) == pytest.approx(
            naive_alpha(samples), abs=1e-6 if samples.dtype is torch.float32 else 1e-9
        )


def test_vectors_give_the_median_over_their_projections() -> None:
    samples = anisotropic_stable(1.5, 400, 30, 0)
    projected = project(samples, 16, 0)
    assert projected.shape == (400, 16)
    expected = np.median([naive_alpha(column) for column in projected.T])
    assert float(alpha_ecf(samples).index) == pytest.approx(expected, abs=1e-9)
    assert float(alpha_ecf(projected, projections=None).index) == pytest.approx(expected, abs=1e-9)
    assert not torch.equal(alpha_ecf(samples, seed=1).index, alpha_ecf(samples).index)


def test_blocks_of_columns_change_no_projection() -> None:
    wide = torch.randn(130, 70_000, generator=draw(0))  # three blocks
    directions = torch.cat(
        [torch.randn(block, 16, generator=g, dtype=torch.float64) for g in [draw(5)] for block in (32263, 32263, 5474)]
    )
    torch.testing.assert_close(project(wide, 16, 5), wide.double() @ directions, rtol=1e-9, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-30, 1e30),
    shift=st.floats(-1e3, 1e3),
    alpha=st.floats(0.8, 2.0),
)
def test_scale_place_and_order_of_the_samples_do_not_matter(
    seed: int, scale: float, shift: float, alpha: float
) -> None:
    samples = symmetric_stable(alpha, (300,), draw(seed))
    plain = alpha_ecf(samples)
    shuffled = samples[torch.randperm(300, generator=draw(seed + 1))]
    for other in (samples * scale, -samples, samples + shift, shuffled):
        assert float(alpha_ecf(other).index) == pytest.approx(float(plain.index), abs=1e-6)


def test_a_rotation_of_isotropic_noise_changes_little_and_a_permutation_of_the_vectors_nothing() -> None:
    samples = elliptical_stable(1.6, 2048, 60, draw(0))
    rotation = torch.linalg.qr(torch.randn(60, 60, generator=draw(1), dtype=torch.float64)).Q
    plain = alpha_ecf(samples)
    assert float(alpha_ecf(samples @ rotation).index) == pytest.approx(float(plain.index), abs=0.05)
    shuffled = alpha_ecf(samples[torch.randperm(2048, generator=draw(2))])
    assert float(shuffled.index) == pytest.approx(float(plain.index), abs=1e-9)


def test_a_single_column_is_a_number_and_any_real_type_is_welcome() -> None:
    samples = stable(1.5, 500, 0)
    expected = alpha_ecf(samples)
    for same in (samples[:, None], samples.numpy(), samples.tolist()):
        fit = alpha_ecf(same)
        assert (fit.index, fit.low, fit.high, fit.n) == (expected.index, expected.low, expected.high, 500)
    assert float(alpha_ecf(samples.float()).index) == pytest.approx(float(expected.index), abs=1e-5)
    assert float(alpha_ecf((samples * 1000).long()).index) == pytest.approx(float(expected.index), abs=1e-3)
    assert expected.index.dtype is torch.float64


def test_skewness_does_not_matter() -> None:
    totally_skewed = [float(alpha_ecf(_skewed(1.5, 4096, seed)).index) for seed in range(10)]
    assert max(abs(index - 1.5) for index in totally_skewed) <= 0.12


def _skewed(alpha: float, n: int, seed: int) -> torch.Tensor:
    """Totally skewed stable law (beta = 1) after Chambers, Mallows and Stuck."""
    rng = np.random.default_rng(seed)
    angle, wait = rng.uniform(-math.pi / 2, math.pi / 2, n), rng.exponential(size=n)
    shift = math.atan(math.tan(math.pi * alpha / 2)) / alpha
    scale = (1 + math.tan(math.pi * alpha / 2) ** 2) ** (1 / (2 * alpha))
    bent = (np.cos(angle - alpha * (angle + shift)) / wait) ** ((1 - alpha) / alpha)
    return torch.from_numpy(scale * np.sin(alpha * (angle + shift)) / np.cos(angle) ** (1 / alpha) * bent)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (torch.zeros(0), "0 samples are too few"),
        (torch.ones(1), "1 samples are too few"),
        (torch.randn(127), "127 samples are too few to show a tail: 128 are needed"),
        (torch.zeros(512), "degenerate: 100% of the samples are the same number"),
        (torch.full((512, 30), 3.7), "degenerate"),
        (torch.cat([torch.zeros(300), torch.randn(212)]), "degenerate: 59% of the samples are the same"),
        (torch.cat([torch.zeros(300, 50), torch.randn(212, 50)]), "degenerate: 59% of the samples are the same"),
        (torch.cat([torch.randn(300), torch.tensor([math.nan])]), "1 of 301 samples are not finite"),
        (torch.cat([torch.randn(300, 3), torch.full((2, 3), math.inf)]), "2 of 302 samples are not finite"),
    ],
    ids=["none", "one", "127", "zeros", "constant vectors", "half zeros", "half zero vectors", "nan", "inf"],
)
def test_too_little_to_go_on_is_refused_with_the_reason(samples: torch.Tensor, why: str) -> None:
    fit = alpha_ecf(samples)
    assert math.isnan(fit.index)
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)
    assert why in fit.reason
    assert str(fit).startswith("unknown: ")


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\[n\] numbers or \[n, d\] vectors, got shape \[4, 4, 4\]"):
        alpha_ecf(torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match="got shape"):
        alpha_ecf(torch.zeros(200, 0))
    with pytest.raises(ValueError, match="at least one direction"):
        alpha_ecf(torch.randn(200, 5), projections=0)


def test_few_samples_are_called_exploratory() -> None:
    assert "exploratory" in str(alpha_ecf(torch.randn(511, generator=draw(0))))
    assert "exploratory" not in str(alpha_ecf(torch.randn(512, generator=draw(0))))


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    alpha_ecf(torch.ones(200, 9) * torch.arange(200.0)[:, None])
    assert torch.equal(torch.get_rng_state(), before)


def test_correlation_between_projections_is_found_from_signs() -> None:
    generator = draw(0)
    normal = torch.randn(3, 4096, generator=generator, dtype=torch.float64)
    rows = torch.stack([normal[0], 0.6 * normal[0] + 0.8 * normal[1]])
    assert mean_squared_correlation(rows) == pytest.approx(0.36, abs=0.06)
    assert mean_squared_correlation(normal) == pytest.approx(0.0, abs=0.01)
    assert mean_squared_correlation(normal[:1].expand(5, -1)) == 1.0
    few = torch.randn(200, 64, generator=generator, dtype=torch.float64)  # where signs agree by chance: 2.5 / 64
    assert mean_squared_correlation(few) == pytest.approx(0.0, abs=0.004)


@pytest.mark.timing
def test_fits_take_milliseconds() -> None:
    scalar, vectors = stable(1.5, 4096, 0), torch.randn(512, 100_000, generator=draw(0))
    assert _fastest(lambda: alpha_ecf(scalar)) < 0.01
    assert _fastest(lambda: alpha_ecf(vectors)) < 1.0


def _fastest(work) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()  # of all threads; what else the machine does is of no account
        work()
        times.append(time.process_time() - start)
    return min(times)
