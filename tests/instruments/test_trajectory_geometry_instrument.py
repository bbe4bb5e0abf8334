"""The path of the parameters through the instrument: known paths, the index of a known descent, and every refusal."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import (
    bound_index,
    distance_from_start,
    positive_magnitude,
    spanning_tree_length,
)
from lightning_cx.gradients import GradientSample, ParameterSketch
from lightning_cx.instruments import Observation, ParameterStep, Reading, TrajectoryGeometry
from lightning_cx.instruments.noisy_descent import SgdSettings
from lightning_cx.instruments.path_memory import POINTS, PathMemory
from lightning_cx.instruments.trajectory_geometry import GROWTH, INDEX, SHAPE
from lightning_cx.tensorboard import tags

N, D, SKETCH = 5000, 400, 64


def view(optimizer: torch.optim.Optimizer | None = None, examples: int | None = N) -> Any:
    weight = torch.zeros(D)
    chosen = torch.optim.SGD([torch.nn.Parameter(weight)], lr=0.05) if optimizer is None else optimizer
    return SimpleNamespace(optimizer=chosen, training_examples=examples, parameters=lambda: {"weight": weight})


def moved(sketch: Tensor, before: Tensor) -> ParameterStep:
    return ParameterStep(sketch, sketch - before)


def show_path(instrument: TrajectoryGeometry, sketches: Tensor, every: int = 1) -> list[Reading]:
    """Each row after a step, the first one before the first."""
    steps = range(0, every * (len(sketches) - 1), every)
    shown = zip(steps, sketches[1:], sketches[:-1], strict=True)
    return [instrument.measure(Observation(s, trajectory=moved(after, before))) for s, after, before in shown]


def walk(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, SKETCH)).cumsum(0))


def merged(readings: list[Reading]) -> dict[str, float]:
    return {tag: value for reading in readings for tag, value in reading.scalars.items()}


def test_the_numbers_are_those_of_the_functions_on_the_sketched_path() -> None:
    path = walk(64)
    last = show_path(TrajectoryGeometry(scale=0.3, index=False), path)[-1].scalars
    points = path / SKETCH**0.5
    assert last[tags.TRAJECTORY_DISTANCE] == pytest.approx(float((points[-1] - points[0]).norm()))
    assert last[tags.TRAJECTORY_TREE] == pytest.approx(float(spanning_tree_length(points)))
    assert last[tags.TRAJECTORY_MAGNITUDE] == pytest.approx(float(positive_magnitude(points, 0.3)))
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
    readings = show_path(TrajectoryGeometry(scale=1.0, index=False), line)
    for reading in readings:
        scalars = reading.scalars
        if math.isfinite(scalars.get(tags.TRAJECTORY_TREE, math.nan)):
            assert scalars[tags.TRAJECTORY_TREE] == pytest.approx(scalars[tags.TRAJECTORY_DISTANCE], rel=1e-9)
            assert scalars[tags.TRAJECTORY_GROWTH] == pytest.approx(1.0, abs=1e-9)


def test_a_path_of_any_length_is_read_from_64_points_that_span_it() -> None:
    memory = PathMemory()
    for step in range(10_000):
        memory.add(step, torch.tensor([float(step)]))
        assert len(memory) < 2 * POINTS
        if step in (63, 64, 500, 5000, 9999):
            steps, sketches = memory.points()
            assert len(steps) == POINTS
            assert steps[0] == 0
            assert steps[-1] > 0.98 * step
            assert float(steps.diff().max()) <= 2 * float(steps.diff().min())
            assert sketches[:, 0].tolist() == steps.tolist()


def test_samples_at_uneven_steps_are_evened_out() -> None:
    draw = np.random.default_rng(0)
    steps = np.unique(np.concatenate([np.arange(1000), np.cumsum(draw.integers(1, 30, size=2000))]))
    memory = PathMemory()
    for step in steps:
        memory.add(int(step), torch.zeros(1))
    gaps = memory.points()[0].diff().double()
    assert float(gaps.max() / gaps.median()) < 2.5
    assert float(gaps.min() / gaps.median()) > 0.4


def test_the_tree_of_a_random_walk_depends_on_where_it_is_and_not_on_how_often_it_was_seen() -> None:
    """The same walk, sampled at each step and at every eighth: equal numbers of points make equal lengths."""
    path = walk(4097, 1)
    often = show_path(TrajectoryGeometry(scale=1.0, index=False), path)
    seldom = show_path(TrajectoryGeometry(scale=1.0, index=False), path[::8], every=8)
    one, other = (merged(readings)[tags.TRAJECTORY_TREE] for readings in (often, seldom))
    assert one == pytest.approx(other, rel=0.03)


def test_before_64_points_the_reason_is_given_with_each_number_but_the_distance() -> None:
    readings = show_path(TrajectoryGeometry(), walk(40))
    for count, reading in enumerate(readings, start=2):
        assert math.isfinite(reading.scalars[tags.TRAJECTORY_DISTANCE])
        assert all(math.isnan(reading.scalars[tag]) for tag in (*SHAPE, *INDEX))
        why = f"{count} points of the path so far: 64 are needed, one for each sampled step"
        assert reading.refusals == dict.fromkeys((*SHAPE, *INDEX), why)


def test_the_loss_of_the_probe_stands_beside_them() -> None:
    probe: Any = SimpleNamespace(loss=0.25)
    assert TrajectoryGeometry().measure(Observation(3, probe=probe)).scalars == {tags.TRAJECTORY_LOSS: 0.25}
    probe.loss = math.nan
    reading = TrajectoryGeometry().measure(Observation(3, probe=probe))
    assert math.isnan(reading.scalars[tags.TRAJECTORY_LOSS])
    assert reading.refusals == {tags.TRAJECTORY_LOSS: "the loss of the probe's examples is not known or not finite"}


def test_the_scale_of_the_magnitude_is_the_root_of_the_training_examples_or_refused() -> None:
    path = walk(64) / 100
    known, unknown = TrajectoryGeometry(index=False), TrajectoryGeometry(index=False)
    known.measure(Observation(0, model=view(examples=900)))
    expected = float(positive_magnitude(path / SKETCH**0.5, 30.0))
    assert show_path(known, path)[-1].scalars[tags.TRAJECTORY_MAGNITUDE] == pytest.approx(expected)
    refused = show_path(unknown, path)[-1]
    assert math.isnan(refused.scalars[tags.TRAJECTORY_MAGNITUDE])
    why = "the number of training examples is not known: give TrajectoryGeometry a scale"
    assert refused.refusals == {tags.TRAJECTORY_MAGNITUDE: why}


def test_parameters_that_are_not_finite_are_refused_and_do_not_spoil_the_path() -> None:
    instrument, path = TrajectoryGeometry(scale=1.0, index=False), walk(80)
    show_path(instrument, path[:70])
    bad = instrument.measure(Observation(70, trajectory=moved(path[70] * math.nan, path[69])))
    assert set(bad.refusals.values()) == {"the parameters are not finite"}
    assert all(math.isnan(value) for value in bad.scalars.values())
    assert set(bad.refusals) == set(bad.scalars)
    good = instrument.measure(Observation(71, trajectory=moved(path[71], path[70])))
    assert math.isfinite(good.scalars[tags.TRAJECTORY_TREE])


def test_parameters_that_do_not_move_have_no_growth() -> None:
    last = show_path(TrajectoryGeometry(scale=1.0, index=False), torch.ones(70, SKETCH))[-1]
    assert last.scalars[tags.TRAJECTORY_TREE] == 0
    assert last.scalars[tags.TRAJECTORY_MAGNITUDE] == 1
    assert last.refusals == dict.fromkeys(GROWTH, "the parameters have come back to where they started")


def test_a_warm_up_can_be_left_out() -> None:
    path = walk(120)
    late = show_path(TrajectoryGeometry(scale=1.0, index=False, first_step=50), path)
    assert all(not reading.scalars for reading in late[:50])
    expected = float((path[-1] - path[50]).norm()) / SKETCH**0.5
    assert late[-1].scalars[tags.TRAJECTORY_DISTANCE] == pytest.approx(expected)


# The bound index -----------------------------------------------------------------------------------------------------


class Descent:
    """SGD on a constant slope with isotropic stable noise of known scale, seen through 64 random directions."""

    def __init__(self, alpha: float = 2.0, seed: int = 0, scale: float = 0.2, examples: int = N, **sgd: Any) -> None:
        draw = np.random.default_rng(seed)
        self.alpha, self.scale, self.draw = alpha, scale, draw
        self.examples = examples
        self.directions = torch.from_numpy(draw.normal(size=(D, SKETCH)))
        self.weight = torch.nn.Parameter(torch.zeros(D, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.05, **sgd)
        self.slope = torch.full((D,), 0.03, dtype=torch.float64)

    def noise(self) -> Tensor:
        normal = torch.from_numpy(self.draw.normal(size=D)) * 2**0.5
        if self.alpha == 2:
            return self.scale * normal
        # Normal vectors whose squared scale is positive stable of half the index (Kanter 1975).
        half, angle, wait = self.alpha / 2, self.draw.uniform(0, math.pi), self.draw.exponential()
        bent = math.sin(half * angle) / math.sin(angle) ** (1 / half)
        return self.scale * normal * (bent * (math.sin((1 - half) * angle) / wait) ** ((1 - half) / half)) ** 0.5

    def gradients(self, count: int = 16) -> GradientSample:
        rows = self.slope + 0.1 * torch.from_numpy(self.draw.normal(size=(count, D)))
        return GradientSample(batch_size=count, gram=rows @ rows.T)

    def shown(self, instrument: TrajectoryGeometry, steps: int, every: int = 1, batch: int = 16) -> Reading:
        """The last reading of the index."""
        last = Reading()
        instrument.measure(Observation(0, model=view(self.optimizer, self.examples)))
        for step in range(steps):
            before = self.weight.detach() @ self.directions
            self.weight.grad = self.slope + self.noise()
            self.optimizer.step()
            if step % every == 0:
                if step % 10 == 0:
                    instrument.measure(Observation(step, gradients=self.gradients(batch)))
                made = moved(self.weight.detach() @ self.directions, before)
                reading = instrument.measure(Observation(step, trajectory=made))
                last = reading if INDEX[0] in reading.scalars else last
                self.last_step = step if reading is last else self.last_step
        return last

    def truth(self, steps: int, rate: float = 0.05) -> float:
        sigma = rate ** (1 - 1 / self.alpha) * self.scale
        return float(bound_index(self.alpha, sigma, steps, rate, float(self.slope @ self.slope), N, D))

    last_step = 0


def memory_of(sgd: dict[str, Any]) -> int:
    return SgdSettings(0.05, sgd.get("momentum", 0.0)).memory


@pytest.mark.parametrize(
    ("sgd", "rate"),
    [
        ({}, 0.05),
        ({"momentum": 0.8}, 0.25),
        ({"momentum": 0.5, "nesterov": True}, 0.1),
        ({"momentum": 0.5, "dampening": 0.5}, 0.05),
    ],
    ids=str,
)
def test_the_index_of_a_known_descent_is_found_with_any_momentum(sgd: dict[str, Any], rate: float) -> None:
    instrument, descent = TrajectoryGeometry(scale=1.0), Descent(**sgd)
    steps = 130 * memory_of(sgd)
    found = descent.shown(instrument, steps)
    truth = descent.truth(descent.last_step + 1, rate)
    value, low, high = (found.scalars[tag] for tag in INDEX)
    assert value == pytest.approx(truth, rel=0.05)
    assert low <= value <= high
    assert not found.refusals


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_heavy_noise_is_read_as_heavy_where_it_is_certain_and_lies_within_the_ends(seed: int) -> None:
    descent = Descent(alpha=1.3, seed=seed)
    found = descent.shown(TrajectoryGeometry(scale=1.0), 900)
    value, low, high = (found.scalars[tag] for tag in INDEX)
    truth = descent.truth(descent.last_step + 1)
    assert low * 0.98 <= truth <= high * 1.02  # the sketch has an error of its own
    assert low <= value <= high


def test_the_radius_counts_where_the_noise_is_heavy() -> None:
    instrument, values = TrajectoryGeometry(scale=1.0), []
    Descent(alpha=1.1, seed=2).shown(instrument, 900)
    for radius in (1.0, 16.0):
        instrument._descent.radius, instrument._descent._new = radius, 900
        found = instrument._descent.index(900)
        assert isinstance(found, tuple)
        values.append(found[0])
    assert values[1] < 0.6 * values[0]


def why_not(instrument: TrajectoryGeometry, **options: Any) -> str:
    found = Descent(**options.pop("descent", {})).shown(instrument, **{"steps": 200, **options})
    assert all(math.isnan(found.scalars[tag]) for tag in INDEX)
    (why,) = {found.refusals[tag] for tag in INDEX}
    return why


class TestRefusals:
    def test_optimizers_other_than_sgd_by_name(self) -> None:
        for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.LBFGS):
            instrument = TrajectoryGeometry(scale=1.0)
            instrument.measure(Observation(0, model=view(kind([torch.nn.Parameter(torch.zeros(D))]))))
            last = show_path(instrument, walk(64))[-1]
            assert last.refusals[INDEX[0]] == (
                "it is defined for SGD, whose step is the learning rate times the gradient, not for " + kind.__name__
            )

    def test_several_learning_rates(self) -> None:
        parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]
        groups = [{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.2}]
        instrument = TrajectoryGeometry(scale=1.0)
        instrument.measure(Observation(0, model=view(torch.optim.SGD(groups, lr=0.1))))
        last = show_path(instrument, walk(64))[-1]
        assert last.refusals[INDEX[0]] == (
            "it takes one learning rate and momentum for all parameters, and SGD has 2 settings"
        )

    def test_no_view_of_the_model(self) -> None:
        last = show_path(TrajectoryGeometry(scale=1.0), walk(64))[-1]
        assert last.refusals[INDEX[0]].startswith("no optimizer was seen: it comes with Observation.model")

    def test_an_unknown_training_set(self) -> None:
        instrument = TrajectoryGeometry(scale=1.0)
        instrument.measure(Observation(0, model=view(examples=None)))
        assert show_path(instrument, walk(64))[-1].refusals[INDEX[0]] == "the size of the training set is not known"

    def test_too_few_steps(self) -> None:
        why = why_not(TrajectoryGeometry(scale=1.0), steps=100)
        assert why.endswith("sampled steps are too few to show their tail: 128 are needed")
        why = why_not(TrajectoryGeometry(scale=1.0), steps=300, descent={"momentum": 0.9})
        assert "sampled steps that lie 30 steps apart, as momentum asks for, are too few" in why

    def test_whole_batches(self) -> None:
        why = why_not(TrajectoryGeometry(scale=1.0), steps=66, batch=64, descent={"examples": 64})
        assert why == "a batch of the whole training set has no noise"

    def test_gradients_that_vanish_in_their_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def without_mean(descent: Descent, count: int) -> GradientSample:
            rows = torch.from_numpy(descent.draw.normal(size=(count, D)))
            rows = rows - rows.mean(0)
            return GradientSample(batch_size=count, gram=rows @ rows.T)

        monkeypatch.setattr(Descent, "gradients", without_mean)
        why = why_not(TrajectoryGeometry(scale=1.0))
        assert why == "the gradient of the whole cannot be told from zero in these batches"

    def test_steps_without_noise(self) -> None:
        assert why_not(TrajectoryGeometry(scale=1.0), descent={"scale": 0.0}) == "the steps show no noise"

    def test_every_number_that_is_nan_has_its_reason(self) -> None:
        instrument = TrajectoryGeometry()
        for reading in show_path(instrument, walk(130)):
            assert {tag for tag, value in reading.scalars.items() if math.isnan(value)} == set(reading.refusals)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (SgdSettings(0.1), [1]),
        (SgdSettings(0.1, 0.5), [1, 0.5, 0.25]),
        (SgdSettings(0.1, 0.5, dampening=0.5), [0.5, 0.25, 0.125]),
        (SgdSettings(0.1, 0.5, nesterov=True), [1.5, 0.25, 0.125]),
    ],
    ids=str,
)
def test_the_response_to_one_gradient_is_that_of_torch(settings: SgdSettings, weights: list[float]) -> None:
    found = settings.response
    assert found[: len(weights)].tolist() == pytest.approx(weights)
    assert settings.effective_rate == pytest.approx(settings.rate * float(found.sum()), rel=1e-8)
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], 0.1, settings.momentum, settings.dampening, nesterov=settings.nesterov)
    path = [0.0]
    for gradient in (0.0, 1.0, 0.0, 0.0):  # the first one fills torch's buffer undampened
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        sgd.step()
        path.append(weight.item())
    steps = (-np.diff(path)[1:] / 0.1).tolist()
    padded = [*found.tolist(), 0.0, 0.0, 0.0][:3]
    assert steps == pytest.approx(padded, abs=1e-8)


def test_a_resumed_instrument_goes_on_where_it_was() -> None:
    whole, half = TrajectoryGeometry(), TrajectoryGeometry()
    first, second = Descent(), Descent()
    expected = first.shown(whole, 400)
    second.shown(half, 250)
    resumed = TrajectoryGeometry()
    resumed.load_state_dict(half.state_dict())
    last = Reading()
    for step in range(250, 400):
        before = second.weight.detach() @ second.directions
        second.weight.grad = second.slope + second.noise()
        second.optimizer.step()
        if step % 10 == 0:
            resumed.measure(Observation(step, gradients=second.gradients()))
        made = moved(second.weight.detach() @ second.directions, before)
        reading = resumed.measure(Observation(step, trajectory=made))
        last = reading if INDEX[0] in reading.scalars else last
    assert last.scalars == pytest.approx(expected.scalars, nan_ok=True)
    assert math.isfinite(last.scalars[INDEX[0]])


def test_another_model_starts_afresh() -> None:
    instrument = TrajectoryGeometry()
    Descent().shown(instrument, 200)
    instrument.reset()
    assert len(show_path(instrument, walk(10))[-1].refusals) == len((*SHAPE, *INDEX))
    assert instrument._descent._count == 0


def test_without_the_index_no_gradients_are_asked_for() -> None:
    full, light = TrajectoryGeometry().needs, TrajectoryGeometry(scale=1.0, index=False).needs
    assert (full.gram, full.trajectory, full.probe, full.passes > 0) == (True, True, True, True)
    assert (light.gradients, light.trajectory, light.probe, light.passes) == (False, True, True, 0)
    assert not {tag for tag in merged(show_path(TrajectoryGeometry(index=False), walk(70))) if "bound" in tag}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"scale of the magnitude is positive and finite, got scale=0"):
        TrajectoryGeometry(scale=0.0)
    with pytest.raises(ValueError, match=r"radius is a positive length, got radius=-1"):
        TrajectoryGeometry(radius=-1.0)
    with pytest.raises(ValueError, match=r"steps are counted from 0, got first_step=-5"):
        TrajectoryGeometry(first_step=-5)


def test_stable_noise_of_the_descent_is_what_it_is_said_to_be() -> None:
    """The yardstick itself: its characteristic function is exp(-(scale |u|)^alpha)."""
    for alpha in (1.1, 1.3, 2.0):
        descent = Descent(alpha=alpha)
        noise = torch.stack([descent.noise()[:2] for _ in range(20_000)]) / descent.scale
        for u in ((0.5, 0.0), (0.6, -0.8), (1.2, 0.9)):
            found = float((noise @ torch.tensor(u, dtype=torch.float64)).cos().mean())
            assert found == pytest.approx(math.exp(-(math.hypot(*u) ** alpha)), abs=0.02)
