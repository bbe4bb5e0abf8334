"""Where does training stay for a while, and when does it leave for somewhere else?"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import one_point_convexity, trajectories
from lightning_cx.gradients import DIRECTIONS, GradientSample
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import (
    UNKNOWN_BATCH,
    BatchView,
    DwellTimeline,
    Instrument,
    Method,
    Needs,
    ParameterStep,
    Reading,
)

PAIRS = 512
"""Newest gradients kept beside the points at which they were taken: half a megabyte."""

READINGS_PER_PATH = 16
"""A path that is longer by less than a sixteenth shows nearly the same dwells."""

DWELLS = (quantities.DWELL_COUNT, quantities.DWELL_ESCAPES, quantities.DWELL_LENGTH, quantities.DWELL_DISTANCE)
CONVEXITY = (quantities.ONE_POINT_CONVEXITY, quantities.ONE_POINT_CONVEXITY_ERROR)


@final
class Dwelling(Instrument):
    """Times in which the parameters stay in one place, jumps by which they leave it, and whether the place pulls back.

    Each sampled optimizer step adds a sketch of all parameters to the path, which is kept as at most 2048 block means.
    From 16 blocks on dwells and escapes are told apart from wandering, drifting and slow relaxation; a dwell of fewer
    than 8 blocks is seen where the place is known from a longer one. The gradient of the sampled batch, on the same
    random directions, gives the one-point convexity of the present dwell, whatever the optimizer makes of it.

    Args:
        convexity: Whether to read gradients too; without them sampled steps cost less.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Example:
        >>> sorted(Dwelling().shown), sorted(Dwelling(convexity=False).shown)
        (['on_gradients', 'on_step'], ['on_step'])
    """

    tags = (*DWELLS, *CONVEXITY, quantities.DIFFUSION_EXPONENT)

    def __init__(self, convexity: bool = True, *, name: str = "") -> None:
        super().__init__(name)
        self.convexity = convexity
        self.reset()

    def reset(self) -> None:
        self._path = trajectories.PathBlocks()
        self._seen = self._new = 0
        self._pairs: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=PAIRS)
        self._point: tuple[int, Tensor] | None = None  # where the newest step began, until its gradient comes
        self._gradient: tuple[int, Tensor] | None = None
        self._why_no_pairs = "no gradient was seen beside a step of the parameters"

    @property
    def needs(self) -> Needs:
        return Needs(projections=DIRECTIONS)

    @property
    def shown(self) -> frozenset[Method]:
        return super().shown if self.convexity else super().shown - {"on_gradients"}

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView = UNKNOWN_BATCH) -> Reading:
        if self.convexity:
            self._take_gradient(step, gradients)
        return Reading()

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        return self._read() if self._take_step(step, change) else Reading()

    def report(self) -> trajectories.DwellReport:
        """Return the dwells so far, with their centres on the directions of the sketch."""
        return trajectories.dwell_blocks(self._path.blocks())

    def _take_step(self, step: int, made: ParameterStep) -> bool:
        """Add a step to the path and return whether a reading is due."""
        scale = math.sqrt(made.sketch.numel())  # then distances are those of the parameters, on average
        after, increment = made.sketch.detach().double().cpu() / scale, made.increment.detach().double().cpu() / scale
        if not bool((after.isfinite() & increment.isfinite()).all()):
            return False
        self._path.add(step, after)
        self._point = (step, after - increment)
        self._pair()
        self._seen, self._new = self._seen + 1, self._new + 1
        if self._new * READINGS_PER_PATH < self._seen:
            return False
        self._new = 0
        return True

    def _take_gradient(self, step: int, sample: GradientSample) -> None:
        rows = [block.projections for block in sample.blocks] if sample.blocks else [sample.projections]
        known = [part.detach().double().cpu() for part in rows if part is not None]
        if not known:
            return
        gradient = torch.cat(known).mean(0)
        if len(gradient) != DIRECTIONS:
            self._why_no_pairs = f"another instrument has {len(gradient)} projections: {DIRECTIONS} are needed"
        elif bool(gradient.isfinite().all()):
            self._gradient = (step, gradient / math.sqrt(DIRECTIONS))
            self._pair()

    def _pair(self) -> None:
        """Pair a gradient with the point at which it was taken; either may arrive first."""
        if self._point is not None and self._gradient is not None and self._point[0] == self._gradient[0]:
            self._pairs.append((self._point[0], self._gradient[1], self._point[1]))
            self._point = self._gradient = None

    def _read(self) -> Reading:
        report = self.report()
        present = report.present
        scalars: dict[str, float] = dict.fromkeys(DWELLS, math.nan)
        refusals: dict[str, str] = {}
        if report.is_too_short:
            refusals = dict.fromkeys(DWELLS, report.reason)
        else:
            scalars[quantities.DWELL_COUNT] = float(len(report.episodes))
            scalars[quantities.DWELL_ESCAPES] = float(report.escapes)
            scalars[quantities.DWELL_LENGTH] = 0.0 if present is None else float(present.length)
            scalars[quantities.DWELL_DISTANCE] = math.nan if present is None else present.from_start
            if present is None:
                refusals[quantities.DWELL_DISTANCE] = report.reason or "the last dwell was left, and no other has begun"
        scalars[quantities.DIFFUSION_EXPONENT] = report.exponent.value
        if math.isnan(report.exponent.value):
            why = report.reason or "too few blocks since the last jump, or the parameters do not move"
            refusals[quantities.DIFFUSION_EXPONENT] = why
        texts = {quantities.DWELL_COUNT: f"**{report.exponent}**\n\n```\n{report}\n```"}
        if self.convexity:
            convexity = self._convexity(report)
            scalars |= dict(zip(CONVEXITY, (convexity.value, convexity.standard_error), strict=True))
            refusals |= dict.fromkeys(CONVEXITY, convexity.reason) if convexity.reason else {}
        return Reading(scalars, pictures={quantities.DWELLS: _timeline(report)}, refusals=refusals, texts=texts)

    def _convexity(self, report: trajectories.DwellReport) -> trajectories.PointConvexity:
        """Return the one-point convexity of the present dwell; elsewhere there is no centre to return to."""
        present = report.present
        if present is None:
            return trajectories.PointConvexity(math.nan, math.nan, 0, "there is no dwell at present")
        within = [(gradient, point) for step, gradient, point in self._pairs if step >= present.start]
        if not within:
            return trajectories.PointConvexity(math.nan, math.nan, 0, self._why_no_pairs)
        gradients, points = (torch.stack(parts) for parts in zip(*within, strict=True))
        return one_point_convexity(gradients, points)

    def state_dict(self) -> dict[str, Any]:
        return {
            "path": self._path.state_dict(),
            "seen": (self._seen, self._new),
            "pairs": list(self._pairs),
            "waiting": (self._point, self._gradient),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._path.load_state_dict(state["path"])
        self._seen, self._new = state["seen"]
        self._pairs.extend(state["pairs"])
        self._point, self._gradient = state["waiting"]


def _timeline(report: trajectories.DwellReport) -> DwellTimeline:
    return DwellTimeline(
        steps=report.steps.tolist(),
        distances=report.distances,
        dwells=[(e.start, e.end, e.from_start, e.escaped) for e in report.episodes],
        title="Where training stays, and when it leaves",
        reading="Distance of the parameters from where they were first seen. Orange bars: dwells, places in which they "
        "stay. Dashed lines: escapes from one to another. No bar: training drifts or wanders.",
    )
