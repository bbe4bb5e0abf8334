"""GradientNoiseScale pools batches exactly as the function does."""

import math

import pytest
import torch
from _metric_data import gram

from lightning_cx.functional import noise_scale, pool_noise_scales
from lightning_cx.metrics import GradientNoiseScale

FIELDS = ("value", "low", "high", "signal", "noise", "covariance")


def updated(grams) -> GradientNoiseScale:
    metric = GradientNoiseScale()
    for matrix in grams:
        metric.update(matrix)
    return metric


def test_batches_are_pooled_as_the_function_pools_them():
    grams = [gram(n, seed) for seed, n in enumerate((16, 16, 9, 40))]
    metric = updated(grams)
    expected = pool_noise_scales([noise_scale(matrix) for matrix in grams])
    for name in FIELDS:
        torch.testing.assert_close(getattr(metric.interval(), name), getattr(expected, name), rtol=1e-12, atol=0)
    assert metric.interval().degrees_of_freedom == expected.degrees_of_freedom
    assert torch.equal(metric.compute(), metric.interval().value)


def test_forward_returns_the_noise_scale_of_the_batch():
    metric = GradientNoiseScale()
    for seed in range(3):
        assert torch.equal(metric(gram(seed=seed)), noise_scale(gram(seed=seed)).value)
    torch.testing.assert_close(metric.compute(), updated(gram(seed=seed) for seed in range(3)).compute())


def test_lists_and_arrays_are_welcome():
    expected = updated([gram()]).compute()
    assert torch.equal(updated([gram().tolist()]).compute(), expected)
    assert torch.equal(updated([gram().numpy()]).compute(), expected)


def test_half_precision_grams_are_added_in_float64():
    metric = updated([gram().bfloat16()] * 3)
    assert metric.signal.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), noise_scale(gram().bfloat16()).value)


@pytest.mark.parametrize(
    "bad",
    [torch.ones(1, 1), torch.zeros(0, 0), torch.full((4, 4), torch.nan), torch.eye(4) * math.inf],
    ids=["one example", "none", "nan", "inf"],
)
def test_a_batch_that_says_nothing_is_left_out_with_one_warning(bad):
    metric = updated([gram(), bad, gram(seed=1)])
    with pytest.warns(UserWarning, match="leaves out 1 of 3 batches"):
        value = metric.compute()
    assert torch.equal(value, updated([gram(), gram(seed=1)]).compute())
    metric.update(bad)
    assert torch.equal(metric.compute(), value)  # no second warning, which would be an error here


def test_the_warning_counts_what_was_left_out():
    metric = updated([torch.ones(1, 1), torch.full((3, 3), torch.nan), torch.ones(1, 1), gram()])
    with pytest.warns(UserWarning, match="3 of 4 batches: 2 of fewer than two examples, 1 with NaN or infinite"):
        metric.interval()


def test_no_usable_batch_gives_nan():
    metric = updated([torch.ones(1, 1)])
    with pytest.warns(UserWarning, match="leaves out 1 of 1"):
        assert math.isnan(metric.compute())
    assert str(metric.interval()).startswith("noise scale unknown")


def test_a_batch_of_two_has_a_value_but_no_error_estimate():
    grams = [gram(64), gram(2, seed=1)]
    metric, expected = updated(grams), pool_noise_scales([noise_scale(matrix) for matrix in grams])
    assert math.isfinite(expected.value)
    torch.testing.assert_close(metric.compute(), expected.value, rtol=1e-12, atol=0)
    assert (float(metric.interval().low), float(metric.interval().high)) == (0.0, math.inf)


def test_a_signal_that_is_not_positive_leaves_the_interval():
    cancelling = torch.eye(12, dtype=torch.float64) - 1 / 12
    metric = updated([cancelling])
    assert math.isnan(metric.compute())
    assert math.isinf(metric.interval().high)


@pytest.mark.parametrize("shape", [(2, 3), (4,), ()])
def test_a_gram_matrix_is_square(shape):
    with pytest.raises(ValueError, match="a Gram matrix is square"):
        GradientNoiseScale().update(torch.ones(shape))
