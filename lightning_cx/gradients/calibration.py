"""Find out, once, what the rows of a tap mean on this model: compare a few examples in company with them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.gradients.errors import AmbiguousLayoutError
from lightning_cx.gradients.functions import ride
from lightning_cx.gradients.replay import replay_gradients
from lightning_cx.gradients.sample import CONTRIBUTION, EXACT, GradientSample
from lightning_cx.gradients.tap import GradientTap

COMPANY = 4  # examples in the batch that is compared; enough to tell N from N^2
ALONE = 2  # examples that are replayed alone
AGREEMENT = 0.05  # relative; bfloat16 agrees to .02, a class weight of 1.05 shows

LossOf = Callable[[int, int], Tensor]  # the training loss of examples [start, stop)


@dataclass(frozen=True)
class Calibration:
    """What a tap's rows mean.

    Attributes:
        status: `"exact"` where a row is the derivative of the example's own loss, else `"contribution"`.
        sums: Whether the loss is a sum over examples instead of a mean.
        note: What was seen, in words; empty where nothing is remarkable.
        conclusive: Whether the examples showed anything at all; another batch may.
    """

    status: str = EXACT
    sums: bool = False
    note: str = ""
    conclusive: bool = True


def calibrate(named_parameters: Mapping[str, Tensor], loss_of: LossOf, examples: int) -> Calibration:
    """Compare a tap on a few examples with the same examples replayed one at a time.

    The ratio of the tap's Gram matrix to the replayed one is 1 for a mean over examples, N^2 for a sum, and anything
    else where examples act on each other's loss: class weights, contrastive losses.

    Args:
        named_parameters: Trainable and frozen parameters by name.
        loss_of: The training loss of examples [start, stop); deterministic (dropout off).
        examples: Number of examples at hand.

    Raises:
        UnsupportedGradientError: If the tap cannot read this model.
    """
    company, first = min(COMPANY, examples), None
    try:
        tapped = _tapped(named_parameters, loss_of(0, company), company).gram
    except AmbiguousLayoutError:
        first = _layout(named_parameters, loss_of, company)
        tapped = _tapped(named_parameters, loss_of(0, company), company, first).gram
    assert tapped is not None
    try:
        alone = replay_gradients(lambda i: loss_of(i, i + 1), named_parameters.items(), min(ALONE, company)).gram
    except Exception as error:  # a loss that one example cannot have couples the examples by definition
        return Calibration(CONTRIBUTION, note=f"one example alone has no loss ({error}): rows are contributions")
    assert alone is not None
    seen = tapped[: len(alone), : len(alone)]
    if not (seen.isfinite().all() and alone.isfinite().all()):
        note = "gradients of the first examples are not finite: nothing to compare"
        return Calibration(CONTRIBUTION, note=note, conclusive=False)
    for sums, scale in ((False, 1), (True, company**2)):
        if (seen / scale - alone).norm() <= AGREEMENT * alone.norm():
            note = "the loss is a sum over examples; it was divided out" if sums and company > 1 else ""
            return Calibration(EXACT, sums=sums and company > 1, note=note)
    # A hook that changes the gradient of a parameter looks the same; the sum check tells it by name.
    ride(GradientTap(named_parameters.items(), company, batch_first=first), loss_of(0, company), named_parameters)
    return Calibration(
        CONTRIBUTION, note="an example's share of the batch loss is not its own loss (weights, in-batch terms)"
    )


def _layout(named_parameters: Mapping[str, Tensor], loss_of: LossOf, examples: int) -> bool:
    try:
        return find_layout(named_parameters, loss_of, examples)
    except AmbiguousLayoutError:  # examples act on each other; which is what the comparison is about to say
        return True


def find_layout(named_parameters: Mapping[str, Tensor], loss_of: LossOf, examples: int) -> bool:
    """Tell whether the examples lead in what the loss averages over, where nothing in the graph tells two axes apart.

    Taps the whole batch both ways and takes the one whose norms agree with two examples replayed alone.

    Raises:
        AmbiguousLayoutError: If neither does.
        UnsupportedGradientError: If the tap cannot read this model.
    """
    truth = replay_gradients(lambda i: loss_of(i, i + 1), named_parameters.items(), min(ALONE, examples)).squared_norms
    errors: dict[bool, float] = {}
    for first in (True, False):
        norms = _tapped(named_parameters, loss_of(0, examples), examples, batch_first=first).squared_norms
        if truth is not None and norms is not None:
            errors[first] = min(float((norms[: len(truth)] / scale - truth).norm()) for scale in (1, examples**2))
    first = errors[True] <= errors[False]
    if truth is not None and errors[first] > AGREEMENT * float(truth.norm()):
        raise AmbiguousLayoutError("both readings", "neither agrees with examples that are replayed alone")
    return first


def _tapped(
    parameters: Mapping[str, Tensor],
    loss: Tensor,
    examples: int,
    batch_first: bool | None = None,
) -> GradientSample:
    tap = GradientTap(parameters.items(), examples, per_layer=True, batch_first=batch_first)
    trainable = [p for p in parameters.values() if p.requires_grad]
    tap.attach(loss)
    try:
        torch.autograd.grad(loss, trainable, allow_unused=True)
        return tap.finish()
    finally:
        tap.detach()
