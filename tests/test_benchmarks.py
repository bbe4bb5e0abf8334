"""The benchmark itself: its table, its floors, and that what it times is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def linear(examples, *widths):
    from _networks import mlp
    from _workloads import Workload, cross_entropies, labelled

    draw = labelled(widths[0], classes=widths[-1])
    return Workload("linear", "linear", examples, lambda: mlp(*widths), draw, cross_entropies)


def as_a_command(*arguments):
    command = [sys.executable, "-W", "error", str(BENCHMARKS / "tap.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def within(capsys, monkeypatch):
    """The same in this process, which is not to be bounded in its memory."""

    def run(*arguments):
        import tap

        monkeypatch.setattr(tap, "bound_memory", lambda device: None)
        tap.main(arguments)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_prints_a_row_for_each_workload(fresh, within, tmp_path):
    output = tmp_path / "below" / "tap.md"
    names = ["--workloads", "tiny-mlp-6", "tiny-cnn-5", "--contenders", "ours", "ours-norms", "loop"]
    options = ["--rounds", "2", "--no-memory", "--device", "cpu", "--output", str(output)]
    printed = (as_a_command if fresh else within)(*names, *options)
    assert printed.strip() == output.read_text().strip()
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    times, memory, errors = lines[:4], lines[4:8], lines[8:]
    assert [line.split(" | ")[0] for line in times] == ["| workload", "| ---", "| MLP 5-7-3, N=6", "| CNN 8x8, N=5"]
    head, _, *rows = (line.strip("| ").split(" | ") for line in times)
    assert head == ["workload", "plain, ms", "floor, Gram", "ours, Gram", "naive loop", "floor, norms", "ours, norms"]
    assert all(float(value) > 1 for row in rows for value in row[2:3] + row[5:6])
    assert all(float(value) > 0 for row in rows for value in row[1:])
    assert all(row.split(" | ")[1] == "-" for row in memory[2:])
    assert all(float(value) < 1e-5 for row in errors[2:] for value in row.strip("| ").split(" | ")[1:])
    assert "fails" not in printed


@pytest.mark.parametrize("name", ["tiny-mlp-6", "tiny-cnn-5"])
def test_every_way_that_needs_no_peer_gives_the_gram_of_the_loop_and_the_gradient_of_the_step(name):
    from _measure import error_of, reference
    from _peers import CONTENDERS, PLAIN, Task
    from _workloads import WORKLOADS

    workload = WORKLOADS[name]
    exact, plain = reference(workload, CPU), Task.of(workload, CPU)
    PLAIN.prepare(plain)()
    for way in (contender for contender in CONTENDERS.values() if contender.package is None):
        task = Task.of(workload, CPU)
        step = way.prepare(task)
        step()
        assert error_of(step(), exact) < 1e-5, way.name
        for found, expected in zip(task.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)


def test_the_floor_of_two_linear_layers_is_what_the_hand_counts():
    from _floor import count_floor

    n, a, h, b = 3, 50, 40, 30  # wide for so few examples, so that inputs times inputs is cheapest
    floor = count_floor(linear(n, a, h, b))
    assert floor.plain == 2 * n * (2 * a * h + 3 * h * b)  # no gradient for the data
    assert floor.gram == n * (n + 1) * (a + h + h + b + h + b)
    assert floor.norms == 2 * n * (a + h + h + b + h + b)
    assert floor.ratio() == pytest.approx(1 + floor.gram / floor.plain)


def test_a_convolution_over_many_places_is_materialised_and_one_over_one_place_is_not():
    from _floor import Use, cheapest

    n, wide, narrow = 4, Use(places=100, inputs=27, outputs=8), Use(places=1, inputs=27, outputs=8)
    assert cheapest(n, [wide])[0] == 2 * n * 100 * 27 * 8 + n * (n + 1) * 27 * 8
    assert cheapest(n, [narrow])[0] == n * (n + 1) * (27 + 8)
    assert cheapest(n, [wide, wide])[0] == 2 * (2 * n * 100 * 27 * 8) + n * (n + 1) * 27 * 8


@pytest.mark.parametrize(("name", "counted"), [("mlp-64", 1.08), ("mlp-256", 1.31), ("regression-256", 4.93)])
def test_the_floors_of_the_table_are_those_that_the_project_set_out_from(name, counted):
    from _floor import count_floor
    from _workloads import WORKLOADS

    assert count_floor(WORKLOADS[name]).ratio() == pytest.approx(counted, abs=0.005)


def test_a_way_that_fails_is_reported_with_its_message_and_stops_nothing():
    from _measure import measure_times
    from _peers import CONTENDERS, Contender

    def broken(task):
        raise NotImplementedError("no rule for this layer\nand much more")

    ways = [Contender("broken", "broken", broken), CONTENDERS["loop"]]
    seconds, outcomes = measure_times(linear(4, 3, 2), ways, 1, CPU, patience=60.0)
    assert seconds > 0
    assert outcomes["broken"].failure == "NotImplementedError: no rule for this layer"
    assert outcomes["loop"].ratio > 0
    assert outcomes["loop"].rounds == 1


def test_memory_comes_from_a_process_of_its_own_and_sees_the_rows_of_the_loop():
    from _measure import measure_memory
    from _peers import CONTENDERS
    from _workloads import WORKLOADS

    workload, loop = WORKLOADS["mlp-64"], CONTENDERS["loop"]
    found = measure_memory(workload, loop, CPU)
    assert found.failure is None
    rows = 64 * 669706 * 4 / 2**20  # N x P floats
    assert 0.9 * rows < found.memory < 2 * rows


def test_a_way_that_is_wrong_is_marked_beside_its_time():
    from _measure import Outcome
    from _report import ratio

    assert ratio(9, Outcome(ratio=1.5, rounds=9, error=1e-6)) == "1.50"
    assert ratio(9, Outcome(ratio=1.5, rounds=1, error=None)) == "1.50*"
    assert ratio(9, Outcome(ratio=1.5, rounds=9, error=0.3)) == "1.50 (wrong)"
    assert ratio(9, Outcome(ratio=1.5, rounds=9, error=float("nan"))) == "1.50 (wrong)"
