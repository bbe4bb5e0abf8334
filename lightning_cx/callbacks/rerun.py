"""A training step run again on some examples of its batch, to compare a tap with, or to read instead of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_cx.batch import join, spread_out, take
from lightning_cx.callbacks.fit import Fit
from lightning_cx.functional import linalg
from lightning_cx.gradients import (
    CONTRIBUTION,
    AmbiguousLayoutError,
    Calibration,
    GradientSample,
    add_up,
    affordable_examples,
    calibrate_in_training,
    find_layout,
    replay_gradients,
)
from lightning_cx.probe import drawing, eagerly, isolated, watched_pass

NOT_THEIR_MEAN = (
    "rows are of examples replayed alone, and the batch gradient is not their mean (weights, ignored labels, in-batch "
    "terms)"
)


@dataclass(frozen=True)
class Rerun:
    """A training step that can be run again, without a trace.

    Attributes:
        fit: Whose `training_step` it is.
        batch: What it was given.
        batch_idx: Its number.
        examples: Number of examples in it.
    """

    fit: Fit
    batch: Any
    batch_idx: int
    examples: int

    def calibration(
        self, parameters: Mapping[str, Parameter], ambiguous: bool, layout: bool | None
    ) -> tuple[Calibration, bool | None]:
        """Return what a tap's rows mean, and whether examples lead in what the loss averages over.

        Args:
            parameters: Those that are tapped.
            ambiguous: Whether the latter has to be found out.
            layout: What is known of it otherwise.

        Raises:
            UnsupportedGradientError: If the tap cannot read this model.
        """
        mixed = replace(self, batch=spread_out(self.batch, self.examples))
        mode = partial(watched_pass, self.fit.module)
        with eagerly(), linalg.one_thread():  # a handful of examples
            found = calibrate_in_training(parameters, mixed._loss_of, mixed._exchanged, self.examples, mode)
            if ambiguous:
                with mode(False, 0):
                    layout = mixed._layout(parameters, found)
        return found, layout

    def sample(self, projections: int, coordinates: int) -> GradientSample:
        """Return the gradients of examples that are run one at a time, as many as memory allows."""
        count = affordable_examples(self.fit.module.parameters(), self.examples)
        with eagerly(), isolated(self.fit.module, training=self.fit.module.training, guard=True):
            sample = replay_gradients(
                lambda i: self._loss_of(i, i + 1),
                self.fit.module.named_parameters(),
                count,
                projections=projections,
                coordinates=coordinates,
            )
            with drawing() as drawn:
                together = replay_gradients(lambda _: self._loss_of(0, count), self.fit.module.named_parameters(), 1)
        if drawn or add_up(sample, together):
            return sample
        return replace(sample, notes=(*sample.notes, NOT_THEIR_MEAN))

    def _loss_of(self, start: int, stop: int) -> Tensor:
        some = take(self.batch, start, stop, self.examples)
        return self.fit.replayed_loss(some, self.batch_idx)

    def _exchanged(self, stay: int, total: int) -> Tensor:
        """Return the loss of the first examples in the company of others."""
        first = take(self.batch, 0, stay, self.examples)
        rest = take(self.batch, total, 2 * total - stay, self.examples)
        joined = join(first, rest, (stay, total - stay))
        return self.fit.replayed_loss(joined, self.batch_idx)

    def _layout(self, parameters: Mapping[str, Parameter], found: Calibration) -> bool:
        try:
            return find_layout(parameters, self._loss_of, self.examples)
        except AmbiguousLayoutError:
            if found.status == CONTRIBUTION:  # examples that act on each other agree with none that are alone
                return True
            raise
