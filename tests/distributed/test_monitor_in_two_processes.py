"""A monitor in two gloo processes: one answer for the whole batch, the same in both, and nobody waits in vain."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from _monitor_run import work
from _workers import Workers

EXACT = ["norm", "snr", "noise_scale", "example_norm_p05", "example_norm_p50", "example_norm_p95"]

Result = dict[str, Any]


WORKERS = Workers("_monitor_run", 2)


@functools.cache
def _in_this_process(options: str) -> Result:
    return json.loads(json.dumps(work(json.loads(options))))


@functools.cache
def _in_two(options: str) -> list[Result]:
    return WORKERS(json.loads(options))


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    WORKERS.stop()  # a worker of pytest that comes back to this file starts them anew


def alone(**options: Any) -> Result:
    return _in_this_process(json.dumps(options))


def both(**options: Any) -> list[Result]:
    return _in_two(json.dumps(options))


def told(result: Result, words: str) -> list[str]:
    return [message for message in result["told"] if words in message]


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_the_noise_scale_of_two_processes_is_that_of_one_on_the_same_batches(precision: str) -> None:
    one, two = alone(precision=precision), both(precision=precision)[0]
    assert len(one["metrics"]) == len(two["metrics"]) == 12
    for of_one, of_two in zip(one["metrics"], two["metrics"], strict=True):
        for name in EXACT:
            expected = of_one[f"gradient/{name}"]
            assert of_two[f"gradient/{name}"] == pytest.approx(expected, rel=1e-5, nan_ok=True), name
    assert math.isfinite(two["metrics"][-1]["gradient/noise_scale"])


def test_the_interval_is_a_little_wider_than_that_of_the_whole_gram_matrix() -> None:
    one, two = alone()["metrics"][-1], both()[0]["metrics"][-1]
    low, high = (f"gradient/noise_scale_{end}" for end in ("low", "high"))
    assert 0.9 * one[low] < two[low] < one[low] < one[high] < two[high] < 1.1 * one[high]


@pytest.mark.parametrize("sizes", [(24, 40), (63, 1)])
def test_batches_of_unequal_size_are_merged_exactly(sizes: tuple[int, int]) -> None:
    """At weights that stay, since training itself weighs unequal batches otherwise."""
    fixed = {"module": {"lr": 0.0}, "epochs": 1}
    one, two = alone(**fixed), both(sizes=sizes, **fixed)[0]
    for of_one, of_two in zip(one["metrics"], two["metrics"], strict=True):
        for name in EXACT:
            assert of_two[f"gradient/{name}"] == pytest.approx(of_one[f"gradient/{name}"], rel=1e-9, nan_ok=True)
    bounded = math.isfinite(two["metrics"][-1]["gradient/noise_scale_high"])
    assert bounded is (sizes == (24, 40))  # one example alone says nothing of how much its share varies


@pytest.mark.parametrize("rank", [0, 1])
def test_a_last_batch_that_is_short_in_one_process_is_passed_over_in_both(rank: int) -> None:
    first, second = both(short=rank)
    assert first["steps"] == second["steps"] == 12
    assert first["counts"]["gradients"] == second["counts"]["gradients"] == 10
    assert first["after"] == second["after"] == both(short=rank, without=True)[0]["after"]


@pytest.mark.parametrize("ddp", [{"static_graph": True}, {"find_unused_parameters": True}])
def test_static_graphs_and_unused_parameters_change_nothing(ddp: dict[str, bool]) -> None:
    options: dict[str, Any] = {"ddp": ddp, "module": {"unused": "find_unused_parameters" in ddp}}
    one, two = alone(), both(**options)[0]
    for name in EXACT:
        expected = one["metrics"][-1][f"gradient/{name}"]
        assert two["metrics"][-1][f"gradient/{name}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.01])
@pytest.mark.parametrize("ddp", [{"static_graph": True}, {"find_unused_parameters": True}])
def test_what_ddp_puts_before_a_loss_is_seen_through(ddp: dict[str, bool], penalty: float) -> None:
    """A node of DDP's own, which was taken for examples that meet, and for an end of the penalty."""
    options: dict[str, Any] = {"module": {"penalty": penalty}}
    plain, wrapped = both(**options)[0], both(ddp=ddp, **options)[0]
    assert wrapped["told"] == plain["told"]
    assert len(told(plain, "penalty on parameters alone, left out")) == (penalty > 0)
    for ours, theirs in zip(wrapped["metrics"], plain["metrics"], strict=True):
        assert ours["gradient/norm"] == pytest.approx(theirs["gradient/norm"], rel=1e-6)


def test_where_pairs_across_processes_are_left_out_this_is_told_once() -> None:
    """The gradient of a penalty is mixed into what examples want together."""
    options: dict[str, Any] = {"module": {"penalty": 0.01}}
    assert len(told(both(**options)[0], "gradient/norm is what both make likely")) == 1
    assert not told(alone(**options), "gradient/norm is what both make likely")
    assert not told(both()[0], "gradient/norm is what both make likely")


def test_with_accumulation_the_batch_of_the_sample_is_merged_not_the_accumulated_gradient() -> None:
    one, two = alone(accumulate=3), both(accumulate=3)[0]
    for of_one, of_two in zip(one["metrics"], two["metrics"], strict=True):
        for name in EXACT:
            assert of_two[f"gradient/{name}"] == pytest.approx(of_one[f"gradient/{name}"], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": {"dropout": 0.3}},
        {"module": {"norm": True}},
        {"accumulate": 2},
        {"clip": 0.1},
        {"precision": "bf16-mixed"},
        {"stream": True},
        {"together": True},
    ],
    ids=["plain", "dropout", "BatchNorm", "accumulation", "clipping", "bf16", "stream", "collective in training_step"],
)
def test_weights_are_those_of_a_run_without_after_every_batch(options: dict[str, Any]) -> None:
    with_us, without = both(**options), both(without=True, **options)
    for ours, theirs in zip(with_us, without, strict=True):
        assert ours["after"] == theirs["after"]
        assert ours["rng"] == theirs["rng"]
        assert [message for message in ours["told"] if "BatchNorm" not in message] == []
    assert {"gradient/norm", "complexity/residual_median", "tail/verdict"} <= set(with_us[0]["metrics"][-1])


def test_both_processes_know_the_same_numbers_after_every_batch() -> None:
    first, second = both()
    assert len(first["metrics"]) == 12
    for ours, theirs in zip(first["metrics"], second["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[k] == theirs[k] or (math.isnan(ours[k]) and math.isnan(theirs[k])) for k in ours)


def test_each_passes_half_of_the_probe_and_its_spectrum_is_that_of_one_process() -> None:
    one, (first, second) = alone(), both()
    assert set(first["rows"]) == set(second["rows"]) == {64}
    tags = [tag for tag in one["metrics"][-1] if tag.startswith("complexity/res")]
    assert len(tags) > 5
    for tag in tags:
        assert first["metrics"][-1][tag] == pytest.approx(one["metrics"][-1][tag], rel=1e-9)


def test_the_tail_is_read_from_the_examples_of_both() -> None:
    one, two = alone(epochs=1), both(epochs=1)[0]
    ready = [["tail/index" in m and not math.isnan(m["tail/index"]) for m in r["metrics"]] for r in (one, two)]
    assert ready[0] == ready[1] == [False] * 6  # 384 of 512 examples are seen in either
    later = [r["metrics"][8]["tail/index"] for r in (alone(), both()[0])]
    assert later[1] == pytest.approx(later[0], abs=0.1)  # each share is centred by its own mean


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("part", ["attach", "finish", "calibrate", "probe"])
def test_a_failure_in_one_process_is_told_once_and_training_goes_on(part: str, rank: int) -> None:
    first, second = both(fails=[part, 1], rank=rank)
    assert first["steps"] == second["steps"] == 12
    assert first["after"] == second["after"] == both(without=True)[0]["after"]
    assert len(told(first, f"out of order in {part}")) == 1
    assert math.isfinite(first["metrics"][-1]["gradient/noise_scale"])  # one failure is no reason to give up
    assert math.isfinite(first["metrics"][-1]["complexity/residual_median"])
    assert first["metrics"][-1].keys() == second["metrics"][-1].keys()


@pytest.mark.parametrize("part", ["attach", "probe", "instrument"])
def test_a_part_that_fails_in_one_process_for_good_is_switched_off_in_both(part: str) -> None:
    first, second = both(fails=[part, 99], rank=0 if part == "instrument" else 1)
    assert first["steps"] == second["steps"] == 12
    assert len(told(first, "is disabled after 3 failures in a row")) == 1
    assert first["counts"] == second["counts"]
    lost = "complexity/residual_median" if part == "probe" else "gradient/noise_scale"
    kept = "gradient/noise_scale" if part == "probe" else "complexity/residual_median"
    assert lost not in first["metrics"][-1]
    assert math.isfinite(first["metrics"][-1][kept])


@pytest.mark.parametrize(("part", "rank"), [("attach", 1), ("probe", 1), ("instrument", 0)])
def test_under_strict_a_failure_in_one_process_ends_both(part: str, rank: int) -> None:
    results = both(fails=[part, 1], rank=rank, strict=True)
    assert results[rank]["failure"] == f"out of order in {part}"
    assert f"process {rank}" in results[1 - rank]["failure"]
    assert results[0]["steps"] == results[1]["steps"] == 1


def test_the_wall_time_budget_decides_alike_in_both() -> None:
    """Clocks differ; samples would wait for each other for ever if both did not follow one of them."""
    first, second = both(budget=0.5, epochs=60)
    assert first["steps"] == second["steps"] == 360
    assert first["counts"] == second["counts"]
    assert set(first["counts"]) == {"gradients", "the probe"}
    assert 2 <= first["counts"]["gradients"] < 300


def test_a_period_is_kept_in_both() -> None:
    first, second = both(every=5)
    assert first["counts"] == second["counts"] == {"gradients": 3, "the probe": 3}


def test_each_of_two_optimizers_has_the_numbers_of_one_process() -> None:
    one, two = alone(pair=True), both(pair=True)[0]
    for of_one, of_two in zip(one["metrics"], two["metrics"], strict=True):
        for name in EXACT:
            for tag in (f"gradient/{name}", f"gradient/{name}-optimizer_1"):
                expected = of_one.get(tag, math.nan)  # the second has not stepped after the first batch
                assert of_two.get(tag, math.nan) == pytest.approx(expected, rel=1e-5, nan_ok=True), tag
    assert math.isfinite(two["metrics"][-1]["gradient/noise_scale-optimizer_1"])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("times", [1, 99])
def test_what_one_process_missed_of_two_optimizers_keeps_nobody_waiting(times: int, rank: int) -> None:
    """Each would else look again, at another batch than the rest, for the optimizer whose sample it lacks."""
    first, second = both(pair=True, every=4, fails=["attach", times], rank=rank)
    assert first["steps"] == second["steps"] == 18
    assert first["after"] == second["after"] == both(pair=True, without=True)[0]["after"]
    assert ("gradient/norm-optimizer_1" in first["metrics"][-1]) is (times == 1)
    assert len(told(first, "out of order in attach")) == 1


@pytest.mark.parametrize("together", [False, True], ids=["plain", "all_gather"])
def test_passes_of_instruments_are_made_by_both_and_both_know_the_numbers_of_the_first(together: bool) -> None:
    one, other = both(preset="all", every=3, together=together, strict=True)
    assert one["weights"] == other["weights"] == both(without=True, together=together)[0]["weights"]
    assert one["failure"] == other["failure"] == ""
    wanted = ("step_size/sharpness", "neurons/dead", "kernel/probe_alignment", "trajectory/training_loss")
    assert all(math.isfinite(one["metrics"][-1][tag]) for tag in wanted)
    assert str(one["metrics"]) == str(other["metrics"])
    assert one["counts"]["StepSize"] == other["counts"]["StepSize"] == 4


def test_numbers_of_passes_are_those_of_one_process_on_the_same_batches() -> None:
    one, two = alone(preset="all", every=3)["metrics"][-1], both(preset="all", every=3)[0]["metrics"][-1]
    for tag in ("step_size/sharpness", "kernel/probe_participation_ratio", "neurons/effective_rank_share"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-6)


def test_passes_that_fail_in_one_process_stop_neither() -> None:
    one, other = both(preset="all", every=2, fails=["passes", 99], rank=1)
    assert one["steps"] == other["steps"] == 12
    assert one["weights"] == other["weights"]
    assert math.isfinite(one["metrics"][-1]["step_size/sharpness"])
