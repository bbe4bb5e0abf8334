"""The sample that is kept of many examples depends on what they are, and on nothing else."""

import math

import pytest
import torch
from _metric_data import draw, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.metrics.examples import content_sample


def test_the_sample_keeps_the_same_examples_when_their_values_change():
    features, values = examples(300)
    kept = content_sample(torch.cat([features, values], 1).double(), 3, 50)[:, :3]
    later = content_sample(torch.cat([features, values * 0.1], 1).double(), 3, 50)[:, :3]
    assert torch.equal(kept, later)


@given(
    n=st.integers(0, 40),
    cut=st.integers(0, 40),
    most=st.integers(1, 50),
    distinct=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_of_samples_is_the_sample_of_all(n, cut, most, distinct, seed):
    features = torch.randint(distinct, (n, 2), generator=draw(seed)).double() - 1
    rows = torch.cat([features, torch.randint(3, (n, 1), generator=draw(seed + 1)).double()], 1)
    parts = torch.cat([content_sample(part, 2, most) for part in (rows[:cut], rows[cut:])])
    assert torch.equal(content_sample(parts, 2, most), content_sample(rows, 2, most))
    assert len(content_sample(rows, 2, most)) == min(n, most)


@pytest.mark.parametrize("kind_of_features", ["grid", "binary", "gaussian", "counts"])
def test_the_sample_is_spread_like_a_random_one(kind_of_features):
    n, most = 4000, 1000
    features = {
        "grid": torch.arange(n).double()[:, None] / 8,
        "binary": ((torch.arange(n)[:, None] >> torch.arange(12)) & 1).double(),
        "gaussian": torch.randn(n, 5, generator=draw(0)).double(),
        "counts": torch.randint(6, (n, 5), generator=draw(1)).double(),
    }[kind_of_features]
    kept = content_sample(torch.cat([features, torch.zeros(n, 1)], 1), features.shape[1], most)[:, :-1]
    # Sampling error of a mean without replacement; 4.5 of these is exceeded once in 150 000.
    error = features.std(0) * math.sqrt((1 - most / n) / most)
    assert bool(((kept.mean(0) - features.mean(0)).abs() < 4.5 * error).all())


def test_zero_and_negative_zero_are_the_same_feature():
    rows = torch.tensor([[0.0, 1.0], [1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    negative = torch.where(rows == 0, -0.0, rows)
    assert torch.equal(content_sample(rows, 1, 2), content_sample(negative, 1, 2))
