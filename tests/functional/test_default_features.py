"""Default features: which raw inputs become which rows of numbers."""

import pytest
import torch

from lightning_cx.functional import default_features


def test_floats_are_z_scored_column_by_column():
    values = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0)) * 1e3 + 5
    features = default_features(values)
    assert features.shape == (50, 6)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(6).double())


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e300, 1e-300])
def test_columns_that_do_not_vary_become_zero(constant):
    values = torch.tensor([[constant, 1.0], [constant, 2.0], [constant, 4.0]], dtype=torch.float64)
    features = default_features(values)
    assert (features[:, 0] == 0).all()
    assert (features[:, 1] != 0).all()


@pytest.mark.parametrize(
    "images",
    [
        torch.arange(12, dtype=torch.uint8).reshape(3, 4),
        torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2),
        torch.arange(12).reshape(3, 1, 2, 2),
        torch.arange(12).reshape(3, 4) % 5 > 2,
    ],
    ids=["flat bytes", "bytes", "integers of four dimensions", "booleans"],
)
def test_images_are_treated_as_floats(images):
    torch.testing.assert_close(default_features(images), default_features(images.float()))


def test_token_ids_become_counts_of_the_ids_that_occur():
    ids = torch.tensor([[50_256, -100, 3], [3, 3, 3]])
    assert default_features(ids).tolist() == [[1, 1, 1], [0, 3, 0]]


def test_bag_of_words_does_not_see_word_order_or_which_ids_were_used():
    ids = torch.randint(0, 9, (6, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(default_features(ids.flip(1)), default_features(ids))
    assert torch.equal(default_features(ids * 1000 + 7), default_features(ids))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_are_refused_with_the_way_out(dtype):
    with pytest.raises(ValueError, match=r"shape \[3\].*differences of ids mean nothing: pass features="):
        default_features(torch.tensor([0, 1, 2], dtype=dtype))


@pytest.mark.parametrize("values", [torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.long)])
def test_no_examples_are_refused(values):
    with pytest.raises(ValueError, match="at least one example"):
        default_features(values)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        default_features(torch.tensor([1.0, torch.nan]))


def test_one_example_has_no_spread():
    assert default_features(torch.tensor([[4.0, 5.0]])).tolist() == [[0.0, 0.0]]
