"""Shares of the descent by block: planted ones return, noise is told from descent, and intervals cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import block_shares, noise_scale
from lightning_cx.functional.kernels import BlockShares, pool_block_shares

PLANTED = {"early": (5, 0.9), "late": (30, 0.3), "noise": (60, 0.0)}
"""Width of each block and the mean of each of its coordinates: |G_b|^2 is 4.05, 2.7 and 0."""


def planted_rows(n: int, draw: np.random.Generator) -> dict[str, Tensor]:
    return {name: torch.from_numpy(draw.standard_normal((n, d)) + mean) for name, (d, mean) in PLANTED.items()}


def shares_of(rows: dict[str, Tensor]) -> BlockShares:
    return block_shares({name: own @ own.T for name, own in rows.items()})


TRUTH = torch.tensor([4.05, 2.7, 0.0], dtype=torch.float64) / 6.75


@pytest.mark.parametrize("seed", range(3))
def test_planted_shares_return(seed):
    found = shares_of(planted_rows(2000, np.random.default_rng(100 + seed)))
    torch.testing.assert_close(found.share, TRUTH, rtol=0, atol=0.03)
    torch.testing.assert_close(found.noise_share, torch.tensor([5, 30, 60]).double() / 95, rtol=0, atol=0.01)
    assert (found.low <= TRUTH).all()
    assert (found.high >= TRUTH).all()
    assert found.is_known


def test_signal_and_noise_are_the_pair_mean_and_the_sample_variance_of_each_block():
    rows = planted_rows(9, np.random.default_rng(1))
    found = shares_of(rows)
    signal = [np.mean([float(a @ b) for a, b in itertools.permutations(own, 2)]) for own in rows.values()]
    noise = [float(own.var(dim=0).sum()) for own in rows.values()]
    assert found.signal.tolist() == pytest.approx(signal, rel=1e-12)
    assert found.noise.tolist() == pytest.approx(noise, rel=1e-12)
    assert found.share.tolist() == pytest.approx(np.array(signal) / sum(signal), rel=1e-12)


def test_covariance_is_that_of_leaving_each_example_out():
    rows = planted_rows(8, np.random.default_rng(2))
    left_out = torch.stack(
        [shares_of({k: torch.cat([v[:i], v[i + 1 :]]) for k, v in rows.items()}).signal for i in range(8)]
    )
    torch.testing.assert_close(shares_of(rows).covariance, (8 - 1) ** 2 / 8 * torch.cov(left_out.T))


def test_blocks_together_are_the_noise_scale_of_the_whole():
    rows = planted_rows(40, np.random.default_rng(3))
    found, whole = shares_of(rows), torch.cat(list(rows.values()), dim=1)
    expected = noise_scale(whole @ whole.T)
    torch.testing.assert_close(found.signal.sum(), expected.signal)
    torch.testing.assert_close(found.noise.sum(), expected.noise)
    torch.testing.assert_close(found.covariance.sum(), expected.covariance[0, 0])


def test_the_interval_holds_exactly_the_shares_within_t_standard_errors():
    found = shares_of(planted_rows(100, np.random.default_rng(4)))
    t = scipy.stats.t.ppf(0.975, 99)
    for block in (0, 1):
        for end in (float(found.low[block]), float(found.high[block])):
            weights = -end * torch.ones(3, dtype=torch.float64)
            weights[block] += 1
            error = (weights @ found.covariance @ weights).sqrt()
            assert float((weights @ found.signal).abs() / error) == pytest.approx(t, rel=1e-6)


# The truth lies in the interval at least 19 times of 20, also where batches are small; the block without descent is
# taken for one that has some less often than 1 in 40, for the jackknife overstates the error of pure noise.
@pytest.mark.parametrize("n", [32, 64])
def test_intervals_cover_the_truth_and_noise_is_not_taken_for_descent(n):
    draw = np.random.default_rng(n)
    found = [shares_of(planted_rows(n, draw)) for _ in range(300)]
    covers = torch.stack([(f.low <= TRUTH) & (f.high >= TRUTH) for f in found]).double().mean(0)
    assert (covers >= 0.92).all()
    assert np.mean([float(f.low[2]) > 0 for f in found]) < 0.025
    assert np.mean([float(f.low[0]) > 0 for f in found]) > 0.95


def test_identical_blocks_share_equally_and_surely():
    rows = planted_rows(30, np.random.default_rng(5))["early"]
    found = shares_of({"a": rows, "b": rows, "c": rows, "d": rows})
    for values in (found.share, found.low, found.high, found.noise_share):
        torch.testing.assert_close(values, torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_block_without_gradient_has_nothing_to_give():
    rows = planted_rows(30, np.random.default_rng(6)) | {"frozen": torch.zeros(30, 7).double()}
    found = shares_of(rows)
    assert (float(found.share[3]), float(found.low[3]), float(found.high[3])) == (0.0, 0.0, 0.0)
    assert float(found.noise_share[3]) == 0.0


def test_a_lone_block_gives_all():
    found = shares_of({"all": planted_rows(30, np.random.default_rng(7))["early"]})
    assert found.share.tolist() == pytest.approx([1.0])
    assert found.low.tolist() == pytest.approx([1.0])
    assert found.is_known


@given(st.integers(0, 99), st.sampled_from([1e-30, 1e-3, 1e30]))
def test_scale_order_of_examples_and_rotation_of_parameters_do_not_matter(seed, scale):
    draw = np.random.default_rng(seed)
    rows = planted_rows(12, draw)
    order = torch.from_numpy(draw.permutation(12))
    turn = torch.from_numpy(np.linalg.qr(draw.standard_normal((5, 5)))[0])
    changed = {name: scale * own[order] for name, own in rows.items()}
    changed["early"] = changed["early"] @ turn
    before, after = shares_of(rows), shares_of(changed)
    for name in ("share", "low", "high", "noise_share"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-6, atol=1e-9, equal_nan=True)


@given(st.integers(0, 999), st.integers(2, 12))
def test_shares_add_up_to_one_and_intervals_are_within_zero_and_one(seed, n):
    found = shares_of(planted_rows(n, np.random.default_rng(seed)))
    if float(found.signal.sum()) > 0:
        assert float(found.share.sum()) == pytest.approx(1)
    assert (found.low >= 0).all()
    assert (found.high <= 1).all()
    assert (found.low <= found.high).all()


def test_where_nothing_is_common_to_the_examples_nothing_is_shared_out():
    draw = np.random.default_rng(8)
    found = shares_of({name: torch.from_numpy(draw.standard_normal((32, 20))) for name in "ab"})
    assert not found.is_known
    assert found.low.tolist() == [0.0, 0.0]
    assert found.high.tolist() == [1.0, 1.0]
    assert str(found) == "shares of the descent unknown: the mean gradient is not distinguishable from noise"


def test_two_examples_give_shares_without_intervals():
    found = block_shares({"a": torch.ones(2, 2), "b": torch.eye(2)})
    assert found.share.tolist() == [1.0, 0.0]
    assert found.low.tolist() == [0.0, 0.0]
    assert found.high.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "gram",
    [
        torch.zeros(0, 0),
        torch.ones(1, 1),
        torch.full((4, 4), torch.nan),
        torch.eye(4) * math.inf,
    ],
    ids=["none", "one", "nan", "inf"],
)
def test_grams_that_say_nothing_give_nan_for_every_block(gram):
    found = block_shares({"bad": gram, "good": torch.ones_like(gram)})
    for values in (found.share, found.low, found.high, found.signal, found.noise):
        assert values.isnan().all()
    assert not found.is_known


def test_zero_gradients_have_no_shares():
    found = block_shares({"a": torch.zeros(5, 5), "b": torch.zeros(5, 5)})
    assert found.share.isnan().all()
    assert found.noise_share.isnan().all()
    assert not found.is_known


def test_pooled_batches_find_what_one_of_them_cannot():
    draw = np.random.default_rng(9)
    weak = {"real": (20, 0.1), "noise": (20, 0.0)}
    found = [
        shares_of({k: torch.from_numpy(draw.standard_normal((32, d)) + m) for k, (d, m) in weak.items()})
        for _ in range(100)
    ]
    pooled = pool_block_shares(found)
    assert not found[0].is_known
    assert pooled.is_known
    assert float(pooled.low[0]) > 0.5
    assert float(pooled.low[1]) == 0.0
    assert pooled.degrees_of_freedom == 3100


def test_pooling_one_batch_changes_nothing_and_different_blocks_are_refused():
    found = shares_of(planted_rows(20, np.random.default_rng(10)))
    pooled = pool_block_shares([found])
    for name in ("share", "low", "high", "signal", "noise", "covariance", "noise_share"):
        torch.testing.assert_close(getattr(pooled, name), getattr(found, name))
    other = block_shares({"else": torch.eye(20)})
    with pytest.raises(ValueError, match="same blocks, got 2 kinds in 2 batches"):
        pool_block_shares([found, other])
    with pytest.raises(ValueError, match="got 0 kinds in 0 batches"):
        pool_block_shares([])


@pytest.mark.parametrize(
    ("grams", "message"),
    [
        ({}, r"for each block, got shapes \[\]"),
        ({"a": torch.zeros(2, 3)}, r"got shapes \[\(2, 3\)\]"),
        ({"a": torch.eye(2), "b": torch.eye(3)}, r"got shapes \[\(2, 2\), \(3, 3\)\]"),
    ],
)
def test_blocks_need_square_grams_of_the_same_examples(grams, message):
    with pytest.raises(ValueError, match=message):
        block_shares(grams)


def test_arrays_and_lists_are_welcome():
    gram = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    expected = block_shares({"a": torch.from_numpy(gram), "b": torch.eye(3)})
    for same in (gram, gram.tolist(), gram.astype(np.float32)):
        torch.testing.assert_close(block_shares({"a": same, "b": torch.eye(3)}).low, expected.low)


def test_a_person_can_read_the_shares():
    text = str(shares_of(planted_rows(500, np.random.default_rng(11))))
    assert text.startswith("descent: early 6")
    assert "%), noise " in text
