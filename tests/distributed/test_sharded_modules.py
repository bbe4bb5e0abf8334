"""Modules whose parameters are cut in pieces over two gloo processes: what is measured is that of whole ones."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from _workers import Workers

WORKERS = Workers("_sharded_run", 2)


@functools.cache
def _run(options: str) -> list[dict[str, Any]]:
    return WORKERS(json.loads(options))


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    WORKERS.stop()  # a worker of pytest that comes back to this file starts them anew


def both(strategy: str, **options: Any) -> list[dict[str, Any]]:
    results = _run(json.dumps({"strategy": strategy, **options}))
    if any("'Stream' object has no attribute" in result["failure"] for result in results):
        pytest.skip("this torch, as 2.6 does, shards a module on a GPU only, without us too")
    return results


def test_gram_matrix_and_norms_are_those_of_the_unsharded_module() -> None:
    """Participation ratio and norms of examples are functions of the Gram matrix of a process's own examples."""
    sharded, whole = (both(strategy, monitor=True)[0] for strategy in ("sharded", "ddp"))
    assert sharded["sharded"]
    assert not whole["sharded"]
    names = ["example_norm_p05", "example_norm_p50", "example_norm_p95", "participation_ratio"]
    for ours, theirs in zip(sharded["metrics"], whole["metrics"], strict=True):
        for name in names:
            assert ours[f"gradient/{name}"] == pytest.approx(theirs[f"gradient/{name}"], rel=1e-4), name
    assert sharded["metrics"][-1]["complexity/residual_median"] == pytest.approx(
        whole["metrics"][-1]["complexity/residual_median"], rel=1e-4
    )


def test_each_of_two_optimizers_of_a_sharded_module_is_read_whole() -> None:
    """The outermost module shows whole parameters until its backward is over, which no optimizer holds."""
    sharded, whole = (both(strategy, pair=True, monitor=True, strict=False)[0] for strategy in ("sharded", "ddp"))
    for ours, theirs in zip(sharded["metrics"], whole["metrics"], strict=True):
        for name in ("example_norm_p50", "participation_ratio"):
            for tag in (f"gradient/{name}", f"gradient/{name}-optimizer_1"):
                assert ours[tag] == pytest.approx(theirs[tag], rel=1e-4), tag
    assert sharded["after"] == both("sharded", pair=True)[0]["after"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_of_a_sharded_module_is_bitwise_identical(accumulate: int) -> None:
    with_us = both("sharded", monitor=True, accumulate=accumulate)
    without = both("sharded", accumulate=accumulate)
    for ours, theirs in zip(with_us, without, strict=True):
        assert ours["after"] == theirs["after"]
        assert ours["step"] == theirs["step"] == 8


def test_the_noise_scale_of_a_sharded_module_is_pooled_over_the_processes() -> None:
    """Summed gradients would be as large as the whole module, so pairs across processes are left out."""
    sharded, whole = (both(strategy, monitor=True)[0]["metrics"][-1] for strategy in ("sharded", "ddp"))
    low, high = (sharded[f"gradient/noise_scale_{end}"] for end in ("low", "high"))
    assert low < whole["gradient/noise_scale"] < high
    assert math.isfinite(sharded["gradient/noise_scale"])
    assert low < whole["gradient/noise_scale_low"]  # fewer pairs know less
    first, second = both("sharded", monitor=True)
    assert first["metrics"][-1] == pytest.approx(second["metrics"][-1], nan_ok=True)


def test_early_stopping_of_a_sharded_module_stops_both_at_the_same_step() -> None:
    first, second = both("sharded", stopping="keep", max_steps=1500)
    assert first["step"] == second["step"] < 1500
    assert first["failure"] == second["failure"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "sharded", "stopping": "restore"}, "pass restore_best=False, and keep the best weights by Model"),
        ({"strategy": "tensor parallel", "monitor": True}, "ComplexityMonitor does not work under tensor parallelism"),
        ({"strategy": "tensor parallel", "stopping": "keep"}, "ComplexityEarlyStopping does not work under tensor par"),
    ],
    ids=["restore_best", "tensor parallel monitor", "tensor parallel stopping"],
)
def test_what_cannot_be_done_is_refused_by_name_at_setup(options: dict[str, Any], message: str) -> None:
    for result in both(**options):
        assert message in result["failure"]
        assert result["step"] == 0


def test_steps_of_sharded_parameters_are_not_followed_and_this_is_told_once() -> None:
    told = [words for words in both("sharded", monitor=True)[0]["told"] if "not followed" in words]
    assert len(told) == 1
    assert "TailIndex(trajectory=False)" in told[0]


def test_gradients_on_the_probe_of_a_sharded_module_are_refused_by_name() -> None:
    first, second = both("sharded", monitor="interference", strict=False)
    assert first["step"] == second["step"] == 8
    assert [words for words in first["told"] if "gradients on the probe are off" in words and "sharded" in words]
