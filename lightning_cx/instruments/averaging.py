"""Would an average of the weights be better than the last ones?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import averaging, averaging_gain
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import Instrument, Needs, ProbePasses, Reading
from lightning_cx.probe import batch_statistics

MIN_WEIGHTS = 16
"""An average of n independent weights keeps 1/n of their noise, and neighbouring ones are far from independent: of
fewer, a gain of nothing would not say that averaging is of no use."""

PASSES = 2.0

GAIN = quantities.interval(quantities.AVERAGING_GAIN)
TAGS = (*GAIN, quantities.AVERAGING_LOSS_LAST, quantities.AVERAGING_LOSS_AVERAGE)

_ADVICE = {
    1: "The average is better: the last weights carry noise of the step size. Take the average (Lightning's "
    "`WeightAveraging`, or `StochasticWeightAveraging`), or let the learning rate fall; both take away the same noise.",
    -1: "The average is worse: training still moves on, and its tail lags behind. Do not average yet, and do not lower "
    "the learning rate for the sake of noise.",
    0: "The two cannot be told apart on these examples: averaging would change little.",
}
_BATCH_NORM = (
    "BatchNorm took the statistics of each batch of the probe, for both weights, since running ones belong to the last "
    "weights alone. Update them (`torch.optim.swa_utils.update_bn`) before you use an average."
)


@final
class Averaging(Instrument):
    """What averaging the weights would gain now: loss of the last ones less that of their Polyak-Ruppert tail average.

    The weights after optimizer steps, as many of them as the budget allows, go into an average over the last half to
    three quarters of the run; nothing of training is touched. At a measurement both see the same probe examples, and
    the interval is of the difference. It needs three times the memory of float32 weights, on their device, and as much
    in a checkpoint.

    A gain is a loss on training examples: whether it shows on others is for a validation set to say.

    Args:
        every_n_steps: Compare at every n-th step, whatever it costs; None follows the monitor's schedule.
        examples: How many probe examples to compare on; None takes all.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `every_n_steps` or `examples` is not positive.

    Example:
        >>> sorted(Averaging().shown)
        ['on_model', 'on_parameters']
    """

    tags = (*TAGS, quantities.AVERAGING_WINDOW)

    def __init__(self, every_n_steps: int | None = None, examples: int | None = None, *, name: str = "") -> None:
        super().__init__(name)
        for what, given in (("every_n_steps", every_n_steps), ("examples", examples)):
            if given is not None and given < 1:
                raise ValueError(f"{what} is a positive number or None, got {what}={given}.")
        self.every_n_steps, self.examples = every_n_steps, examples
        self._average = averaging.TailAverage()

    def reset(self) -> None:
        self._average.reset()

    def average(self) -> dict[str, Tensor]:
        """Return the averaged weights in float64, for `module.load_state_dict(..., strict=False)`; none at first."""
        return self._average.value()

    @property
    def needs(self) -> Needs:
        return Needs(passes=PASSES, every_n_steps=self.every_n_steps)

    def on_parameters(self, step: int, parameters: Mapping[str, Tensor]) -> Reading:
        self._average.update(parameters, step)
        return Reading()

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        gain, why, notes = self._compare(passes)
        scalars = {quantities.AVERAGING_WINDOW: float(self._average.window), **dict.fromkeys(TAGS, torch.nan)}
        if gain is None:
            return Reading(scalars, refusals=dict.fromkeys(TAGS, why))
        values = (gain.value, gain.low, gain.high, gain.last, gain.average)
        scalars |= dict(zip(TAGS, map(float, values), strict=True))
        refusals = {tag: why for tag in TAGS if scalars[tag] != scalars[tag]}
        return Reading(scalars, refusals=refusals, texts={quantities.AVERAGING_GAIN: self._card(gain, notes)})

    def _compare(self, model: ProbePasses) -> tuple[averaging.AveragingGain | None, str, list[str]]:
        """Return the gain, or the reason why there is none, and remarks for the card."""
        if self._average.count < MIN_WEIGHTS:
            return None, f"an average needs at least {MIN_WEIGHTS} weights, so far there are {self._average.count}", []
        live = model.parameters()
        if self._average.shapes != {name: values.shape for name, values in live.items()}:
            return None, "the trainable parameters have changed: the average starts afresh", []
        average = self._average.value(like=live)
        if not all(bool(values.isfinite().all()) for values in average.values()):
            return None, "the average holds weights that are not finite", []
        try:
            with batch_statistics(model.module) as normalised:
                last = model.losses(self.examples)
                with model.at(average):
                    gain = averaging_gain(last, model.losses(self.examples))
        except (UnsupportedGradientError, ValueError) as error:
            return None, f"the loss cannot be read: {error}", []
        if not bool(gain.value.isfinite()):
            return gain, "a loss is not finite (NaN or inf in the data, or an overflow)", []
        why = "the probe is a single batch: an interval needs two" if gain.chunks < 2 else ""
        return gain, why, [_BATCH_NORM] if normalised else []

    def _card(self, gain: averaging.AveragingGain, notes: list[str]) -> str:
        sign = int(gain.low > 0) - int(gain.high < 0)
        known = bool(gain.low.isfinite())
        head = f"**{gain}**, over {self._average.count} weights of {self._average.window} steps"
        return "\n\n".join([head, *([_ADVICE[sign]] if known else []), *notes])

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state["average"])
