"""Is the gradient noise heavy-tailed, and does it stay so in a batch?"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import alpha_ecf, hill, tails, xi_dedh
from lightning_cx.gradients import Block, GradientSample
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import (
    UNKNOWN_BATCH,
    BatchView,
    Instrument,
    Method,
    Needs,
    ParameterStep,
    Picture,
    QuantilePlot,
    Reading,
    SurvivalPlot,
)
from lightning_cx.instruments.gradient_noise import NOT_FINITE, sum_by_layer
from lightning_cx.metrics import MIN_BATCH
from lightning_cx.metrics import TailIndex as TailIndexMetric

PROJECTIONS = 16
MAX_WINDOW = 1 << 16  # examples: sums of 1024, which stand for a larger batch, since normal ones stay normal
LAYER_WINDOW = 1 << 12  # examples of each layer, of whose sums nothing is said
READINGS_PER_WINDOW = 8  # a window that is nearly the same gives nearly the same numbers

SINGLE = quantities.interval(quantities.TAIL_INDEX)
BATCH = quantities.interval(quantities.TAIL_BATCH_INDEX)
NORMS = (*quantities.interval(quantities.TAIL_NORM_XI), quantities.TAIL_NORM_HILL)
TAGS = (*SINGLE, *BATCH, quantities.TAIL_VERDICT, *NORMS)
COORDINATES = (quantities.TAIL_COORDINATE_INDEX, quantities.TAIL_COORDINATE_INDEX_CONTROL)
TRAJECTORY = (*quantities.interval(quantities.TAIL_TRAJECTORY_XI), quantities.TAIL_TRAJECTORY_HILL)


@final
class TailIndex(Instrument):
    """How heavy the tail of the gradient noise is, for single examples and for a batch, with interval and verdict.

    Each sampled batch gives the projections of its per-example gradients onto 16 fixed directions, off the training's
    own backward. They are pooled over the newest sampled batches: from 512 examples on there are numbers, from 64
    batches on also those of sums of a whole batch (of 1024 where a batch is larger). A short run under a budget may not
    get there: give `every_n_steps`. `tail/verdict` is -1 for indeterminate, 0 for gaussian, 1 for heavy but averaging
    away in a batch, 2 for stable; a card on the text tab explains it.

    Intervals count examples, not different ones: where the window spans several epochs of a small data set, they are
    too narrow.

    Beside these, xi and Hill's index of the norms of per-example gradients, and of the steps that the parameters take
    (one optimizer step each, seen in 64 fixed projections of all parameters; from 128 sampled steps on). Momentum
    smears a jump over 1 / (1 - momentum) steps; sampled closer than three times that, it looks like a scale that drifts
    and is taken out with it, so heavy tails are missed.

    Args:
        batch_size: How many gradients one step of the optimizer sums; None takes the size of the sampled batches. Give
            it where batches are accumulated; that processes share one is known.
        window: Number of examples that are pooled; None takes 64 batches, and at least 512 examples.
        per_layer: Log the index of each layer's own gradients as well, under `tail/index_layers/<layer>`.
        coordinates: About how many coordinates of the gradient to pool, as much of the literature does, beside normal
            noise with the same scales; 0 leaves that out.
        trajectory: Whether to follow the steps of the parameters.
        seed: Seed of groups and nulls.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `batch_size` is not positive, `window` is below 512 or `coordinates` negative.

    Example:
        >>> TailIndex().needs.projections
        16
    """

    tags = (*TAGS, *COORDINATES, *TRAJECTORY)

    def __init__(
        self,
        batch_size: int | None = None,
        window: int | None = None,
        per_layer: bool = False,
        coordinates: int = 0,
        trajectory: bool = True,
        seed: int = 0,
        *,
        name: str = "",
    ) -> None:
        super().__init__(name)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"a batch holds at least one example, got batch_size={batch_size}.")
        if window is not None and window < tails.EXPLORATORY:
            raise ValueError(f"a tail is read from {tails.EXPLORATORY} examples at least, got window={window}.")
        if coordinates < 0:
            raise ValueError(f"the number of coordinates is not negative, got coordinates={coordinates}.")
        self.batch_size, self.window, self.per_layer = batch_size, window, per_layer
        self.coordinates, self.trajectory, self.seed = coordinates, trajectory, seed
        self._steps = TrajectoryTail()
        self.reset()

    def reset(self) -> None:
        self._steps.reset()
        self._pools: dict[str, TailIndexMetric] = {}
        self._held = self._new = 0
        self._full = False

    @property
    def needs(self) -> Needs:
        return Needs(gram=True, projections=PROJECTIONS, per_layer=self.per_layer, coordinates=self.coordinates)

    @property
    def shown(self) -> frozenset[Method]:
        return super().shown if self.trajectory else super().shown - {"on_step"}

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView = UNKNOWN_BATCH) -> Reading:
        if gradients.projections is None:
            return Reading()
        why = _unusable(gradients)
        if why:
            return Reading.refused((*TAGS, *(COORDINATES if self.coordinates else ())), why)
        self._pool(gradients)
        if self._held < tails.EXPLORATORY:
            waiting = f"**waiting**: {self._held} of {tails.EXPLORATORY} examples pooled so far."
            text = f"{waiting} A tail cannot be read from fewer."
            return Reading(dict.fromkeys(TAGS, torch.nan), texts={quantities.TAIL_VERDICT: text})
        # The first full window is the first to show sums of a whole batch.
        was_full, self._full = self._full, self._held >= self._window_for(gradients)
        if self._new * READINGS_PER_WINDOW < self._held and was_full is self._full:
            return Reading()
        self._new = 0
        return self._read(step, gradients)

    def _pool(self, sample: GradientSample) -> None:
        """Add the batch to the pools, as much as the window holds."""
        window = self._window_for(sample)
        seen: list[tuple[str, Tensor | None, Tensor | None]] = [
            ("", block.projections, block.centred_norms) for block in _blocks(sample)
        ]
        seen.extend((layer, own, None) for layer, own in self._layers(sample).items())
        for name, projections, norms in seen:
            assert projections is not None
            if name not in self._pools:
                self._pools[name] = self._empty_pool()
            self._pools[name].window = min(window, LAYER_WINDOW) if name else window
            some = projections[:, :PROJECTIONS].cpu()  # another instrument may have asked for more
            self._pools[name].update(some, None if norms is None else norms.cpu())
        self._pools[""].batch_size = self.batch_size or (_examples(sample) if sample.blocks else None)
        self._held = self._pools[""].held
        self._new += _examples(sample)

    def _window_for(self, sample: GradientSample) -> int:
        size = self.batch_size or _examples(sample)
        return self.window or min(max(tails.EXPLORATORY, tails.MIN_SUMS * size), MAX_WINDOW)

    def _layers(self, sample: GradientSample) -> dict[str, Tensor]:
        return sum_by_layer(sample, attrgetter("projections")) if self.per_layer else {}

    def _read(self, step: int, sample: GradientSample) -> Reading:
        pool = self._pools[""]
        pooled = pool.pooled()
        report = pool.assess(pooled)
        values = (report.alpha, report.alpha_low, report.alpha_high)
        sums = (report.sum_alpha, report.sum_alpha_low, report.sum_alpha_high)
        of_batch = report.sum_size == min(self.batch_size or pool.examples_per_step, MAX_WINDOW // tails.MIN_SUMS)
        scalars = dict(zip(SINGLE, map(float, values), strict=True))
        scalars |= {tag: float(value) if of_batch else torch.nan for tag, value in zip(BATCH, sums, strict=True)}
        scalars[quantities.TAIL_VERDICT] = float(CODES[report.verdict])
        xi = (report.xi, report.xi_low, report.xi_high, report.hill)
        scalars |= dict(zip(NORMS, map(float, xi), strict=True))
        refusals: dict[str, str] = {}
        if bool(report.alpha.isnan()):
            scalars[quantities.TAIL_VERDICT] = torch.nan
            refusals = dict.fromkeys(TAGS, report.reason)
        for layer in self._layers(sample):  # those of today: a layer that was frozen says nothing new
            own = alpha_ecf(self._pools[layer].pooled()[0], projections=None)
            scalars[quantities.of_layer(quantities.TAIL_INDEX, layer)] = float(own.index)
        if sample.coordinates is not None and self.coordinates:
            coordinates = sample.coordinates.cpu()
            tail = tails.coordinate_tail(coordinates - coordinates.mean(0), self.seed)
            scalars |= dict(zip(COORDINATES, (float(tail.index), float(tail.control)), strict=True))
            refusals |= dict.fromkeys(COORDINATES, tail.reason) if tail.reason else {}
        return Reading(
            scalars,
            pictures=self._pictures(step, report, *pooled),
            refusals=refusals,
            texts={quantities.TAIL_VERDICT: card(report)},
        )

    def _pictures(self, step: int, report: tails.TailReport, projections: Tensor, norms: Tensor) -> dict[str, Picture]:
        one = projections[:, 0]
        sums = tails.grouped_sums(one, report.sum_size, self.seed)[0]
        return {
            quantities.TAIL_QUANTILES: QuantilePlot(
                step,
                {"single examples": one, f"sums of {report.sum_size}": sums},
                "Gradient noise against a normal distribution",
                "One projection of the gradients. Dots on the line: normal. Ends that bend away from it, down on the "
                "left and up on the right: heavy tails. Where single examples bend and their sums do not, a batch "
                "averages the heaviness away.",
            ),
            quantities.TAIL_SURVIVAL: SurvivalPlot(
                step,
                norms,
                float(report.hill) if float(report.xi_low) > 0 else torch.nan,
                round(2 * len(norms) ** 0.5),
                "How often single gradients are larger than that",
                "Norms of per-example gradients less their mean, both axes logarithmic. A power law is a straight "
                "line, flatter where the tail is heavier; a light tail bends down. A line is fitted only where xi is "
                "certainly above 0.",
            ),
        }

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        if not self.trajectory:
            return Reading()
        if not self._steps.add(change.increment):
            return Reading() if self._steps.ready else Reading(dict.fromkeys(TRAJECTORY, torch.nan))
        xi, power = self._steps.fits()
        values = (xi.index, xi.low, xi.high, power.index)
        scalars = dict(zip(TRAJECTORY, map(float, values), strict=True))
        return Reading(scalars, refusals=dict.fromkeys(TRAJECTORY, xi.reason) if xi.reason else {})

    def _empty_pool(self) -> TailIndexMetric:
        # What processes see is put together before an instrument is shown it.
        pool = TailIndexMetric(self.batch_size, seed=self.seed, sync_on_compute=False)
        pool.persistent(True)
        return pool

    def state_dict(self) -> dict[str, Any]:
        pools = {name: pool.state_dict() for name, pool in self._pools.items()}
        return {"pools": pools, "new": self._new, "full": self._full, "steps": self._steps.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        pools = state["pools"] if self.per_layer else {k: v for k, v in state["pools"].items() if not k}
        for name, held in pools.items():
            self._pools[name] = self._empty_pool()
            self._pools[name].load_state_dict(held)
        self._held = self._pools[""].held if self._pools else 0
        self._new, self._full = state["new"], state["full"]
        self._steps.load_state_dict(state["steps"])


def _unusable(sample: GradientSample) -> str:
    parts = [part for block in _blocks(sample) for part in (block.projections, block.centred_norms)]
    if not all(bool(part.isfinite().all()) for part in parts if part is not None):
        return NOT_FINITE
    smallest = min(block.batch_size for block in _blocks(sample))
    if smallest < MIN_BATCH:
        return f"a batch of {smallest} is too small to subtract its mean: {MIN_BATCH} are needed"
    return ""


def _blocks(sample: GradientSample) -> Sequence[Block]:
    """Return the per-rank shares of a batch, each less its own mean; one share without other ranks."""
    if sample.blocks:
        return sample.blocks
    centred = None if sample.gram is None else tails.centred_norms(sample.gram)
    return (Block(sample.batch_size, centred_norms=centred, projections=sample.projections),)


def _examples(sample: GradientSample) -> int:
    """Return the number of examples of the whole batch."""
    return sum(block.batch_size for block in sample.blocks) or sample.batch_size


CODES = {"indeterminate": -1, "gaussian": 0, "heavy-aggregates-to-gaussian": 1, "stable": 2}
"""Numbers under which the verdicts are logged: the higher, the heavier the noise that reaches the parameters."""

MEANING = {
    "indeterminate": "No verdict holds; the reason says what is missing. A larger pool, `TailIndex(window=...)`, has "
    "more sums. Look at their interval below: well under 2, it means that what moves the parameters is heavy-tailed.",
    "gaussian": "Nothing in the bulk of the noise speaks for a heavy tail. Theories that take gradient noise for "
    "Gaussian may be used.",
    "heavy-aggregates-to-gaussian": "Single examples differ wildly in their gradients, but a batch averages that away: "
    "what moves the parameters is not heavy-tailed. Look at the examples with the largest gradients (outliers, wrong "
    "labels) before you look at the optimizer.",
    "stable": "Sums are as heavy-tailed as single examples, so larger batches will help little. Clip gradients, or "
    "take an optimizer that normalises them; look for examples with enormous losses.",
}


def card(report: tails.TailReport) -> str:
    """Explain a report in markdown.

    Example:
        >>> import torch
        >>> from lightning_cx.functional import tail_report
        >>> print(card(tail_report(torch.randn(600, generator=torch.Generator().manual_seed(0)))).splitlines()[0])
        **gaussian** (0): a normal law is not ruled out (p = 0.47)
    """
    lines = [f"**{report.verdict}** ({CODES[report.verdict]}): {report.reason}", "", MEANING[report.verdict]]
    if not bool(report.alpha.isnan()):
        lines += ["", *(f"    {line}" for line in str(report).splitlines()[2:])]
    others = ", ".join(f"{code} {verdict}" for verdict, code in CODES.items())
    return "\n".join([*lines, "", f"Verdicts: {others}. A verdict is what was not ruled out, never a proof."])


STEPS_KEPT = 1024
"""Tails are slow to show: 128 steps are the least, and the newest thousand narrow the interval threefold."""

STEPS_OF_A_SCALE = 33
"""Neighbouring steps that share a scale: a schedule may drop the step size at once, and each sketch of 64 numbers
tells its own within a tenth."""

EVERY = 16
"""New steps between two readings; fewer change nothing."""


class TrajectoryTail:
    """Remembers sketches of the newest parameter steps."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._increments: deque[Tensor] = deque(maxlen=STEPS_KEPT)
        self._new = 0

    def add(self, increment: Tensor) -> bool:
        """Add one step and return whether a reading is due; a step that changed nothing does not count."""
        increment = increment.detach().cpu()
        if bool((increment != 0).any()) and bool(increment.isfinite().all()):
            self._increments.append(increment)
            self._new += 1
        if self._new < EVERY or not self.ready:
            return False
        self._new = 0
        return True

    @property
    def ready(self) -> bool:
        """Return whether there are enough steps to show a tail."""
        return len(self._increments) >= tails.MIN_SAMPLES

    def fits(self) -> tuple[tails.TailFit, tails.TailFit]:
        """Return xi and Hill's index of the steps held."""
        return tail_of_steps(torch.stack(list(self._increments)))

    def state_dict(self) -> dict[str, Any]:
        return {"increments": list(self._increments), "new": self._new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._increments.extend(state["increments"])
        self._new = state["new"]


def tail_of_steps(increments: Tensor) -> tuple[tails.TailFit, tails.TailFit]:
    """Return xi and Hill's index of the norms of steps [n, k], less their mean and the drift of their scale."""
    level = tails.without_drift(increments, torch.arange(len(increments)), STEPS_OF_A_SCALE)
    norms = (level - level.mean(0)).norm(dim=1)
    return xi_dedh(norms), hill(norms)
