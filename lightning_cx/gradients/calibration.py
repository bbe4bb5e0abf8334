"""Find out, once, what the rows of a tap mean on this model: compare a few examples in company with them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
        sums: Whether the loss is a sum over examples instead of a mean; False where one example is its own batch.
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
    company = min(COMPANY, examples)
    tapped, _ = tapped_company(named_parameters, loss_of, company)
    return compare(tapped, lambda: alone(named_parameters, loss_of, company), company)


def alone(named_parameters: Mapping[str, Tensor], loss_of: LossOf, company: int) -> GradientSample:
    """The first examples, replayed one at a time."""
    return replay_gradients(lambda i: loss_of(i, i + 1), named_parameters.items(), min(ALONE, company))


def tapped_company(
    named_parameters: Mapping[str, Tensor], loss_of: LossOf, company: int
) -> tuple[GradientSample, bool | None]:
    """A tap on the first examples, with its readings parameter by parameter, after its sum check.

    A hook that changes the gradient of a parameter would look like examples that act on each other.

    Returns:
        The sample, and whether the examples lead in what the loss averages over, where that had to be found out.

    Raises:
        UnsupportedGradientError: If the tap cannot read this model.
    """
    try:
        return tapped(named_parameters, loss_of(0, company), company), None
    except AmbiguousLayoutError:
        first = _layout(named_parameters, loss_of, company)
        return tapped(named_parameters, loss_of(0, company), company, first), first


def compare(tapped: GradientSample, replay: Callable[[], GradientSample], company: int) -> Calibration:
    """Say what the rows of a tap mean, from the same examples `replay`ed alone."""
    try:
        truth = replay()
    except Exception as error:  # a loss that one example cannot have couples the examples by definition
        return Calibration(CONTRIBUTION, note=f"one example alone has no loss ({error}): rows are contributions")
    assert tapped.gram is not None
    assert truth.gram is not None
    seen = tapped.gram[: len(truth.gram), : len(truth.gram)]
    if not seen.isfinite().all():
        note = "gradients of the first examples are not finite: nothing to compare"
        return Calibration(CONTRIBUTION, note=note, conclusive=False)
    if not truth.gram.isfinite().all():  # in company they were: a variance over the batch, for one
        return Calibration(CONTRIBUTION, note="one example alone has no finite gradient: rows are contributions")
    if company > 1 and not (truth.gram.any() or seen.any()):
        return Calibration(
            note="the first examples have no gradient: a sum over examples cannot be told from a mean", conclusive=False
        )
    for sums, scale in ((False, 1), (True, company**2)):
        if agree(tapped, truth, AGREEMENT, scale):
            note = "the loss is a sum over examples; it was divided out" if sums and company > 1 else ""
            return Calibration(EXACT, sums=sums and company > 1, note=note)
    return Calibration(
        CONTRIBUTION, note="an example's share of the batch loss is not its own loss (weights, in-batch terms)"
    )


def agree(seen: GradientSample, truth: GradientSample, tolerance: float, scale: float = 1) -> bool:
    """Whether the first rows of one sample are those of the other, all in all and in every parameter that counts.

    Args:
        seen: As many examples or more.
        truth: What they should be.
        tolerance: Relative; a parameter whose own share of the gradient is below it is held to it in all.
        scale: What the Gram matrix of the first is divided by.
    """
    assert seen.gram is not None
    assert truth.gram is not None
    n, size = len(truth.gram), truth.gram.norm()
    if not (seen.gram[:n, :n] / scale - truth.gram).norm() <= tolerance * size:
        return False
    for name in seen.layers.keys() | truth.layers.keys():
        found, wanted = (_block(sample, name, n) for sample in (seen, truth))
        if not (found / scale - wanted).norm() <= tolerance * (wanted.norm() + tolerance * size):
            return False
    return True


def first_rows(sample: GradientSample, count: int) -> GradientSample:
    """The Gram matrices of the first examples of a sample."""
    assert sample.gram is not None
    layers = {name: replace(layer, gram=_block(sample, name, count)) for name, layer in sample.layers.items()}
    return replace(sample, gram=sample.gram[:count, :count], layers=layers)


def _block(sample: GradientSample, name: str, examples: int) -> Tensor:
    assert sample.gram is not None
    layer = sample.layers.get(name)
    block = torch.zeros_like(sample.gram) if layer is None or layer.gram is None else layer.gram
    return block[:examples, :examples]


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
        norms = tapped(named_parameters, loss_of(0, examples), examples, batch_first=first).squared_norms
        if truth is not None and norms is not None:
            errors[first] = min(float((norms[: len(truth)] / scale - truth).norm()) for scale in (1, examples**2))
    first = errors[True] <= errors[False]
    if truth is not None and errors[first] > AGREEMENT * float(truth.norm()):
        raise AmbiguousLayoutError("both readings", "neither agrees with examples that are replayed alone")
    return first


def tapped(
    parameters: Mapping[str, Tensor],
    loss: Tensor,
    examples: int,
    batch_first: bool | None = None,
) -> GradientSample:
    """A tap on a few examples, with its readings parameter by parameter, after its sum check."""
    tap = GradientTap(parameters.items(), examples, per_layer=True, batch_first=batch_first)
    return ride(tap, loss, parameters)
