"""How far the parameters have come, and how much ground their path covers."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import distance_from_start, spanning_tree_length, trajectories
from lightning_cx.instruments.base import Instrument, ParameterStep
from lightning_cx.instruments.reading import Reading
from lightning_cx.probe import ProbeReading
from lightning_cx.tensorboard import tags

GROWTH: tuple[str, ...] = (
    tags.TRAJECTORY_GROWTH,
    tags.TRAJECTORY_GROWTH_LOW,
    tags.TRAJECTORY_GROWTH_HIGH,
)
SHAPE: tuple[str, ...] = (tags.TRAJECTORY_TREE, tags.TRAJECTORY_MAGNITUDE, *GROWTH)


@final
class TrajectoryGeometry(Instrument):
    """Distance from the start, length and magnitude of the path of the parameters, beside the training loss.

    All distances are read off 64 fixed projections of all parameters, and right up to a factor. Its standard deviation
    over directions is 9% for a change spread over many weights, and 28% for one of rank one in a single matrix. The
    tree and the magnitude are of 64 points, evenly spread over the steps from the start to now, so they begin with the
    64th sampled step. Fix `every_n_steps` where runs are to be compared, and compare them at the same training loss:
    `lightning_cx.compare_runs`.

    Args:
        scale: Points per unit of distance in the positive magnitude; None takes the root of the number of training
            examples.
        first_step: Step number from which the path counts; later than 0 to leave out a warm-up, as the papers do.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `scale` is not positive and finite, or `first_step` negative.

    Example:
        >>> sorted(TrajectoryGeometry().shown)
        ['on_probe', 'on_step']
    """

    tags = (tags.TRAJECTORY_LOSS, tags.TRAJECTORY_DISTANCE, *SHAPE)

    def __init__(self, scale: float | None = None, first_step: int = 0, *, name: str = "") -> None:
        super().__init__(name)
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"the scale of the magnitude is positive and finite, got scale={scale}.")
        if first_step < 0:
            raise ValueError(f"steps are counted from 0, got first_step={first_step}.")
        self.scale, self.first_step = scale, first_step
        self._path = PathMemory()
        self.reset()

    def reset(self) -> None:
        self._path.reset()
        self._examples: int | None = None

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        del step
        if math.isfinite(probe.loss):
            return Reading({tags.TRAJECTORY_LOSS: probe.loss})
        return Reading.refused((tags.TRAJECTORY_LOSS,), "the loss of the probe's examples is not known or not finite")

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        if step < self.first_step:
            return Reading()
        self._examples = change.training_examples
        sketch, increment = change.sketch.detach().cpu().double(), change.increment.detach().cpu().double()
        if not bool(sketch.isfinite().all() & increment.isfinite().all()):
            return Reading.refused((tags.TRAJECTORY_DISTANCE, *SHAPE), "the parameters are not finite")
        if self._path.start is None:
            self._path.add(step - 1, sketch - increment)
        assert self._path.start is not None
        _, start = self._path.start
        scalars = {tags.TRAJECTORY_DISTANCE: float((sketch - start).norm()) / math.sqrt(len(sketch))}
        if not self._path.add(step, sketch):
            return Reading(scalars)
        if len(self._path) < POINTS:
            waiting = f"{len(self._path)} points of the path so far: {POINTS} are needed, one for each sampled step"
            return Reading(scalars).joined(Reading.refused(SHAPE, waiting))
        return Reading(scalars).joined(self._shape())

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
        return {"path": self._path.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._path.load_state_dict(state["path"])


POINTS = 64
"""Points that a path is read from: a tree of them takes 2 ms. Lengths are comparable at one number of points only."""


class PathMemory:
    """Keeps sketches of 64 to 127 steps, about equally far apart, however long the run.

    Steps fall into cells of equal width, and the first sample of a cell stands for it. At 128 cells neighbours are
    merged. Samples that come at irregular steps are evened out so, where there are enough of them.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the path."""
        self._cells: dict[int, tuple[int, Tensor]] = {}
        self._width = 1

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def start(self) -> tuple[int, Tensor] | None:
        """Step and sketch of the first point."""
        return next(iter(self._cells.values()), None)

    def add(self, step: int, sketch: Tensor) -> bool:
        """Take in a point and say whether it is kept."""
        first = step if self.start is None else self.start[0]
        cell = (step - first) // self._width
        if cell in self._cells:
            return False
        self._cells[cell] = (step, sketch)
        while len(self._cells) >= 2 * POINTS:
            self._width *= 2
            merged: dict[int, tuple[int, Tensor]] = {}
            for of_cell in self._cells.values():
                merged.setdefault((of_cell[0] - first) // self._width, of_cell)
            self._cells = merged
        return any(kept == step for kept, _ in self._cells.values())

    def points(self) -> tuple[Tensor, Tensor]:
        """Steps [64] and sketches [64, k], the first and the last among them; fewer where the path is shorter."""
        kept = list(self._cells.values())
        chosen = torch.linspace(0, len(kept) - 1, min(POINTS, len(kept)), dtype=torch.float64).round().long().tolist()
        return torch.tensor([kept[i][0] for i in chosen]), torch.stack([kept[i][1] for i in chosen])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"cells": dict(self._cells), "width": self._width}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._cells, self._width = dict(state["cells"]), state["width"]
