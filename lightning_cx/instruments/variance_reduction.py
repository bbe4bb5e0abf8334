"""What a larger batch, or SVRG, would save of the gradient noise."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any, final

from torch import Tensor

from lightning_cx.functional import NoiseScale, batch_size_advice, pool_noise_scales, svrg_gain, variance_reduction
from lightning_cx.gradients import EXACT, GradientSample, UnsupportedGradientError
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import UNKNOWN_BATCH, BatchView, Instrument, Needs, ProbePasses, Reading
from lightning_cx.instruments.gradient_noise import POOLED_SAMPLES, whole_batch
from lightning_cx.probe import running_norms

PROJECTIONS = 64
"""Random directions. Half the width of the interval, in logarithms, for an MLP on digits after 3, 6 and 12 epochs: .38,
.47 and .67 with 16, .25, .33 and .71 with 64, .24, .33 and .71 with all entries of the gradients."""

PASSES = 4.0
"""256 examples whose batches meet two by two."""

BREAK_EVEN = 0.5
"""SVRG takes two gradients of each example: with twice the batch instead, half of the noise is left."""

SPEEDUP = quantities.interval(quantities.BATCH_SPEEDUP)
SVRG = (*quantities.interval(quantities.SVRG_RATIO), quantities.SVRG_BEST)
COMPARED = (*SVRG, quantities.SNAPSHOT_AGE)


@final
class VarianceReduction(Instrument):
    """Whether larger batches pay, and how much of the gradient noise SVRG would leave.

    The first is free: the noise scale of the last 16 sampled batches, as in `GradientNoise`, turned into how many times
    fewer steps twice the batch would need. The second compares gradients of the same probe examples at this measurement
    and at the one before, projected on 64 fixed directions, as if SVRG had taken its snapshot there; no weights are
    kept. The noise left grows with the age of the snapshot: set `every_n_steps` to the steps after which you would take
    a new one, usually an epoch.

    Args:
        every_n_steps: Compare gradients at every n-th step, whatever it costs; None follows the monitor's schedule.
        batch_size: Examples of one optimizer step; None takes the size of the sampled batches. Give it where batches
            are accumulated; that processes share one is known.
        examples: How many probe examples' gradients to compare.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `every_n_steps` or `batch_size` is not positive, or `examples` is below 8.

    Example:
        >>> sorted(VarianceReduction().shown)
        ['on_gradients', 'on_model']
    """

    tags = (*SPEEDUP, *COMPARED)

    def __init__(
        self, every_n_steps: int | None = None, batch_size: int | None = None, examples: int = 256, *, name: str = ""
    ) -> None:
        super().__init__(name)
        for what, given in (("every_n_steps", every_n_steps), ("batch_size", batch_size)):
            if given is not None and given < 1:
                raise ValueError(f"{what} is a positive number or None, got {what}={given}.")
        if examples < 8:
            raise ValueError(f"noise shows in 8 examples at least, got examples={examples}: pass 256.")
        self.every_n_steps, self.batch_size, self.examples = every_n_steps, batch_size, examples
        self.reset()

    def reset(self) -> None:
        self._recent: deque[NoiseScale] = deque(maxlen=POOLED_SAMPLES)
        self._snapshot: tuple[int, Tensor] | None = None

    @property
    def needs(self) -> Needs:
        return Needs(passes=PASSES, every_n_steps=self.every_n_steps)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView = UNKNOWN_BATCH) -> Reading:
        if gradients.gram is None:
            return Reading()
        noise, _ = whole_batch(gradients)
        if not bool(noise.noise.isfinite()):
            return Reading.refused(SPEEDUP, "noise can be estimated from two or more finite gradients")
        self._recent.append(noise)
        size = self.batch_size or sum(block.batch_size for block in gradients.blocks) or gradients.batch_size
        advice = batch_size_advice(pool_noise_scales(list(self._recent)), size)
        values = (advice.speedup, advice.low, advice.high)
        refusals: dict[str, str] = {}
        if values[0] != values[0]:
            why = "the noise scale has no upper end: the signal is not distinguishable from zero in these batches"
            refusals = {quantities.BATCH_SPEEDUP: f"{why}; the lower end is valid"}
        scalars = dict(zip(SPEEDUP, values, strict=True))
        return Reading(scalars, refusals=refusals, texts={quantities.BATCH_SPEEDUP: f"**{advice.sentence}**"})

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        found = self._projections(passes)
        before, self._snapshot = self._snapshot, None if isinstance(found, str) else (step, found)
        if isinstance(found, str):
            return Reading.refused(COMPARED, found)
        if before is None:
            return Reading.refused(COMPARED, "this is the first snapshot: the next measurement compares with it")
        then, snapshot = before
        if snapshot.shape != found.shape:
            return Reading.refused(COMPARED, "the snapshot is of other examples: the next measurement takes a new one")
        gain = svrg_gain(found, snapshot)
        values = (gain.ratio, gain.low, gain.high, gain.best)
        scalars = dict(zip(SVRG, map(float, values), strict=True))
        refusals = dict.fromkeys(SVRG, gain.reason) if gain.reason else {}
        age = {quantities.SNAPSHOT_AGE: float(step - then)}
        return Reading(scalars | age, refusals=refusals, texts={quantities.SVRG_RATIO: _card(gain, step - then)})

    def _projections(self, model: ProbePasses) -> Tensor | str:
        """Return projected gradients of the probe's examples, or why there are none."""
        if running_norms(model.module):
            return "BatchNorm makes the gradient of an example depend on the others, and SVRG is not defined there"
        try:
            sample = model.gradients(self.examples, projections=PROJECTIONS)
        except (UnsupportedGradientError, ValueError) as error:
            return f"the gradients of the probe cannot be read: {error}"
        if sample.status != EXACT or sample.projections is None:
            return "the loss lets examples act on each other, and SVRG is defined for losses of single examples"
        return sample.projections

    def state_dict(self) -> dict[str, Any]:
        # Not the snapshot: a resumed run need not find the same probe, and the next measurement takes one.
        return {"recent": [asdict(scale) for scale in self._recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._recent.extend(NoiseScale(**scale) for scale in state["recent"])


def _card(gain: variance_reduction.SvrgGain, age: int) -> str:
    if gain.reason:
        return f"**{gain}**"
    head = f"**{gain}**, with a snapshot {age} steps old"
    if bool(gain.high < BREAK_EVEN):
        return (
            f"{head}\n\nSVRG would pay where noise is what slows training down: it takes two gradients of each example "
            "and leaves less than half of the noise."
        )
    if bool(gain.low > 1):
        return f"{head}\n\nSVRG would add noise: the gradients have changed too much since the snapshot."
    words = "SVRG takes two gradients of each example; a batch of twice the size leaves .5 of the noise as well."
    return f"{head}\n\n{words}"
