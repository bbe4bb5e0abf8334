"""Two gloo processes stop at the same step, go back to the same weights, and never wait for each other in vain."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _noisy import Fit, batches, regression, trainer
from _workers import Workers

from lightning_cx import ComplexityEarlyStopping, PathLeaveOneOut, SpectralRisk

WORKERS = Workers("_stopping_run", 2)


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    WORKERS.stop()  # a worker of pytest that comes back to this file starts them anew


@functools.cache
def both(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = WORKERS({"case": case})
    return first, second


def test_both_stop_at_the_same_step_and_go_back_to_the_same_weights() -> None:
    first, second = both("plain")
    assert first["stopped_step"] == second["stopped_step"] == first["step"] < 1000
    assert first["best_step"] == second["best_step"] < first["stopped_step"]
    assert first["weights"] == second["weights"] == first["after"][str(first["best_step"])]
    assert first["points"] == second["points"]


@pytest.mark.parametrize("case", ["path", "path, one chunk"])
def test_leave_one_out_errors_are_those_of_all_processes(case: str, tmp_path: Path) -> None:
    first, second = both(case)
    assert first["failure"] == second["failure"] == ""
    assert first["points"] == second["points"]
    assert first["stopped_step"] == second["stopped_step"]
    assert first["weights"] == second["weights"]
    alone = ComplexityEarlyStopping(PathLeaveOneOut(), strict=True)
    trainer([alone], tmp_path, max_steps=1).fit(Fit(), batches(regression(), batch_size=32))
    at_start = alone.watch.state_dict()["record"]["points"]["entries"][0][1]
    assert first["points"][0][1] == pytest.approx(at_start, rel=1e-6)


def test_each_passes_half_of_the_probe_and_both_see_all_of_it(tmp_path: Path) -> None:
    first, second = both("plain")
    assert set(first["rows"]) == set(second["rows"]) == {128}
    alone = ComplexityEarlyStopping(SpectralRisk(), strict=True)
    trainer([alone], tmp_path, max_steps=1).fit(Fit(), batches(regression(), batch_size=32))
    initial = alone.watch.state_dict()["initial"].flatten()
    for rank in (first, second):
        torch.testing.assert_close(torch.tensor(rank["initial"], dtype=torch.float64), initial)


def test_up_to_the_stop_the_weights_are_those_of_a_run_without() -> None:
    with_us, without = both("plain")[0], both("without")[0]
    steps = [str(step) for step in range(1, 41)]
    assert [with_us["after"][step] for step in steps] == [without["after"][step] for step in steps]


def test_one_says_stop_and_both_stop_and_keep_what_was_best_there() -> None:
    first, second = both("one says")
    assert first["stopped_step"] == second["stopped_step"] == first["step"] == second["step"] == 12
    assert (first["reason"], second["reason"]) == ("another process says stop", "check 12")
    assert first["best_step"] == second["best_step"] == 8
    assert first["weights"] == second["weights"] == second["after"]["8"]


def test_a_failure_in_one_process_is_known_to_both_and_training_goes_on() -> None:
    first, second = both("one fails")
    assert first["step"] == second["step"] == 40
    assert first["stopped_step"] is second["stopped_step"] is None
    assert first["reason"] == second["reason"] == "RuntimeError: out of order"
    assert first["weights"] == second["weights"]


def test_under_strict_a_failure_in_one_process_ends_both() -> None:
    first, second = both("strict")
    assert "failed in process 1" in first["failure"]
    assert second["failure"] == "out of order"


@pytest.mark.parametrize("case", ["stream", "monitor"])
def test_streams_and_a_monitor_beside_it(case: str) -> None:
    first, second = both(case)
    assert first["stopped_step"] == second["stopped_step"] == first["step"] < 1000
    assert first["weights"] == second["weights"] == first["after"][str(first["best_step"])]


@pytest.mark.parametrize("case", ["one chunk", "all_gather"])
def test_processes_pass_as_many_chunks_each_even_if_there_is_nothing_left_for_one(case: str) -> None:
    first, second = both(case)
    assert first["step"] == second["step"] == 40
    assert first["points"] == second["points"]
    assert len(first["points"]) > 10
    assert len(first["initial"]) == 256
