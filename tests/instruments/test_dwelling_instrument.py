"""The instrument follows sketches of the parameters and says of them what the functional room says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import dwell, one_point_convexity
from lightning_cx.functional.trajectories.blocks import MAX_BLOCKS
from lightning_cx.gradients import Block, GradientSample
from lightning_cx.instruments import Dwelling, DwellTimeline, ParameterStep, Reading, quantities
from lightning_cx.instruments.dwelling import CONVEXITY, DWELLS, PAIRS

K = 64
ALL = {*DWELLS, *CONVEXITY, quantities.DIFFUSION_EXPONENT}


def place(step: int) -> float:
    return 0.0 if step < 200 else 5.0


def descent(steps: int, seed: int = 0, rate: float = 0.5, curvature: float = 0.5) -> tuple[Tensor, Tensor]:
    """Positions [steps + 1, K] and gradients [steps, K] of noisy descent around places that change at step 200."""
    draw = np.random.default_rng(seed)
    points, gradients = [np.zeros(K)], []
    for step in range(steps):
        gradients.append(curvature * (points[-1] - place(step)) + draw.standard_normal(K))
        points.append(points[-1] - rate * gradients[-1])
    return torch.from_numpy(np.array(points)), torch.from_numpy(np.array(gradients))


def sample(gradient: Tensor) -> GradientSample:
    return GradientSample(batch_size=2, projections=torch.stack([gradient + 1, gradient - 1]))


def shown(
    instrument: Dwelling,
    points: Tensor,
    gradients: Tensor,
    first: int = 0,
    every: int = 1,
    gradient_first: bool = False,
) -> list[Reading]:
    """Show each step as the callback does: the step that was made, and the gradients it was made from."""
    readings = []
    for step in range(first, len(gradients)):
        made = ParameterStep(points[step + 1], points[step + 1] - points[step])
        shows = [instrument.on_step, instrument.on_gradients]
        shown = list(zip(shows, (made, sample(gradients[step])), strict=True))
        readings += [show(every * step, what) for show, what in (reversed(shown) if gradient_first else shown)]
    return readings


def last(readings: list[Reading]) -> Reading:
    return [reading for reading in readings if reading.scalars][-1]


def test_before_there_are_sixteen_blocks_all_is_nan_and_says_why() -> None:
    readings = [r for r in shown(Dwelling(), *descent(15)) if r.scalars]
    assert len(readings) == 15
    for reading in readings:
        assert set(reading.scalars) == ALL
        assert all(math.isnan(reading.scalars[tag]) for tag in (*DWELLS, *CONVEXITY))
        assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)
    assert readings[0].refusals[quantities.DWELL_COUNT] == "1 blocks of the path so far, 16 are needed"


def test_numbers_are_those_of_the_pure_functions() -> None:
    points, gradients = descent(400)
    instrument = Dwelling()
    shown(instrument, points, gradients)
    assert instrument.report().escapes == 1
    instrument._new = instrument._seen  # a reading is due with the next step
    made = ParameterStep(points[-1], points[-1] - points[-2])
    reading = instrument.on_step(400, made)
    expected = dwell(torch.cat([points[1:], points[-1:]]) / 8)
    assert reading.scalars[quantities.DWELL_COUNT] == len(expected.episodes) == 2
    assert reading.scalars[quantities.DWELL_ESCAPES] == 1
    assert expected.present is not None
    assert reading.scalars[quantities.DWELL_LENGTH] == expected.present.length
    assert reading.scalars[quantities.DWELL_DISTANCE] == pytest.approx(expected.present.from_start)
    assert reading.scalars[quantities.DWELL_DISTANCE] == pytest.approx(5.0, rel=0.15)  # 5 in each of 64 numbers, over 8
    assert reading.scalars[quantities.DIFFUSION_EXPONENT] == pytest.approx(expected.exponent.value)
    begin = expected.present.start
    convexity = one_point_convexity(gradients[begin:], points[begin:-1])
    assert reading.scalars[quantities.ONE_POINT_CONVEXITY] == pytest.approx(convexity.value)
    assert reading.scalars[quantities.ONE_POINT_CONVEXITY_ERROR] == pytest.approx(convexity.standard_error)
    assert convexity.value == pytest.approx(0.5, abs=0.1)
    assert not reading.refusals
    assert "2 dwells, 1 escaped" in reading.texts[quantities.DWELL_COUNT]
    picture = reading.pictures[quantities.DWELLS]
    assert isinstance(picture, DwellTimeline)
    assert [(start, end, escaped) for start, end, _, escaped in picture.dwells] == [
        (e.start, e.end, e.escaped) for e in expected.episodes
    ]
    assert len(picture.steps) == len(picture.distances)


def test_gradients_and_steps_meet_in_either_order() -> None:
    one, other = Dwelling(), Dwelling()
    shown(one, *descent(100))
    shown(other, *descent(100), gradient_first=True)
    assert len(one._pairs) == len(other._pairs) == 100
    for a, b in zip(one._pairs, other._pairs, strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(a[1:], b[1:])


def test_a_gradient_of_another_step_is_not_put_beside_a_point() -> None:
    points, gradients = descent(4)
    instrument = Dwelling()
    instrument.on_gradients(1, sample(gradients[1]))
    instrument.on_step(2, ParameterStep(points[3], points[3] - points[2]))
    assert not instrument._pairs


def test_readings_come_as_often_as_the_path_grows_by_a_sixteenth() -> None:
    readings = shown(Dwelling(convexity=False), *descent(400))
    at = [i // 2 for i, reading in enumerate(readings) if reading.scalars]
    assert at[:16] == list(range(16))
    assert all(later - earlier <= 1 + later / 15 for earlier, later in pairwise(at))
    assert len(at) < 90


def test_memory_is_bounded() -> None:
    instrument = Dwelling()
    shown(instrument, *descent(3000))
    assert len(instrument._path) <= MAX_BLOCKS
    assert len(instrument._pairs) == PAIRS
    assert instrument._path.width == 2


def test_sparse_steps_are_judged_by_steps() -> None:
    instrument = Dwelling(convexity=False)
    shown(instrument, *descent(300), every=50)
    report = instrument.report()
    assert report.width == 64
    assert report.escapes == 1
    assert report.episodes[0].end == pytest.approx(200 * 50, abs=2 * 64)


def test_a_walk_has_no_dwell_no_centre_and_says_so() -> None:
    draw = torch.from_numpy(np.random.default_rng(0).standard_normal((401, K)))
    reading = last(shown(Dwelling(), draw.cumsum(0), draw[1:]))
    assert (reading.scalars[quantities.DWELL_COUNT], reading.scalars[quantities.DWELL_LENGTH]) == (0, 0)
    assert reading.scalars[quantities.DIFFUSION_EXPONENT] == pytest.approx(1, abs=0.1)
    assert reading.refusals[quantities.DWELL_DISTANCE] == "no stretch of the path stays in one place"
    assert reading.refusals[quantities.ONE_POINT_CONVEXITY] == "there is no dwell at present"


def test_where_gradients_are_not_seen_only_convexity_is_refused() -> None:
    points, gradients = descent(150)
    instrument = Dwelling()
    readings = [
        instrument.on_step(s, ParameterStep(points[s + 1], points[s + 1] - points[s])) for s in range(len(gradients))
    ]
    reading = last(readings)
    assert reading.scalars[quantities.DWELL_COUNT] == 1
    assert reading.refusals == dict.fromkeys(CONVEXITY, "no gradient was seen beside a step of the parameters")


def test_projections_on_other_directions_are_refused() -> None:
    points, gradients = descent(150)
    instrument = Dwelling()
    for step in range(150):
        wide = GradientSample(batch_size=2, projections=torch.ones(2, 100))
        instrument.on_gradients(step, wide)
        reading = instrument.on_step(step, ParameterStep(points[step + 1], points[step + 1] - points[step]))
    assert gradients.shape == (150, K)
    instrument._new = instrument._seen
    reading = instrument.on_step(150, ParameterStep(points[-1], points[-1] - points[-2]))
    assert reading.refusals[quantities.ONE_POINT_CONVEXITY] == ("another instrument has 100 projections: 64 are needed")


def test_the_gradient_of_several_processes_is_that_of_the_whole_batch() -> None:
    points, gradients = descent(1)
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((6, K)))
    shares = (Block(4, projections=rows[:4]), Block(2, projections=rows[4:]))
    instrument = Dwelling()
    instrument.on_step(0, ParameterStep(points[1], points[1] - points[0]))
    instrument.on_gradients(0, GradientSample(4, projections=rows[:4], blocks=shares))
    torch.testing.assert_close(instrument._pairs[0][1], rows.mean(0) / 8)
    assert len(gradients) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_left_out(bad: float) -> None:
    instrument = Dwelling()
    assert instrument.on_step(0, ParameterStep(torch.full((K,), bad), torch.zeros(K))) == Reading()
    instrument.on_gradients(1, sample(torch.full((K,), bad)))
    assert len(instrument._path) == 0
    assert instrument._gradient is None


def test_parameters_that_do_not_move_say_so() -> None:
    instrument = Dwelling()
    still = ParameterStep(torch.ones(K), torch.zeros(K))
    reading = last([instrument.on_step(step, still) for step in range(40)])
    assert reading.scalars[quantities.DWELL_COUNT] == 0
    assert math.isnan(reading.scalars[quantities.DIFFUSION_EXPONENT])
    assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


@pytest.mark.parametrize("interrupted", [3, 100, 260])
def test_a_run_that_is_stitched_together_gives_the_readings_of_one(interrupted: int) -> None:
    points, gradients = descent(300)
    whole, first, second = Dwelling(), Dwelling(), Dwelling()
    expected = shown(whole, points, gradients)
    readings = shown(first, points[: interrupted + 1], gradients[:interrupted])
    second.load_state_dict(first.state_dict())
    readings += shown(second, points, gradients, first=interrupted)
    for one, other in zip(readings, expected, strict=True):
        assert one.scalars == pytest.approx(other.scalars, nan_ok=True, rel=1e-12)
        assert one.refusals == other.refusals
        assert one.texts == other.texts


def test_a_state_is_plain_enough_for_a_checkpoint(tmp_path: Any) -> None:
    instrument = Dwelling()
    shown(instrument, *descent(60))
    torch.save(instrument.state_dict(), tmp_path / "state.pt")
    other = Dwelling()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert str(other.report()) == str(instrument.report())


def test_it_forgets_everything_when_another_model_comes() -> None:
    instrument = Dwelling()
    shown(instrument, *descent(60))
    instrument.reset()
    assert str(instrument.state_dict()) == str(Dwelling().state_dict())


def test_what_it_needs() -> None:
    assert (Dwelling().needs.projections, Dwelling().needs.gram) == (K, False)
    assert Dwelling().shown == {"on_gradients", "on_step"}
    assert Dwelling(convexity=False).shown == {"on_step"}
    reading = last(shown(Dwelling(convexity=False), *descent(60)))
    assert set(reading.scalars) == ALL - set(CONVEXITY)
