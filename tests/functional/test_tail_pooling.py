"""What makes batches comparable, and what pooled coordinates are worth."""

from __future__ import annotations

import math

import pytest
import torch
from _tail_laws import draw, heteroscedastic

from lightning_cx.functional import alpha_ecf, tail_report, xi_dedh
from lightning_cx.functional.tails.pooling import centred_norms, coordinate_tail, without_drift
from lightning_cx.functional.tails.stable import elliptical_stable

BATCHES, SIZE = 64, 16


def batches_of_noise(seed: int, alpha: float = 2.0, decay: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(BATCHES).repeat_interleave(SIZE)
    noise = elliptical_stable(alpha, BATCHES * SIZE, 16, draw(seed))
    return noise * torch.exp(-decay * numbers / BATCHES)[:, None], numbers


def test_a_drifting_scale_looks_heavy_and_no_longer_once_the_drift_is_out() -> None:
    for seed in range(20):
        samples, numbers = batches_of_noise(seed, decay=3.0)
        assert float(alpha_ecf(samples, projections=None).index) < 1.8
        assert tail_report(samples, projections=None).verdict != "gaussian"
        level = without_drift(samples, numbers)
        assert tail_report(level, projections=None).verdict == "gaussian"


SCALES = {
    "decays as 1 / t": lambda t: 1 / (1 + t),
    "decays as 1 / sqrt t": lambda t: (1 + t) ** -0.5,
    "drops by ten": lambda t: torch.where(t < 32, 10.0, 1.0),
    "drops by ten early": lambda t: torch.where(t < 6, 10.0, 1.0),
    "warms up and decays": lambda t: torch.minimum((1 + t) / 10, torch.cos(math.pi * t / 130)),
}


@pytest.mark.parametrize("schedule", SCALES)
def test_a_schedule_of_the_scale_is_taken_out(schedule: str) -> None:
    scale = SCALES[schedule](torch.arange(64.0)).double()
    for seed in range(10):
        noise = torch.randn(64, 32, 16, generator=draw(seed), dtype=torch.float64) * scale[:, None, None]
        numbers = torch.arange(64).repeat_interleave(32)
        level = without_drift(noise.flatten(0, 1), numbers)
        assert float(alpha_ecf(level, projections=None).index) > 1.93
        assert tail_report(level, projections=None).verdict == "gaussian"


def test_single_steps_share_a_scale_with_few_neighbours() -> None:
    """Norms of Gaussian steps under a step size that drops twice have no heavy tail."""
    as_it_came, level = [], []
    for seed in range(20):
        t = torch.arange(1000)
        size = torch.where(t < 50, 10.0, torch.where(t < 600, 1.0, 0.1)).double()
        steps = torch.randn(1000, 64, generator=draw(seed), dtype=torch.float64) * size[:, None]
        as_it_came.append(bool(xi_dedh(steps.norm(dim=1)).low > 0))
        level.append(bool(xi_dedh(without_drift(steps, t, neighbourhood=33).norm(dim=1)).low > 0))
    assert all(as_it_came)
    assert sum(level) <= 2  # of 20 intervals at 95%


def test_the_tail_within_batches_is_left_alone() -> None:
    for seed in range(10):
        samples, numbers = batches_of_noise(seed, alpha=1.5, decay=2.0)
        truth = alpha_ecf(batches_of_noise(seed, alpha=1.5)[0], projections=None)
        found = alpha_ecf(without_drift(samples, numbers), projections=None)
        assert float(found.index) == pytest.approx(float(truth.index), abs=0.03)


def test_steady_noise_hardly_changes() -> None:
    samples, numbers = batches_of_noise(0)
    ratio = without_drift(samples, numbers) / samples
    assert float(ratio.min()) > 0.85
    assert float(ratio.max()) < 1.15
    assert torch.allclose(ratio, ratio[:, :1])  # one factor for each sample


def test_numbers_of_batches_may_have_gaps_and_any_order() -> None:
    samples, numbers = batches_of_noise(0, decay=3.0)
    order = torch.randperm(len(samples), generator=draw(1))
    expected = without_drift(samples, numbers)
    torch.testing.assert_close(without_drift(samples[order], numbers[order]), expected[order])
    torch.testing.assert_close(without_drift(samples, 5 * numbers + 100), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_batches_there_is_no_drift(count: int) -> None:
    samples = torch.randn(count * 30, 4, generator=draw(0), dtype=torch.float64)
    assert torch.equal(without_drift(samples, torch.zeros(count * 30)), samples)


def test_batches_of_zeros_have_no_say() -> None:
    samples, numbers = batches_of_noise(0, decay=3.0)
    samples[numbers < 5] = 0
    assert without_drift(samples, numbers).isfinite().all()
    assert torch.equal(without_drift(torch.zeros(60), torch.arange(60)), torch.zeros(60, dtype=torch.float64))


def test_of_very_many_batches_some_give_the_drift() -> None:
    numbers = torch.arange(3000)
    samples = torch.exp(-numbers / 1000.0) * torch.randn(3000, generator=draw(0))
    level = without_drift(samples, numbers)
    assert float(level[:1000].std() / level[2000:].std()) == pytest.approx(1, abs=0.25)


def test_each_sample_needs_its_batch() -> None:
    with pytest.raises(ValueError, match=r"got 5 samples and batches of shape \[4\]"):
        without_drift(torch.zeros(5), torch.zeros(4))


def test_norms_less_the_mean_are_read_off_a_gram_matrix() -> None:
    gradients = torch.randn(20, 7, generator=draw(0), dtype=torch.float64) + 3
    truth = (gradients - gradients.mean(0)).norm(dim=1)
    torch.testing.assert_close(centred_norms(gradients @ gradients.T), truth)
    assert torch.equal(centred_norms(torch.ones(5, 5)), torch.zeros(5))


@pytest.mark.parametrize(("log_sd", "expected"), [(0.0, 2.0), (0.5, 1.86), (1.0, 1.55), (2.0, 0.99)])
def test_pooled_coordinates_of_normal_noise_look_heavy_and_the_control_says_so(log_sd: float, expected: float) -> None:
    tails = [coordinate_tail(heteroscedastic(500, 400, seed, log_sd), seed) for seed in range(20)]
    index = torch.stack([tail.index for tail in tails])
    control = torch.stack([tail.control for tail in tails])
    assert float(index.mean()) == pytest.approx(expected, abs=0.08)
    assert float((index - control).abs().mean()) < 0.07


def test_pooled_coordinates_of_stable_vectors_look_normal() -> None:
    found = [float(coordinate_tail(elliptical_stable(1.5, 500, 400, draw(seed))).index) for seed in range(20)]
    assert sum(found) / 20 == pytest.approx(1.98, abs=0.1)


def test_the_pooled_estimator_is_the_plain_formula() -> None:
    samples = torch.randn(30, 50, generator=draw(0), dtype=torch.float64)
    values = samples.flatten().tolist()
    m = 38  # floor(sqrt(1500))
    sums = [abs(sum(values[i * m : (i + 1) * m])) for i in range(1500 // m)]
    growth = sum(math.log(s) for s in sums) / len(sums) - sum(math.log(abs(v)) for v in values) / 1500
    assert float(coordinate_tail(samples).index) == pytest.approx(math.log(m) / growth, rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (torch.zeros(0, 5), "too few"),
        (torch.randn(1, 5000), "too few"),
        (torch.randn(10, 12), "too few"),
        (torch.zeros(30, 40), "degenerate: 100% of the values are zero"),
        (torch.full((30, 40), math.nan), "not finite"),
        (torch.tensor([1.0, -1.0]).repeat(2048), "all sums of coordinates cancel"),
    ],
    ids=["none", "one", "few", "zeros", "nan", "cancelling"],
)
def test_pooled_coordinates_are_refused_with_the_reason(samples: torch.Tensor, why: str) -> None:
    tail = coordinate_tail(samples)
    assert math.isnan(tail.index)
    assert math.isnan(tail.control)
    assert why in tail.reason
    assert why in str(tail)
