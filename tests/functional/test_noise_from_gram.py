"""Gradient noise scale: the theory's toy, a naive jackknife, the coverage of the interval."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import noise_scale, pool_noise_scales
from lightning_cx.functional.noise import noise_scale_from_sums

TOY_NOISE_SCALE = 39.2
"""tr Sigma / |G|^2 of the toy in 20 dimensions (THEORY 8)."""


def toy_gradients(n: int, draw: torch.Generator, d: int = 20) -> Tensor:
    """Unit noise in d dimensions around a mean with d / 39.2 of squared norm."""
    mean = math.sqrt(1 / TOY_NOISE_SCALE)
    return mean + torch.randn(n, d, dtype=torch.float64, generator=draw)


def random_gram(n: int, seed: int = 0) -> Tensor:
    gradients = toy_gradients(n, torch.Generator().manual_seed(seed))
    return gradients @ gradients.T


def signal_and_noise_by_loops(gradients: Tensor) -> tuple[float, float]:
    """Mean product of distinct pairs, and the unbiased sample variance summed over coordinates."""
    pairs = [float(a @ b) for a, b in itertools.permutations(gradients, 2)]
    return sum(pairs) / len(pairs), float(gradients.var(dim=0).sum())


def test_signal_and_noise_are_the_pair_mean_and_the_sample_variance():
    gradients = toy_gradients(9, torch.Generator().manual_seed(1))
    scale = noise_scale(gradients @ gradients.T)
    signal, noise = signal_and_noise_by_loops(gradients)
    assert float(scale.signal) == pytest.approx(signal, rel=1e-12)
    assert float(scale.noise) == pytest.approx(noise, rel=1e-12)


def test_covariance_is_that_of_leaving_each_example_out():
    gradients = toy_gradients(9, torch.Generator().manual_seed(2))
    left_out = torch.tensor(
        [signal_and_noise_by_loops(torch.cat([gradients[:i], gradients[i + 1 :]])) for i in range(9)]
    ).double()
    jackknife = (9 - 1) ** 2 / 9 * torch.cov(left_out.T)
    torch.testing.assert_close(noise_scale(gradients @ gradients.T).covariance, jackknife, rtol=1e-5, atol=1e-8)


def test_noise_scale_of_the_toy_is_that_of_the_theory():
    scale = noise_scale(random_gram(2500, seed=3))
    assert float(scale.value) == pytest.approx(TOY_NOISE_SCALE, rel=0.1)
    assert scale.low < TOY_NOISE_SCALE < scale.high


# With 16 examples the signal is rarely significant: nearly all intervals are open above and can only miss below.
@pytest.mark.parametrize(("n", "repetitions", "most"), [(16, 400, 1.0), (64, 400, 0.99), (256, 300, 0.99)])
def test_the_interval_covers_the_truth_about_95_times_in_100(n, repetitions, most):
    draw = torch.Generator().manual_seed(n)
    covered = 0
    for _ in range(repetitions):
        gradients = toy_gradients(n, draw)
        scale = noise_scale(gradients @ gradients.T)
        covered += bool(scale.low <= TOY_NOISE_SCALE <= scale.high)
    assert 0.88 <= covered / repetitions <= most


def test_the_interval_holds_exactly_the_ratios_within_t_standard_errors():
    scale = noise_scale(random_gram(200, seed=4))
    t = 1.9719565  # two-sided 95% point of Student's t with 199 degrees of freedom
    for ratio in (scale.low, scale.high):
        contrast = torch.stack([-ratio, torch.ones_like(ratio)])
        error = (contrast @ scale.covariance @ contrast).sqrt()
        assert float((scale.noise - ratio * scale.signal).abs() / error) == pytest.approx(t, rel=1e-6)
    assert scale.low < scale.value < scale.high


def test_pure_noise_has_no_upper_end_but_a_lower_one():
    gradients = torch.randn(64, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = noise_scale(gradients @ gradients.T)
    assert math.isinf(scale.high)
    assert 100 < float(scale.low) < math.inf
    assert "the signal is not significant" in str(scale)


def test_gradients_that_cancel_have_no_value():
    scale = noise_scale(torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]))
    assert math.isnan(scale.value)
    assert float(scale.signal) == -0.5
    assert math.isinf(scale.low)
    assert math.isinf(scale.high)


def test_identical_gradients_have_no_noise():
    scale = noise_scale(torch.full((8, 8), 3.0))
    assert (float(scale.value), float(scale.low), float(scale.high)) == (0.0, 0.0, 0.0)


def test_two_examples_give_a_value_without_an_interval():
    scale = noise_scale(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    assert (float(scale.value), float(scale.low), float(scale.high)) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize(
    "gram",
    [
        torch.zeros(0, 0),
        torch.ones(1, 1),
        torch.full((4, 4), torch.nan),
        torch.eye(4).index_fill(0, torch.tensor([1]), torch.inf),
    ],
    ids=["none", "one", "nan", "inf"],
)
def test_grams_that_say_nothing_give_nan(gram):
    scale = noise_scale(gram)
    for number in (scale.value, scale.low, scale.high, scale.signal, scale.noise, noise_scale(gram).snr):
        assert math.isnan(number)
    assert scale.covariance.isnan().all()
    assert str(scale) == "noise scale unknown: it takes at least 2 finite gradients"


def test_zero_gradients_have_neither_signal_nor_noise():
    scale = noise_scale(torch.zeros(5, 5))
    assert math.isnan(scale.value)
    assert math.isnan(noise_scale(torch.zeros(5, 5)).snr)


def test_a_gram_matrix_is_square():
    with pytest.raises(ValueError, match=r"square, got shape \[2, 3\]"):
        noise_scale(torch.zeros(2, 3))


def test_the_order_of_examples_and_the_size_of_the_loss_do_not_matter():
    gram = random_gram(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    before, after = noise_scale(gram), noise_scale(1e6 * gram[order][:, order])
    for name in ("value", "low", "high"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


def test_pooling_one_batch_changes_nothing():
    scale = noise_scale(random_gram(64))
    pooled = pool_noise_scales([scale])
    for name in ("value", "low", "high", "signal", "noise", "covariance"):
        torch.testing.assert_close(getattr(pooled, name), getattr(scale, name), rtol=0, atol=0)
    assert pooled.degrees_of_freedom == scale.degrees_of_freedom


def test_pooling_many_small_batches_finds_what_one_of_them_cannot():
    scales = [noise_scale(random_gram(16, seed)) for seed in range(100)]
    pooled = pool_noise_scales(scales)
    assert math.isinf(scales[0].high)
    assert float(pooled.value) == pytest.approx(TOY_NOISE_SCALE, rel=0.25)
    assert pooled.low < TOY_NOISE_SCALE < pooled.high < 80


def test_pooling_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        pool_noise_scales([])


def test_the_signal_to_noise_ratio_is_the_reciprocal_of_the_noise_scale():
    gram = random_gram(400)
    torch.testing.assert_close(noise_scale(gram).snr, 1 / noise_scale(gram).value)


def test_a_person_can_read_the_noise_scale():
    assert str(noise_scale(random_gram(2500, seed=3))).startswith("noise scale 40.1 examples")
    assert "95% between" in str(noise_scale(random_gram(2500, seed=3)))


def test_sums_over_batches_pool_as_the_batches_themselves():
    scales = [noise_scale(random_gram(n, seed)) for seed, n in enumerate((16, 32, 48))]
    sums = [sum(getattr(s, name) for s in scales) for name in ("signal", "noise", "covariance", "degrees_of_freedom")]
    from_sums, pooled = noise_scale_from_sums(*sums, len(scales)), pool_noise_scales(scales)
    for name in ("value", "low", "high", "signal", "noise", "covariance"):
        torch.testing.assert_close(getattr(from_sums, name), getattr(pooled, name), rtol=1e-12, atol=0)
    assert from_sums.degrees_of_freedom == 15 + 31 + 47


def test_sums_over_no_batches_say_nothing():
    nothing = torch.zeros((), dtype=torch.float64)
    scale = noise_scale_from_sums(nothing, nothing, torch.zeros(2, 2, dtype=torch.float64), 0, 0)
    for number in (scale.value, scale.low, scale.high, scale.signal, scale.noise):
        assert math.isnan(number)
