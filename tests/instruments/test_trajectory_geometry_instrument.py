"""The path of the parameters through the instrument: known paths, and every refusal."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import distance_from_start, spanning_tree_length
from lightning_cx.functional.trajectories.geometry import positive_magnitude
from lightning_cx.gradients import ParameterSketch
from lightning_cx.instruments import ParameterStep, Reading, TrajectoryGeometry, quantities
from lightning_cx.instruments.trajectory_geometry import GROWTH, POINTS, SHAPE, spanning_points

SKETCH = 64


def moved(sketch: Tensor, before: Tensor, examples: int | None = None) -> ParameterStep:
    return ParameterStep(sketch, sketch - before, examples)


def show_path(
    instrument: TrajectoryGeometry, sketches: Tensor, every: int = 1, examples: int | None = None
) -> list[Reading]:
    """Each row after a step, the first one before the first."""
    steps = range(0, every * (len(sketches) - 1), every)
    shown = zip(steps, sketches[1:], sketches[:-1], strict=True)
    return [instrument.on_step(s, moved(after, before, examples)) for s, after, before in shown]


def walk(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, SKETCH)).cumsum(0))


def merged(readings: list[Reading]) -> dict[str, float]:
    return {tag: value for reading in readings for tag, value in reading.scalars.items()}


def test_the_numbers_are_those_of_the_functions_on_the_sketched_path() -> None:
    path = walk(64)
    last = show_path(TrajectoryGeometry(scale=0.3), path)[-1].scalars
    points = path / SKETCH**0.5
    assert last[quantities.TRAJECTORY_DISTANCE] == pytest.approx(float((points[-1] - points[0]).norm()))
    assert last[quantities.TRAJECTORY_TREE] == pytest.approx(float(spanning_tree_length(points)))
    assert last[quantities.TRAJECTORY_MAGNITUDE] == pytest.approx(float(positive_magnitude(points, 0.3)))
    growth = distance_from_start(points)
    assert [last[tag] for tag in GROWTH] == pytest.approx(
        [float(growth.exponent), float(growth.low), float(growth.high)]
    )


@pytest.mark.parametrize(("rank_one", "expected"), [(False, 0.09), (True, 0.28)])
def test_a_sketched_distance_is_as_exact_as_the_documentation_says(rank_one: bool, expected: float) -> None:
    draw, factors = np.random.default_rng(0), []
    for seed in range(80):
        change = draw.normal(size=(256, 256))
        change = np.outer(change[0], change[1]) if rank_one else change
        sketch = ParameterSketch(SKETCH, seed=seed)([("weight", torch.nn.Parameter(torch.from_numpy(change)))])
        factors.append(float(sketch.norm()) / SKETCH**0.5 / float(np.linalg.norm(change)))
    assert np.mean(factors) == pytest.approx(1, abs=0.08)
    assert np.std(factors) == pytest.approx(expected, rel=0.35)


def test_a_straight_line_is_as_long_as_it_has_come_at_every_length_of_the_run() -> None:
    line = torch.arange(2000).double()[:, None] * torch.ones(SKETCH, dtype=torch.float64)
    readings = show_path(TrajectoryGeometry(scale=1.0), line)
    for reading in readings:
        scalars = reading.scalars
        if math.isfinite(scalars.get(quantities.TRAJECTORY_TREE, math.nan)):
            assert scalars[quantities.TRAJECTORY_TREE] == pytest.approx(
                scalars[quantities.TRAJECTORY_DISTANCE], rel=1e-9
            )
            assert scalars[quantities.TRAJECTORY_GROWTH] == pytest.approx(1.0, abs=1e-9)


def test_a_path_of_any_length_is_read_from_64_points_that_span_it() -> None:
    memory = TrajectoryGeometry()._path
    for step in range(10_000):
        memory.add((step, torch.tensor([float(step)])), at=step)
        assert len(memory) < 2 * POINTS
        if step in (63, 64, 500, 5000, 9999):
            steps, sketches = spanning_points(list(memory))
            assert len(steps) == POINTS
            assert steps[0] == 0
            assert steps[-1] > 0.98 * step
            assert float(steps.diff().max()) <= 2 * float(steps.diff().min())
            assert sketches[:, 0].tolist() == steps.tolist()


def test_samples_at_uneven_steps_are_evened_out() -> None:
    draw = np.random.default_rng(0)
    steps = np.unique(np.concatenate([np.arange(1000), np.cumsum(draw.integers(1, 30, size=2000))]))
    memory = TrajectoryGeometry()._path
    for step in steps:
        memory.add((int(step), torch.zeros(1)), at=int(step))
    gaps = spanning_points(list(memory))[0].diff().double()
    assert float(gaps.max() / gaps.median()) < 2.5
    assert float(gaps.min() / gaps.median()) > 0.4


def test_the_tree_of_a_random_walk_depends_on_where_it_is_and_not_on_how_often_it_was_seen() -> None:
    """The same walk, sampled at each step and at every eighth: equal numbers of points make equal lengths."""
    path = walk(4097, 1)
    often = show_path(TrajectoryGeometry(scale=1.0), path)
    seldom = show_path(TrajectoryGeometry(scale=1.0), path[::8], every=8)
    one, other = (merged(readings)[quantities.TRAJECTORY_TREE] for readings in (often, seldom))
    assert one == pytest.approx(other, rel=0.03)


def test_before_64_points_the_reason_is_given_with_each_number_but_the_distance() -> None:
    readings = show_path(TrajectoryGeometry(), walk(40))
    for count, reading in enumerate(readings, start=2):
        assert math.isfinite(reading.scalars[quantities.TRAJECTORY_DISTANCE])
        assert all(math.isnan(reading.scalars[tag]) for tag in SHAPE)
        why = f"{count} points of the path so far: 64 are needed, one for each sampled step"
        assert reading.refusals == dict.fromkeys(SHAPE, why)


def test_the_loss_of_the_probe_stands_beside_them() -> None:
    probe: Any = SimpleNamespace(loss=0.25)
    assert TrajectoryGeometry().on_probe(3, probe).scalars == {quantities.TRAJECTORY_LOSS: 0.25}
    probe.loss = math.nan
    reading = TrajectoryGeometry().on_probe(3, probe)
    assert math.isnan(reading.scalars[quantities.TRAJECTORY_LOSS])
    assert reading.refusals == {
        quantities.TRAJECTORY_LOSS: "the loss of the probe's examples is not known or not finite"
    }


def test_the_scale_of_the_magnitude_is_the_root_of_the_training_examples_or_refused() -> None:
    path = walk(64) / 100
    expected = float(positive_magnitude(path / SKETCH**0.5, 30.0))
    assert show_path(TrajectoryGeometry(), path, examples=900)[-1].scalars[
        quantities.TRAJECTORY_MAGNITUDE
    ] == pytest.approx(expected)
    refused = show_path(TrajectoryGeometry(), path)[-1]
    assert math.isnan(refused.scalars[quantities.TRAJECTORY_MAGNITUDE])
    why = "the number of training examples is not known: give TrajectoryGeometry a scale"
    assert refused.refusals == {quantities.TRAJECTORY_MAGNITUDE: why}


def test_parameters_that_are_not_finite_are_refused_and_do_not_spoil_the_path() -> None:
    instrument, path = TrajectoryGeometry(scale=1.0), walk(80)
    show_path(instrument, path[:70])
    bad = instrument.on_step(70, moved(path[70] * math.nan, path[69]))
    assert set(bad.refusals.values()) == {"the parameters are not finite"}
    assert all(math.isnan(value) for value in bad.scalars.values())
    assert set(bad.refusals) == set(bad.scalars)
    good = instrument.on_step(71, moved(path[71], path[70]))
    assert math.isfinite(good.scalars[quantities.TRAJECTORY_TREE])


def test_parameters_that_do_not_move_have_no_growth() -> None:
    last = show_path(TrajectoryGeometry(scale=1.0), torch.ones(70, SKETCH))[-1]
    assert last.scalars[quantities.TRAJECTORY_TREE] == 0
    assert last.scalars[quantities.TRAJECTORY_MAGNITUDE] == 1
    assert last.refusals == dict.fromkeys(GROWTH, "the parameters have come back to where they started")


def test_a_warm_up_can_be_left_out() -> None:
    path = walk(120)
    late = show_path(TrajectoryGeometry(scale=1.0, first_step=50), path)
    assert all(not reading.scalars for reading in late[:50])
    expected = float((path[-1] - path[50]).norm()) / SKETCH**0.5
    assert late[-1].scalars[quantities.TRAJECTORY_DISTANCE] == pytest.approx(expected)


def test_every_number_that_is_nan_has_its_reason() -> None:
    for reading in show_path(TrajectoryGeometry(), walk(130)):
        assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


def test_a_resumed_instrument_goes_on_where_it_was() -> None:
    path = walk(400)
    whole, half, resumed = (TrajectoryGeometry(scale=1.0) for _ in range(3))
    expected = show_path(whole, path)[-1]
    show_path(half, path[:251])
    resumed.load_state_dict(half.state_dict())
    last = [resumed.on_step(step, moved(path[step + 1], path[step])) for step in range(250, 399)][-1]
    assert last.scalars == pytest.approx(expected.scalars, nan_ok=True)
    assert math.isfinite(last.scalars[quantities.TRAJECTORY_DISTANCE])


def test_another_model_starts_afresh() -> None:
    instrument = TrajectoryGeometry()
    show_path(instrument, walk(200))
    instrument.reset()
    assert len(show_path(instrument, walk(10))[-1].refusals) == len(SHAPE)


def test_no_gradients_and_no_passes_are_asked_for() -> None:
    assert TrajectoryGeometry().shown == {"on_probe", "on_step"}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"scale of the magnitude is positive and finite, got scale=0"):
        TrajectoryGeometry(scale=0.0)
    with pytest.raises(ValueError, match=r"steps are counted from 0, got first_step=-5"):
        TrajectoryGeometry(first_step=-5)
