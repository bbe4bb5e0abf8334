"""How far the parameters have come, and how much ground their path covers."""

from __future__ import annotations

import math
from typing import Any, final

from torch import Tensor

from lightning_cx.functional import distance_from_start, spanning_tree_length, trajectories
from lightning_cx.instruments.base import Instrument, Needs, Observation, ParameterStep, Reading
from lightning_cx.instruments.gradient_noise import whole_batch
from lightning_cx.instruments.noisy_descent import NoisyDescent
from lightning_cx.instruments.path_memory import POINTS, PathMemory
from lightning_cx.tensorboard import tags

GROWTH: tuple[str, ...] = (
    tags.TRAJECTORY_GROWTH,
    tags.TRAJECTORY_GROWTH_LOW,
    tags.TRAJECTORY_GROWTH_HIGH,
)
INDEX: tuple[str, ...] = (
    tags.TRAJECTORY_BOUND_INDEX,
    tags.TRAJECTORY_BOUND_INDEX_LOW,
    tags.TRAJECTORY_BOUND_INDEX_HIGH,
)
SETTINGS_ONLY = 0.01
"""Passes of its own: the model is asked for its optimizer and the number of examples, and never run."""

SHAPE: tuple[str, ...] = (tags.TRAJECTORY_TREE, tags.TRAJECTORY_MAGNITUDE, *GROWTH)


@final
class TrajectoryGeometry(Instrument):
    """Distance from the start, length and magnitude of the path of the parameters, beside the training loss.

    All distances are read off 64 fixed projections of all parameters, and right up to a factor. Its standard deviation
    over directions is 9% for a change spread over many weights, and 28% for one of rank one in a single matrix. The
    tree and the magnitude are of 64 points, evenly spread over the steps from the start to now, so they begin with the
    64th sampled step. Fix `every_n_steps` where runs are to be compared, and compare them at the same training loss:
    `lightning_cx.compare_runs`.

    The bound index is the formula of a generalisation theorem for SGD with heavy-tailed noise. Its size means nothing,
    it is not a bound; `functional.bound_index` says what it is made of. It needs SGD with one learning rate.

    Args:
        scale: Points per unit of distance in the positive magnitude; None takes the root of the number of training
            examples.
        first_step: Step number from which the path counts; later than 0 to leave out a warm-up, as the papers do.
        index: Whether to read the bound index, which samples gradients of examples.
        radius: R of the bound index, a length that the theorem leaves to the reader; it only counts where the noise is
            heavy-tailed.

    Raises:
        ValueError: If `scale` or `radius` is not positive and finite, or `first_step` negative.

    Example:
        >>> TrajectoryGeometry().needs.gram, TrajectoryGeometry(index=False).needs.gram
        (True, False)
    """

    def __init__(
        self, scale: float | None = None, first_step: int = 0, index: bool = True, radius: float = 1.0
    ) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"the scale of the magnitude is positive and finite, got scale={scale}.")
        if not 0 < radius < math.inf:
            raise ValueError(f"the radius is a positive length, got radius={radius}.")
        if first_step < 0:
            raise ValueError(f"steps are counted from 0, got first_step={first_step}.")
        self.scale, self.first_step, self.index, self.radius = scale, first_step, index, radius
        self._path = PathMemory()
        self._descent = NoisyDescent(radius)
        self.reset()

    def reset(self) -> None:
        self._path.reset()
        self._descent.reset()
        self._examples: int | None = None

    @property
    def needs(self) -> Needs:
        passes = SETTINGS_ONLY if self.index or self.scale is None else 0.0
        return Needs(gram=self.index, probe=True, trajectory=True, passes=passes)

    def measure(self, observation: Observation) -> Reading:
        if observation.model is not None:
            self._examples = observation.model.training_examples
            count = sum(parameter.numel() for parameter in observation.model.parameters().values())
            self._descent.see_model(observation.model.optimizer, count, self._examples)
        if observation.probe is not None:
            return _loss(observation.probe.loss)
        if observation.step < self.first_step:
            return Reading()
        sample = observation.gradients
        if sample is not None and sample.gram is not None and self.index:
            noise, norms = whole_batch(sample)
            self._descent.see_gradient(noise, len(norms))
        return Reading() if observation.trajectory is None else self._follow(observation.step, observation.trajectory)

    def _follow(self, step: int, made: ParameterStep) -> Reading:
        sketch, increment = made.sketch.detach().cpu().double(), made.increment.detach().cpu().double()
        every = (tags.TRAJECTORY_DISTANCE, *SHAPE, *(INDEX if self.index else ()))
        if not bool(sketch.isfinite().all() & increment.isfinite().all()):
            return Reading.refused(every, "the parameters are not finite")
        if self._path.start is None:
            self._path.add(step - 1, sketch - increment)
        self._descent.see_step(step, increment)
        assert self._path.start is not None
        since, start = self._path.start
        scalars = {tags.TRAJECTORY_DISTANCE: float((sketch - start).norm()) / math.sqrt(len(sketch))}
        if not self._path.add(step, sketch):
            return Reading(scalars)
        if len(self._path) < POINTS:
            waiting = f"{len(self._path)} points of the path so far: {POINTS} are needed, one for each sampled step"
            return Reading(scalars).joined(Reading.refused(every[1:], waiting))
        reading = Reading(scalars).joined(self._shape())
        return reading.joined(_read_index(self._descent.index(step - since))) if self.index else reading

    def _shape(self) -> Reading:
        steps, sketches = self._path.points()
        points = sketches / math.sqrt(sketches.shape[1])
        growth = distance_from_start(points, steps)
        exponents = (growth.exponent, growth.low, growth.high)
        scalars = {
            tags.TRAJECTORY_TREE: float(spanning_tree_length(points)),
            **dict(zip(GROWTH, map(float, exponents), strict=True)),
        }
        refusals = {}
        if not math.isfinite(scalars[tags.TRAJECTORY_GROWTH]):
            refusals |= dict.fromkeys(GROWTH, "the parameters have come back to where they started")
        scalars[tags.TRAJECTORY_MAGNITUDE], why = self._magnitude(points)
        return Reading(scalars, refusals=refusals | ({tags.TRAJECTORY_MAGNITUDE: why} if why else {}))

    def _magnitude(self, points: Tensor) -> tuple[float, str]:
        scale = self.scale
        if scale is None:
            if not self._examples:
                return math.nan, "the number of training examples is not known: give TrajectoryGeometry a scale"
            scale = math.sqrt(self._examples)
        value = float(trajectories.positive_magnitude(points, scale))
        return value, "" if math.isfinite(value) else "points of the path lie too close together to be told apart"

    def state_dict(self) -> dict[str, Any]:
        return {"path": self._path.state_dict(), "descent": self._descent.state_dict(), "examples": self._examples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._path.load_state_dict(state["path"])
        self._descent.load_state_dict(state["descent"])
        self._examples = state["examples"]


def _loss(loss: float) -> Reading:
    if math.isfinite(loss):
        return Reading({tags.TRAJECTORY_LOSS: loss})
    return Reading.refused((tags.TRAJECTORY_LOSS,), "the loss of the probe's examples is not known or not finite")


def _read_index(found: tuple[float, float, float] | str | None) -> Reading:
    if found is None:
        return Reading()
    return Reading.refused(INDEX, found) if isinstance(found, str) else Reading(dict(zip(INDEX, found, strict=True)))
