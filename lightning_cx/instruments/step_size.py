"""Is the learning rate as large as the curvature of the loss allows?"""

from __future__ import annotations

import math
from typing import final

from lightning_cx.functional import curvature, step_size
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments.base import Instrument, Needs, Observation, Reading
from lightning_cx.instruments.batch_gauss_newton import BatchReader, batch_reader
from lightning_cx.instruments.sharpness import PARTS, UNKNOWN, Interval, Sharpness
from lightning_cx.instruments.step_size_card import card, warning
from lightning_cx.probe import ProbePasses
from lightning_cx.tensorboard import tags

PASSES_PER_PRODUCT = 2.0
"""First guess: passes forward and backward that a Hessian-vector product takes as long as; 1.2 to 3.5 were measured on
a busy machine (docs/step_size.md)."""

PASSES_OF_JACOBIAN = 6.0
"""The same for 256 rows of a Jacobian; 3 to 8 were measured for an MLP and a small convnet."""

SHARPNESS: tuple[str, ...] = (tags.SHARPNESS, tags.SHARPNESS_LOW, tags.SHARPNESS_HIGH)
EDGE: tuple[str, ...] = (tags.EDGE, tags.EDGE_LOW, tags.EDGE_HIGH)
GAUSS_NEWTON: tuple[str, ...] = (tags.GAUSS_NEWTON, tags.GAUSS_NEWTON_LOW, tags.GAUSS_NEWTON_HIGH)
BATCH: tuple[str, ...] = (tags.BATCH_GAUSS_NEWTON, tags.BATCH_GAUSS_NEWTON_LOW, tags.BATCH_GAUSS_NEWTON_HIGH)


@final
class StepSize(Instrument):
    """How close training is to the edge of stability: the curvature of the loss times the step size.

    `step_size/edge` is 1 where steps along the steepest direction no longer settle: for SGD
    ``eta lambda_max / (2 (1 + momentum))``, for Adam, AdamW and RMSprop the same with their preconditioner held as it
    stands, for groups of different learning rates all of them together. Others are refused by name. lambda_max is that
    of the Hessian of the mean loss over probe examples, in eval mode, by Lanczos on Hessian-vector products. Its
    interval (95%) holds what Lanczos may still miss and, where the probe is a part of the training set, how much
    examples differ. A run that comes within a tenth of 1 is warned once; a card on the text tab explains the rest.

    The Gauss-Newton curvature is the part of it that stays when residuals are gone. It comes from the Jacobian of a few
    probe examples; for one output with a bias, under squared error or logistic loss, also from the gradients of each
    sampled batch, without a pass.

    It keeps one vector of the size of the parameters (two for optimizers with a preconditioner, or with different
    groups), and up to `iterations` more while it measures.

    Args:
        every_n_steps: Measure at every n-th batch; None as often as the schedule of the monitor allows.
        examples: Probe examples whose mean loss is looked at.
        iterations: Hessian-vector products at most, for each of the two eigenvalues.
        rows: Rows of the Jacobian, examples times outputs, that the Gauss-Newton curvature is taken from; 0 leaves it
            out.
        batches: Also log the Gauss-Newton curvature of sampled batches, where the model has one output.
        seed: Of the first direction.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> StepSize(every_n_steps=100).needs.every_n_steps
        100
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        examples: int = 256,
        iterations: int = 20,
        rows: int = 500,
        batches: bool = False,
        seed: int = 0,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps is 1 at least, got {every_n_steps}: leave it out for as often as possible."
            )
        if examples < 1 or iterations < 1 or rows < 0:
            raise ValueError(
                f"it takes at least one example and one iteration, got examples={examples}, iterations={iterations}, "
                f"rows={rows}."
            )
        self.every_n_steps, self.examples, self.iterations = every_n_steps, examples, iterations
        self.rows, self.batches, self.seed = rows, batches, seed
        self.reset()

    def reset(self) -> None:
        self._sharpness = Sharpness(self.iterations, self.seed)
        self._reader: BatchReader | None = None
        self._outputs: int | None = None

    @property
    def needs(self) -> Needs:
        products = 2 * self.iterations + PARTS
        passes = (PASSES_PER_PRODUCT * products * self.examples + PASSES_OF_JACOBIAN * self.rows) / 256
        return Needs(gram=self.batches, per_layer=self.batches, passes=passes, every_n_steps=self.every_n_steps)

    def measure(self, observation: Observation) -> Reading:
        if observation.model is not None:
            return self._measure_model(observation.step, observation.model)
        if observation.gradients is not None and self.batches:
            return self._measure_batch(observation.gradients)
        return Reading()

    def _measure_model(self, step: int, view: ProbePasses) -> Reading:
        scalars: dict[str, float] = dict.fromkeys((*SHARPNESS, *EDGE), math.nan)
        refusals: dict[str, str] = {}
        details: list[str] = []
        gains, why = _gains(view)
        if gains is None:
            refusals |= dict.fromkeys(EDGE, why)
        try:
            found = self._sharpness(view, min(self.examples, view.examples), gains)
        except (UnsupportedGradientError, ValueError) as error:
            refusals |= dict.fromkeys((*SHARPNESS, *EDGE), str(error))
        else:
            for names, interval in zip((SHARPNESS, EDGE), found, strict=True):
                scalars |= dict(zip(names, interval, strict=True))
            refusals |= _why_nan(scalars, refusals, min(self.examples, view.examples))
            details.append("sharpness {:.4g} ({:.4g} to {:.4g})".format(*found[0]))
        if self.rows:
            of_outputs = self._measure_outputs(view, gains, scalars, refusals)
            details += [str(of_outputs)] if of_outputs else []
        self._find_reader(view)
        ratio: Interval = (scalars[tags.EDGE], scalars[tags.EDGE_LOW], scalars[tags.EDGE_HIGH])
        words = warning(ratio, step)
        return Reading(
            scalars,
            refusals=refusals,
            texts={tags.EDGE: card(ratio, gains, details)},
            warnings={tags.EDGE: words} if words else {},
        )

    def _measure_outputs(
        self, view: ProbePasses, gains: step_size.StepGains | None, scalars: dict[str, float], refusals: dict[str, str]
    ) -> curvature.GaussNewton | None:
        """Fill in the Gauss-Newton curvature of the probe."""
        wanted = (*GAUSS_NEWTON, tags.GAUSS_NEWTON_EDGE)
        scalars |= dict.fromkeys(wanted, math.nan)
        try:
            found = self._gauss_newton(view)
        except (UnsupportedGradientError, ValueError) as error:
            refusals |= dict.fromkeys(wanted, str(error))
            return None
        interval = _of_sample(found, view.training_examples)
        scalars |= dict(zip(GAUSS_NEWTON, interval, strict=True))
        if not math.isfinite(interval[0]):
            refusals |= dict.fromkeys(wanted, "the derivatives of the outputs are not finite")
        elif gains is None:
            refusals[tags.GAUSS_NEWTON_EDGE] = refusals[tags.EDGE]
        elif gains.common is None:
            refusals[tags.GAUSS_NEWTON_EDGE] = (
                "inner products of gradients know no single entries, so the ratio is that of one learning rate without "
                f"preconditioner only, here: {gains.preconditioner}"
            )
        else:
            gain, decay = gains.common
            scalars[tags.GAUSS_NEWTON_EDGE] = gain * (interval[0] + decay)
        return found

    def _gauss_newton(self, view: ProbePasses) -> curvature.GaussNewton:
        outputs = self._count_outputs(view)
        examples = min(self.rows // outputs, view.examples)
        if examples < 2:
            raise ValueError(
                f"the Gauss-Newton curvature of {outputs} outputs takes as many rows an example, for two examples at "
                f"least: StepSize(rows={2 * outputs})"
            )
        jacobian = view.jacobian(examples)
        return curvature.gauss_newton(jacobian.gram, jacobian.hessian)

    def _count_outputs(self, view: ProbePasses) -> int:
        if self._outputs is None:
            self._outputs = view.jacobian(1).outputs.shape[1]
        return self._outputs

    def _find_reader(self, view: ProbePasses) -> None:
        if not self.batches:
            return
        try:
            outputs = self._count_outputs(view)
        except (UnsupportedGradientError, ValueError) as error:
            self._reader = BatchReader(None, None, str(error))
        else:
            self._reader = batch_reader(view, outputs)

    def _measure_batch(self, sample: GradientSample) -> Reading:
        if self._reader is None:
            return Reading()
        found, why = self._reader.read(sample)
        if found is None or why:
            return Reading.refused(BATCH, why)
        alone = dict.fromkeys(BATCH[1:], "a batch of one example shows no spread") if found.examples == 1 else {}
        return Reading(dict(zip(BATCH, _of_sample(found, None), strict=True)), refusals=alone)


def _gains(view: ProbePasses) -> tuple[step_size.StepGains | None, str]:
    if view.optimizer is None:
        return None, "no single optimizer trains the model: none is known, or several share it"
    if view.sums:
        return None, view.sums
    own = {name: p for name, p in view.module.named_parameters() if p.requires_grad}
    try:
        gains = step_size.step_gains(view.optimizer, own)
    except step_size.UnsupportedOptimizerError as error:
        return None, str(error)
    return (None, gains.forming) if gains.forming else (gains, "")


def _of_sample(found: curvature.GaussNewton, of: int | None) -> Interval:
    value, error = float(found.value), float(found.standard_error)
    if math.isnan(value):
        return UNKNOWN
    width = curvature.half_width(error, found.examples - 1, found.examples / of if of else 0.0)
    return value, value - width if value - width > 0 or math.isnan(width) else 0.0, value + width


def _why_nan(scalars: dict[str, float], known: dict[str, str], examples: int) -> dict[str, str]:
    """Reasons of what is still nan."""
    few = f"{examples} examples are too few to tell how much examples differ: {2 * PARTS} are needed"
    why = "the curvature is not finite (NaN or inf in the probe's loss, or an overflow)"
    nothing = math.isnan(scalars[tags.SHARPNESS])
    return {
        tag: why if nothing else few for tag in (*SHARPNESS, *EDGE) if math.isnan(scalars[tag]) and tag not in known
    }
