"""MedianComplexity and ResidualSpectrum: the function of all examples, however they came in."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from _metric_data import draw, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import default_features, laplacian_basis
from lightning_cx.functional.complexity.spectrum import median_position, octave_energies
from lightning_cx.instruments import SpectralBias, quantities
from lightning_cx.metrics import MedianComplexity, ResidualSpectrum
from lightning_cx.metrics.examples import ExampleMetric
from lightning_cx.probe.reading import ProbeReading

BOTH = pytest.mark.parametrize("kind", [MedianComplexity, ResidualSpectrum])


def computed(metric: ExampleMetric, features: Tensor, values: Tensor, sizes: list[int] | None = None) -> Tensor:
    parts = [len(features)] if sizes is None else sizes
    for x, y in zip(features.split(parts), values.split(parts), strict=True):
        metric.update(x, y)
    return metric.compute()


def from_functional(kind: type[ExampleMetric], features: Tensor, values: Tensor) -> Tensor:
    function = median_position if kind is MedianComplexity else octave_energies
    return function(laplacian_basis(features), values)


@BOTH
def test_batches_give_what_the_function_gives_on_all_examples(kind):
    features, values = examples()
    expected = from_functional(kind, default_features(features), values)
    result = computed(kind(), features, values, [50, 50, 20])
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@BOTH
@given(seed=st.integers(0, 100), cuts=st.lists(st.integers(0, 120), max_size=4))
@settings(max_examples=10, deadline=None)
def test_neither_order_nor_batches_change_a_single_bit(kind, seed, cuts):
    features, values = examples()
    order = torch.randperm(120, generator=draw(seed))
    borders = [0, *sorted(cuts), 120]
    sizes = [stop - start for start, stop in itertools.pairwise(borders)]
    shuffled = computed(kind(), features[order], values[order], sizes)
    assert torch.equal(shuffled, computed(kind(), features, values))


@BOTH
def test_features_are_z_scored_over_all_examples_unless_told_otherwise(kind):
    features, values = examples()
    scale = torch.tensor([4.0, 0.25, 64.0])
    expected = computed(kind(), features, values)
    torch.testing.assert_close(computed(kind(), features * scale, values), expected, rtol=0, atol=1e-10)
    raw = computed(kind(standardize=False), features, values)
    torch.testing.assert_close(raw, from_functional(kind, features, values), rtol=0, atol=1e-10)
    assert not torch.allclose(raw, expected, atol=1e-3)


@BOTH
def test_token_ids_become_bags_of_words_over_all_batches(kind):
    ids = torch.randint(30, (100, 12), generator=draw(0))
    values = (ids == 3).sum(1)
    expected = from_functional(kind, default_features(ids), values)
    for standardize in (True, False):
        metric = kind(standardize=standardize)
        torch.testing.assert_close(computed(metric, ids, values, [37, 63]), expected, rtol=0, atol=1e-10)


@BOTH
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_images_of_any_dtype_are_numbers(kind, dtype):
    images = torch.randint(0, 2 if dtype == torch.bool else 255, (64, 1, 5, 5), generator=draw(0)).to(dtype)
    values = images.double().mean((1, 2, 3))
    expected = from_functional(kind, default_features(images), values)
    torch.testing.assert_close(computed(kind(), images, values, [30, 34]), expected, rtol=0, atol=1e-10)


@BOTH
def test_lists_and_arrays_are_welcome(kind):
    features, values = (x.double() for x in examples(40))
    metric = kind()
    metric.update(features[:20].tolist(), values[:20].tolist())
    metric.update(features[20:].numpy(), np.asarray(values[20:]))
    torch.testing.assert_close(metric.compute(), computed(kind(), features, values))


def test_the_instrument_reads_the_same_numbers_off_the_probe():
    features, residuals = (x.double() for x in examples())
    reading = SpectralBias().on_probe(0, ProbeReading(residuals, residuals, features))
    median = computed(MedianComplexity(standardize=False), features, residuals)
    assert reading.scalars[quantities.RESIDUAL_MEDIAN] == pytest.approx(float(median), abs=1e-9)
    for band, energy in enumerate(computed(ResidualSpectrum(standardize=False), features, residuals).tolist()):
        assert reading.scalars[quantities.residual_band(band)] == pytest.approx(energy, rel=1e-9)


@BOTH
def test_forward_returns_the_batch_and_keeps_the_whole(kind):
    features, values = examples()
    metric = kind()
    for part in torch.arange(120).split(40):
        assert torch.equal(metric(features[part], values[part]), computed(kind(), features[part], values[part]))
    assert torch.equal(metric.compute(), computed(kind(), features, values))


@BOTH
def test_copies_that_pad_a_distributed_sampler_count_as_examples(kind):
    features, values = (torch.cat([x, x[:3]]) for x in examples())
    expected = from_functional(kind, default_features(features), values)
    torch.testing.assert_close(computed(kind(), features, values), expected, rtol=0, atol=1e-10)


@BOTH
def test_every_example_twice_does_not_crash(kind):
    features, values = examples(60)
    assert computed(kind(), features.repeat(2, 1), values.repeat(2, 1)).isfinite().all()


def test_bands_add_up_to_the_mean_squared_residual_and_the_first_is_the_mean():
    features, values = examples()
    bands = computed(ResidualSpectrum(), features, values)
    assert float(bands.sum()) == pytest.approx(float(values.double().square().sum(1).mean()))
    assert float(bands[0]) == pytest.approx(float(values.double().mean(0).square().sum()))


def test_noise_lies_in_the_middle_and_a_feature_at_the_bottom():
    features, _ = examples()
    noise = torch.randn(120, 40, generator=draw(9))
    assert float(computed(MedianComplexity(), features, noise)) == pytest.approx(0.5, abs=0.03)
    assert float(computed(MedianComplexity(), features, features[:, 0])) < 0.1


@BOTH
def test_of_many_examples_the_same_sample_is_kept_whatever_order_or_batches_they_come_in(kind):
    features, values = examples(1000)
    few = kind(max_examples=64)
    once = computed(few, features, values)
    order = torch.randperm(1000, generator=draw(1))
    metric = kind(max_examples=64)
    assert torch.equal(computed(metric, features[order], values[order], [100] * 10), once)
    assert int(metric.examples) < 3 * 64  # and memory stays bounded
    by_forward = kind(max_examples=64)
    for part in order.split(50):
        by_forward(features[part], values[part])
    assert torch.equal(by_forward.compute(), once)
    assert int(by_forward.examples) < 3 * 64


# What cannot be measured gives nan and says so once; what is a mistake in the call is refused.


@BOTH
def test_too_few_examples_give_nan_with_one_warning(kind):
    features, values = examples(15)
    metric = kind()
    with pytest.warns(UserWarning, match=f"{kind.__name__} is nan: it has seen 15 examples, and needs at least 16"):
        assert computed(metric, features, values).isnan().all()
    metric.reset()
    metric.update(features[:3], values[:3])
    assert metric.compute().isnan().all()  # and no second warning, which would be an error here


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["features", "values"])
def test_an_example_that_is_not_finite_makes_the_answer_nan_and_says_why(kind, bad, where):
    features, values = examples()
    (features if where == "features" else values)[7, 1] = bad
    metric = kind(max_examples=20)
    with pytest.warns(UserWarning, match="is nan: 1 examples have NaN or infinite"):
        result = computed(metric, features, values, [60, 60])
    assert result.isnan().all()
    metric.reset()
    assert computed(metric, *examples()).isfinite().all()


@pytest.mark.parametrize("values", [torch.zeros(40), torch.full((40, 2), 0.1)])
def test_values_that_do_not_vary_have_no_median_but_a_spectrum(values):
    features, _ = examples(40)
    with pytest.warns(UserWarning, match="is nan: the values are the same for all examples"):
        assert math.isnan(computed(MedianComplexity(), features, values))
    bands = computed(ResidualSpectrum(), features, values)
    assert float(bands.sum()) == pytest.approx(float(values[0].double().square().sum()))


def test_features_that_do_not_vary_order_nothing():
    with pytest.warns(UserWarning, match="or the features are"):
        assert math.isnan(computed(MedianComplexity(), torch.ones(40, 2), examples(40)[1]))
    assert computed(ResidualSpectrum(), torch.ones(40, 2), examples(40)[1]).shape == (2,)


@BOTH
def test_an_empty_batch_adds_nothing(kind):
    features, values = examples()
    metric = kind()
    metric.update(features[:0], values[:0])
    assert torch.equal(computed(metric, features, values), computed(kind(), features, values))


@BOTH
def test_nothing_at_all_gives_nan(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own, and ours
        assert kind().compute().isnan().all()


@BOTH
@pytest.mark.parametrize(
    ("features", "values", "message"),
    [
        (torch.ones(4, 2), torch.ones(3), "got 4 and 3 rows"),
        (torch.ones(4, 2), torch.tensor(1.0), "values must be real, with one row per example"),
        (torch.ones(4, 0), torch.ones(4), r"at least one column, got float32 of shape \[4, 0\]"),
        (torch.ones(4, 2), torch.ones(4, 0), "values must be real"),
        (torch.ones(4, 2, dtype=torch.complex64), torch.ones(4), "features must be real"),
        (torch.arange(4), torch.ones(4), "looks like one label or id per example"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_and_leaves_no_trace(kind, features, values, message):
    metric = kind()
    with pytest.raises(ValueError, match=message):
        metric.update(features, values)
    assert int(metric.examples) == 0
    assert metric.rows == []


@BOTH
@pytest.mark.parametrize(
    ("features", "values"),
    [
        (torch.ones(20, 4), torch.ones(20, 2)),
        (torch.ones(20, 3), torch.ones(20)),
        (torch.ones(20, 2), torch.ones(20, 3)),
        (torch.ones(20, 3, dtype=torch.int64), torch.ones(20, 2)),
    ],
)
def test_examples_of_another_kind_are_refused_by_update_and_by_forward(kind, features, values):
    metric = kind()
    metric.update(*examples(20))
    with pytest.raises(ValueError, match="cannot stand beside those before"):
        metric.update(features, values)
    assert metric.compute().isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric(features, values)  # torchmetrics shows the batch alone to update
    with pytest.raises(ValueError, match="different kinds or sizes"):
        metric.compute()


@BOTH
def test_nonsense_settings_are_refused(kind):
    with pytest.raises(ValueError, match="at least one neighbour, got n_neighbors=0"):
        kind(n_neighbors=0)
    for wrong in (15, 4097):
        with pytest.raises(ValueError, match=f"16 examples and holds at most 4096, got max_examples={wrong}"):
            kind(max_examples=wrong)
    with pytest.raises(ValueError, match="Unexpected keyword"):
        kind(neighbours=3)


@BOTH
def test_no_global_random_number_is_drawn(kind):
    before = torch.random.get_rng_state()
    computed(kind(max_examples=32), *examples())
    assert torch.equal(torch.random.get_rng_state(), before)
