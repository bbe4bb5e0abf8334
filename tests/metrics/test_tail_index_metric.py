"""TailIndex pools batches, less their means and the drift of their scale, and reports on all of them."""

from __future__ import annotations

import math

import pytest
import torch
from _metric_data import draw, gradients
from torchmetrics import MetricCollection

from lightning_cx.functional import alpha_ecf, tail_report
from lightning_cx.functional.tails.ecf import project
from lightning_cx.functional.tails.pooling import without_drift
from lightning_cx.functional.tails.stable import elliptical_stable
from lightning_cx.metrics import TailIndex


def updated(batches, **options) -> TailIndex:
    metric = TailIndex(**options)
    for batch in batches:
        metric.update(batch)
    return metric


def test_the_report_is_that_of_the_pooled_noise() -> None:
    batches = [gradients(64, seed) * 0.9**seed for seed in range(20)]
    metric = updated(batches, seed=3)
    noise = [project(batch, 16, 3) for batch in batches]
    noise = torch.cat([rows - rows.mean(0) for rows in noise])
    steps = torch.arange(20).repeat_interleave(64)
    both = without_drift(torch.cat([noise, noise.square().mean(1, keepdim=True).sqrt()], 1), steps)
    expected = tail_report(both[:, :-1], 64, seed=3, projections=None, norms=both[:, -1])
    assert str(metric.report()) == str(expected)
    torch.testing.assert_close(metric.compute(), expected.alpha, rtol=1e-12, atol=0)
    assert metric.held == 1280
    assert metric.examples_per_step == 64


def test_projections_of_a_tap_and_whole_gradients_are_both_welcome() -> None:
    batches = [gradients(100, seed) for seed in range(4)]
    whole, projected = updated(batches), updated([project(batch, 16, 0) for batch in batches])
    assert torch.equal(whole.compute(), projected.compute())
    assert updated([batch[:, 0] for batch in batches]).compute().isfinite()  # one projection
    assert torch.equal(updated([batch.tolist() for batch in batches]).compute(), whole.compute())


def test_the_mean_of_a_batch_is_no_noise() -> None:
    batches = [gradients(100, seed) for seed in range(4)]
    moved = [batch + 1000 * seed for seed, batch in enumerate(batches)]
    torch.testing.assert_close(updated(moved).compute(), updated(batches).compute(), rtol=1e-6, atol=0)


def test_a_drift_of_the_scale_does_not_look_heavy() -> None:
    noise = [torch.randn(32, 16, generator=draw(seed)) * math.exp(-seed / 10) for seed in range(32)]
    assert float(updated(noise).compute()) > 1.95
    pooled = torch.cat([rows - rows.mean(0) for rows in noise])
    assert float(alpha_ecf(pooled, projections=None).index) < 1.8


def test_norms_that_are_known_are_taken() -> None:
    metric, norms = TailIndex(), torch.rand(300, generator=draw(1)) ** (-1 / 1.5)
    metric.update(gradients(300), norms)
    assert torch.equal(metric.pooled()[1], norms.double())
    assert float(metric.report().xi) > 0.3


def test_only_the_newest_batches_stay_in_the_window() -> None:
    batches = [gradients(50, seed) for seed in range(12)]
    metric = updated(batches, window=200)
    assert metric.held == 200
    assert torch.equal(metric.compute(), updated(batches[-4:]).compute())
    metric = updated(batches, window=210)  # as many batches as hold so many
    assert metric.held == 250
    metric.merge_state(updated(batches[:2]))
    assert metric.held == 250


def test_forward_returns_the_index_of_the_batch() -> None:
    metric = TailIndex()
    for seed in range(3):
        assert torch.equal(metric(gradients(seed=seed)), updated([gradients(seed=seed)]).compute())
    assert torch.equal(metric.compute(), updated([gradients(seed=seed) for seed in range(3)]).compute())


def test_the_batch_size_of_the_step_can_be_given() -> None:
    metric = updated([gradients(64, seed) for seed in range(32)], batch_size=16)
    assert metric.report().sum_size == 16
    assert updated([gradients(64, seed) for seed in range(32)]).report().sum_size == 32  # 64 sums of 2048


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.randn(3, 16, generator=draw(0)), "1 of fewer than 4 examples, 0 with NaN"),
        (torch.full((20, 16), math.nan), "0 of fewer than 4 examples, 1 with NaN"),
        (torch.cat([torch.randn(20, 16, generator=draw(0)), torch.full((1, 16), math.inf)]), "1 with NaN"),
    ],
    ids=["three examples", "nan", "inf"],
)
def test_a_batch_that_says_nothing_is_left_out_with_one_warning(bad: torch.Tensor, words: str) -> None:
    good = [project(gradients(seed=seed), 16, 0) for seed in range(2)]
    metric = updated([*good, bad])
    with pytest.warns(UserWarning, match=f"leaves out 1 of 3 batches: .*{words}"):
        value = metric.compute()
    assert torch.equal(value, updated(good).compute())
    metric.update(bad)
    assert torch.equal(metric.compute(), value)  # no second warning, which would be an error here


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "0 samples are too few"),
        ([torch.randn(100, 16, generator=draw(0))], "100 samples are too few to show a tail: 128 are needed"),
        ([torch.zeros(200, 16)], "100% of the examples have no gradient at all"),
        (
            [torch.cat([torch.zeros(60, 16), torch.randn(40, 16, generator=draw(s))]) for s in range(4)],
            "60% of the examples have no gradient at all",
        ),
    ],
    ids=["none", "few", "zeros", "mostly zeros"],
)
def test_too_little_to_go_on_is_nan_with_the_reason_once(batches: list[torch.Tensor], words: str) -> None:
    metric = updated(batches)
    with pytest.warns(UserWarning, match=f"TailIndex is nan: .*{words}"):
        report = metric.report()
    assert report.verdict == "indeterminate"
    assert words in report.reason
    assert math.isnan(metric.report().alpha)
    assert words in metric.assess().reason


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        TailIndex(batch_size=0)
    with pytest.raises(ValueError, match="window=0"):
        TailIndex(window=0)
    with pytest.raises(ValueError, match=r"got shape \[3, 4, 5\]"):
        TailIndex().update(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match=r"each of 5 gradients has one norm, got shape \[4\]"):
        TailIndex().update(torch.zeros(5, 6), torch.zeros(4))
    metric = updated([torch.randn(200, 16, generator=draw(0))])
    with pytest.raises(ValueError, match="8 projections cannot stand beside 16"):
        metric.update(torch.randn(200, 8))


def test_half_precision_gradients_are_kept_in_float64() -> None:
    metric = updated([elliptical_stable(1.7, 400, 16, draw(0)).bfloat16()])
    assert metric.pooled()[0].dtype is torch.float64
    assert metric.compute().dtype is torch.float64


def test_a_collection_keeps_metrics_of_other_windows_apart() -> None:
    batches = [gradients(32, seed)[:, :16] for seed in range(20)]
    collection = MetricCollection({"all": TailIndex(), "new": TailIndex(window=160), "same": TailIndex()})
    for batch in batches:
        collection.update(batch)
    values = collection.compute()
    assert torch.equal(values["all"], updated(batches).compute())
    assert torch.equal(values["same"], values["all"])
    assert torch.equal(values["new"], updated(batches[-5:]).compute())


def test_other_projections_are_not_merged() -> None:
    metric, other = updated([gradients(200)]), updated([torch.randn(200, 8, generator=draw(0))])
    before = metric.compute()
    with pytest.raises(ValueError, match="8 projections cannot stand beside 16"):
        metric.merge_state(other)
    metric._computed = None
    assert torch.equal(metric.compute(), before)


def test_a_window_may_begin_with_a_batch_that_says_nothing() -> None:
    metric = TailIndex(window=100)
    with pytest.warns(UserWarning, match="is nan|leaves out"):
        metric(torch.zeros(2, 16))
    metric.merge_state(TailIndex(window=100))
    metric.update(gradients(150)[:, :16])
    assert metric.held == 150


def test_an_empty_batch_is_one_that_says_nothing() -> None:
    metric = updated([gradients(200), torch.zeros(0, 40)])
    with pytest.warns(UserWarning, match="leaves out 1 of 2 batches"):
        assert metric.compute().isfinite()
