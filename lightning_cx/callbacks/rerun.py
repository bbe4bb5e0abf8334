"""A training step run again on some examples of its batch, to compare a tap with, or to read instead of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_cx.batch import join, lengths_of, spread_out, take
from lightning_cx.callbacks.fit import Fit
from lightning_cx.functional import linalg
from lightning_cx.gradients import (
    CONTRIBUTION,
    EXACT,
    UNVERIFIED,
    AmbiguousLayoutError,
    Calibration,
    GradientSample,
    InseparableError,
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


DRAWN = "the loss draws random numbers, so that rows could not be compared with the batch gradient"


@dataclass(frozen=True)
class Rerun:
    """A training step that can be run again, without a trace.

    Attributes:
        fit: Whose `training_step` it is.
        batch: What it was given.
        batch_idx: Its number.
        examples: Number of examples in it.
        trim: Whether examples that are cut out lose the padding that longer ones need.
    """

    fit: Fit
    batch: Any
    batch_idx: int
    examples: int
    trim: bool = False

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
        ways = [replace(self, batch=spread_out(self.batch, self.examples), trim=trim) for trim in self._ways]
        best: tuple[Calibration, bool | None] | None = None
        error: InseparableError | None = None
        for way in ways:
            try:
                found = way._calibration(parameters, ambiguous, layout)
            except InseparableError as refusal:
                error = error or refusal
                continue
            if found[0].status == EXACT:
                return found
            best = best or found
        if best is None:
            assert error is not None
            raise error
        return best

    @property
    def _ways(self) -> tuple[bool, ...]:
        """Whether to trim: what is cut out stays as it was, or loses its padding where the batch shows any."""
        return (False, True) if next(lengths_of(self.batch, self.examples), None) is not None else (False,)

    def _calibration(
        self, parameters: Mapping[str, Parameter], ambiguous: bool, layout: bool | None
    ) -> tuple[Calibration, bool | None]:
        mode = partial(watched_pass, self.fit.module)
        with eagerly(), linalg.one_thread():  # a handful of examples
            found = calibrate_in_training(parameters, self._loss_of, self._exchanged, self.examples, mode)
            if ambiguous:
                with mode(False, 0):
                    layout = self._layout(parameters, found)
        return found, layout

    def sample(self, projections: int, coordinates: int) -> GradientSample:
        """Return the gradients of examples that are run one at a time, as many as memory allows."""
        count = affordable_examples(self.fit.module.parameters(), self.examples)
        way, training = self, self.fit.module.training
        try:
            sample, summed, drawn = way._replayed(count, projections, coordinates, training)
        except RuntimeError:  # perhaps of padding that one example does not need
            if len(self._ways) == 1:
                raise
            way = replace(self, trim=True)
            sample, summed, drawn = way._replayed(count, projections, coordinates, training)
        if summed:
            return sample
        if drawn:  # one example alone draws others than it does in company
            _, summed, drawn = way._replayed(count, 0, 0, training=False)
            if summed:
                return sample
        note = DRAWN if drawn else NOT_THEIR_MEAN
        return replace(sample, status=UNVERIFIED, notes=(*sample.notes, note))

    def _replayed(
        self, count: int, projections: int, coordinates: int, training: bool
    ) -> tuple[GradientSample, bool, list[str]]:
        """Replay examples alone and together; say whether they add up, and which random numbers were drawn."""
        named = list(self.fit.module.named_parameters())
        with eagerly(), isolated(self.fit.module, training=training, guard=True):
            sample = replay_gradients(
                lambda i: self._loss_of(i, i + 1), named, count, projections=projections, coordinates=coordinates
            )
            with drawing() as drawn:
                together = replay_gradients(lambda _: self._loss_of(0, count), named, 1)
        return sample, add_up(sample, together), drawn

    def _loss_of(self, start: int, stop: int) -> Tensor:
        some = take(self.batch, start, stop, self.examples, self.trim)
        return self.fit.replayed_loss(some, self.batch_idx)

    def _exchanged(self, stay: int, total: int) -> Tensor:
        """Return the loss of the first examples in the company of others."""
        first = take(self.batch, 0, stay, self.examples, self.trim)
        rest = take(self.batch, total, 2 * total - stay, self.examples, self.trim)
        joined = join(first, rest, (stay, total - stay))
        return self.fit.replayed_loss(joined, self.batch_idx)

    def _layout(self, parameters: Mapping[str, Parameter], found: Calibration) -> bool:
        try:
            return find_layout(parameters, self._loss_of, self.examples)
        except AmbiguousLayoutError:
            if found.status == CONTRIBUTION:  # examples that act on each other agree with none that are alone
                return True
            raise
