"""Find out, once, what a loss is to the examples of a batch, by comparing a few of them in company and alone.

A batch shows one loss and one gradient. Whether an example's share in it is the derivative of the example's own loss
cannot be seen from that: a sum instead of a mean, class weights, in-batch negatives, mixup and a wrong reading of the
axis of examples all pass the sum check. So a few examples are run alone and compared with their shares in company:
`calibrate_rows` is that comparison, of any rows, and `Calibration` its verdict.

- The tap compares rows of the parameter gradient (`calibrate`, `calibrate_in_training`), on the loss as training has
  it: with dropout, random times, mixup, and whatever eval mode leaves out.
- The probe compares residuals at the outputs, in eval mode (`lightning_cx.probe.passes`).

Where the loss of training mode draws random numbers, one example alone draws others than it does in company. Then the
loss of eval mode tells a sum from a mean, and training mode is asked something else: whether the rows of the first
examples stay as they are when others take the places of the rest. In batches of one size everybody draws the same
numbers as before.

That one example alone has no loss is no evidence: a `squeeze()` may have dropped its axis. Two pairs are compared then,
and where these cannot be run either nothing is known, which is what the verdict says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_cx.gradients.errors import AmbiguousLayoutError, InseparableError, UnsupportedGradientError
from lightning_cx.gradients.functions import ride
from lightning_cx.gradients.replay import replay_gradients
from lightning_cx.gradients.sample import CONTRIBUTION, COUNT_UNEVENLY, EXACT, UNVERIFIED, GradientSample
from lightning_cx.gradients.tap import GradientTap

AGREEMENT = 0.025
"""Relative error up to which rows agree: a class weight of 1.05 still shows, and half precision agrees. Of 336
comparisons under autocast, of four small networks while they learned eight examples by heart, 4 did not agree at .025,
11 at .02 and 2 at .03."""

UNCHANGED = 5e-4
"""The same for two batches of one shape, whose rows agree to rounding; mixup with a factor of .999 shows."""

COMPANY = 4  # examples in the batch that is compared; enough to tell N from N^2
ALONE = 2  # examples that are replayed alone
PROJECTIONS = 16  # random directions on which each parameter's rows are compared: rows themselves may not fit
STAY = 2  # examples that stay while the others are exchanged
EXCHANGED = 6  # others; so many that a random permutation is unlikely to leave the two among themselves (1 in 28)
SEEDS = 3  # draws that are tried: mixup with a factor close to 1 hardly shows

LossOf = Callable[[int, int], Tensor]  # the training loss of examples [start, stop)

# (training, seed) -> a pass inside leaves no trace; the list names, afterwards, the random streams that it drew from.
Mode = Callable[[bool, int], AbstractContextManager[list[str]]]

DIVIDED_OUT = "the loss is a sum over examples; it was divided out"
CONTRIBUTIONS = "rows are contributions"
COUPLED = "the other examples of a batch change an example's gradient (in-batch terms, batch statistics, mixup)"


@dataclass(frozen=True)
class Calibration:
    """What the loss of a batch is to its examples, and so what rows are that were read from it.

    Attributes:
        status: `"exact"` where a row is the derivative of the example's own loss; `"contribution"` where examples act
            on each other or count unequally, and the row is the example's share in the loss of the batch;
            `"unverified"` where that could not be found out.
        sums: Whether the loss is a sum over examples instead of a mean; False where one example is its own batch.
        note: What was seen, in words; empty where nothing is remarkable.
        conclusive: Whether the examples showed anything at all; another batch may.
        mixed: Whether other examples change the direction of a row, too, as mixup does and class weights do not.
        drawn: Whether rows depend on random numbers that the loss draws even in eval mode.
        each: Whether the loss came for each example, so that nothing is known of how training adds it up.
    """

    status: str = EXACT
    sums: bool = False
    note: str = ""
    conclusive: bool = True
    mixed: bool = False
    drawn: bool = False
    each: bool = False

    @property
    def coupled(self) -> bool:
        """Whether examples act on each other."""
        return self.status == CONTRIBUTION

    def scale(self, examples: int) -> int:
        """Factor from an example's share in the loss of a batch to its own loss."""
        return 1 if self.sums else examples

    @staticmethod
    def unverified(why: str) -> Calibration:
        """Nothing could be compared, and so nothing is known."""
        return Calibration(UNVERIFIED, note=f"a few examples could not be compared ({why})")


def calibrate_rows(company: Tensor, alone: Tensor, examples: int, widths: Sequence[int] = ()) -> Calibration:
    """Say what the loss of a batch is to its examples, from the rows of a few of them in company and alone.

    With r_i the derivative of example i's own loss, a mean over n examples shows r_i / n in company, a sum r_i, and a
    loss in which examples act on each other something else.

    Args:
        company: Derivatives of the batch's loss that belong to the first examples, [m, C] float64.
        alone: Derivatives of the losses of these examples, each run alone, [m, C] float64.
        examples: Number of examples n in the batch; 1 if the loss came for each example.
        widths: Widths of the parts of a row, as parameters are, each of which has to agree; without them each of the
            m rows has to.
    """
    if not company.isfinite().all():
        note = "gradients of the first examples are not finite: nothing to compare"
        return Calibration(CONTRIBUTION, note=note, conclusive=False)
    if not alone.isfinite().all():
        return Calibration.unverified("alone they have no finite gradient")
    if examples > 1 and not (company.any() or alone.any()):
        note = "the first examples have no gradient: a sum over examples cannot be distinguished from a mean"
        return Calibration(note=note, conclusive=False)
    tiny = torch.finfo(torch.float64).tiny
    # Midway, in logarithms, between the two sizes that rows would have.
    sums = examples > 1 and float((company.norm() + tiny) / (alone.norm() + tiny)) >= examples**-0.5
    rows = company * (1 if sums else examples)
    if agree(rows, alone, AGREEMENT, widths):
        return Calibration(EXACT, sums, DIVIDED_OUT if sums else "")
    mixed = _turned(rows, alone)
    why = COUPLED if mixed else COUNT_UNEVENLY
    return Calibration(CONTRIBUTION, sums, f"{CONTRIBUTIONS}, since {why}", mixed=mixed)


def agree(rows: Tensor, truth: Tensor, tolerance: float, widths: Sequence[int] = ()) -> bool:
    """Whether rows are what they should be, all in all and in every part that counts.

    Errors are weighed by what they do to inner products: an error d in rows of norm r changes them by d (2 r + d).
    The rows of one part, a parameter or an example, may be nothing but rounding (the bias of the keys in attention has
    a gradient of zero), so a part may err by some of the whole as well.

    Args:
        rows: What was found, [m, C].
        truth: What it should be, [m, C].
        tolerance: Relative.
        widths: As in `calibrate_rows`.
    """
    whole = float(truth.square().sum())
    if not _error(rows, truth) <= 2 * tolerance * whole:
        return False
    found, wanted = (t.split(list(widths), 1) if widths else t.split(1) for t in (rows, truth))
    return all(
        _error(one, other) <= 2 * tolerance * (float(other.square().sum()) + 2 * tolerance * whole)
        for one, other in zip(found, wanted, strict=True)
    )


def unchanged(rows: Tensor, before: Tensor, widths: Sequence[int] = ()) -> bool:
    """Whether rows are as they were in a batch of the same shape with other examples; arguments as in `agree`."""
    return agree(rows, before, UNCHANGED, widths)


def _error(rows: Tensor, truth: Tensor) -> float:
    error = float((rows - truth).norm())
    return error * (2 * float(truth.norm()) + error)


def _turned(rows: Tensor, truth: Tensor) -> bool:
    """Whether a row that disagrees has another direction; a single number has none, and counts as turned."""
    if rows.shape[1] == 1:
        return True
    sizes = rows.norm(dim=1) * truth.norm(dim=1)
    off = (rows - truth).norm(dim=1) > AGREEMENT * truth.norm(dim=1)
    return bool((off & ((rows * truth).sum(1) <= (1 - AGREEMENT) * sizes)).any())


def calibrate(named_parameters: Mapping[str, Tensor], loss_of: LossOf, examples: int) -> Calibration:
    """Compare a tap on a few examples with the same examples replayed one at a time.

    Args:
        named_parameters: Trainable and frozen parameters by name.
        loss_of: The training loss of examples [start, stop); deterministic (dropout off).
        examples: Number of examples at hand.

    Raises:
        UnsupportedGradientError: If the tap cannot read this model.
    """
    company = min(COMPANY, examples)
    seen, _ = _tapped_company(named_parameters, loss_of, company)
    return _compare(named_parameters, seen, loss_of, company)


def calibrate_in_training(
    named_parameters: Mapping[str, Tensor],
    loss_of: LossOf,
    exchanged: Callable[[int, int], Tensor],
    examples: int,
    mode: Mode,
) -> Calibration:
    """Find out what the rows of a tap mean on the loss of training mode.

    Args:
        named_parameters: Trainable and frozen parameters by name.
        loss_of: The training loss of examples [start, stop), in whatever mode.
        exchanged: The training loss of as many examples, of which only the first stay: (stay, total) -> loss.
        examples: Number of examples at hand.
        mode: Isolates a pass, in training mode or not, from a seed, and says whether it drew random numbers.

    Raises:
        UnsupportedGradientError: If the tap cannot read this model.
        InseparableError: If a few examples of the batch have no loss without the rest.
    """
    company = min(COMPANY, examples)
    try:
        seen, drawn = _in_company(named_parameters, loss_of, company, mode)
    except InseparableError:
        raise
    except UnsupportedGradientError:  # perhaps only since as many classes or channels lie beside the examples
        company = min(COMPANY + 1, examples)
        seen, drawn = _in_company(named_parameters, loss_of, company, mode)
    if seen.status == EXACT and not drawn:
        with mode(True, 0):  # a backward may run parts of the model once more
            return _compare(named_parameters, seen, _from_the_start(loss_of, mode), company)
    drawn_in_eval: list[str] = []
    try:
        with mode(False, 0) as drawn_in_eval:
            found = calibrate(named_parameters, loss_of, company)
    except UnsupportedGradientError:
        raise
    except Exception as error:  # torchvision's detectors have no loss in eval mode
        found = Calibration.unverified(f"in eval mode, {type(error).__name__}: {error}")
    stays = partial(_stays, named_parameters, loss_of, exchanged, examples, mode)
    if found.status == CONTRIBUTION and found.conclusive and drawn_in_eval:
        # One example alone drew other numbers, which says nothing: others in the places of the rest may.
        if stays(training=False):
            found = replace(_mean_or_sum(named_parameters, loss_of, company, mode, training=False), drawn=True)
        else:
            found = Calibration(CONTRIBUTION, note=f"{CONTRIBUTIONS}, since {COUPLED}", mixed=True)
    if seen.status == CONTRIBUTION or not found.conclusive or found.coupled:
        return found
    if not stays(training=True):
        return Calibration(CONTRIBUTION, found.sums, f"{CONTRIBUTIONS}, since in training mode {COUPLED}", mixed=True)
    if found.status == UNVERIFIED:
        return replace(_mean_or_sum(named_parameters, loss_of, company, mode, training=True), drawn=True)
    return replace(found, drawn=found.drawn or bool(drawn_in_eval))


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
    if truth is not None and errors[first] > 2 * AGREEMENT * float(truth.norm()):  # of squares: twice that of rows
        raise AmbiguousLayoutError("both readings", "neither agrees with examples that are replayed alone")
    return first


def _compare(parameters: Mapping[str, Tensor], seen: GradientSample, loss_of: LossOf, company: int) -> Calibration:
    """Say what the rows of a tap mean, from the same examples alone, or in pairs where they cannot be alone."""
    try:
        alone = replay_gradients(lambda i: loss_of(i, i + 1), parameters.items(), min(ALONE, company), PROJECTIONS)
        why = "" if alone.squared_norms is None or alone.squared_norms.isfinite().all() else "no finite gradient"
    except Exception as error:  # the user's code on a batch of one
        alone, why = None, f"{type(error).__name__}: {error}"
    if alone is not None and not why:
        rows, wanted, widths = _rows(seen, alone, alone.batch_size)
        found = calibrate_rows(rows / company, wanted, company, widths)
    else:
        found = _compare_pairs(parameters, seen, loss_of, company, why)
    # Contributions stay as large as the tap reads them: of what they would be the sum is not known.
    return replace(found, sums=found.sums and not found.coupled)


def _compare_pairs(
    parameters: Mapping[str, Tensor], seen: GradientSample, loss_of: LossOf, company: int, why: str
) -> Calibration:
    """Compare examples in company of one other with the same in company of three.

    Args:
        parameters: By name.
        seen: The tap on the whole company.
        loss_of: The loss of examples [start, stop).
        company: How many there are.
        why: What happened where one was alone.
    """
    pairs = company // 2
    if pairs < 2:
        return Calibration.unverified(f"one example alone: {why}")
    shown = []
    try:
        for k in range(pairs):
            pair, _ = _tapped_company(parameters, lambda a, b, k=k: loss_of(2 * k + a, 2 * k + b), 2)
            rows, wanted, widths = _rows(_part(seen, 2 * k), pair, 2)
            shown.append((rows / company, wanted / 2, widths))
    except Exception as error:  # the user's code, and what the tap makes of it
        return Calibration.unverified(f"one example alone: {why}; two: {type(error).__name__}: {error}")
    company_rows, pair_rows = (torch.cat([pair[n] for pair in shown]) for n in (0, 1))
    return calibrate_rows(company_rows, pair_rows, pairs, shown[0][2])


def _part(sample: GradientSample, start: int) -> GradientSample:
    """The rows of a sample from one example on."""
    layers = {
        name: layer if layer.projections is None else replace(layer, projections=layer.projections[start:])
        for name, layer in sample.layers.items()
    }
    return replace(sample, layers=layers)


def _rows(one: GradientSample, other: GradientSample, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """The first rows of two samples on the same directions, parameter by parameter, and how wide each of these is."""
    names = sorted(one.layers.keys() | other.layers.keys())

    def rows_of(sample: GradientSample) -> Tensor:
        assert sample.gram is not None
        parts = [sample.layers[name].projections if name in sample.layers else None for name in names]
        zeros = sample.gram.new_zeros(count, PROJECTIONS)
        return torch.cat([zeros if part is None else part[:count].to(zeros) for part in parts] or [zeros], 1)

    return rows_of(one), rows_of(other), [PROJECTIONS] * max(1, len(names))


def _from_the_start(loss_of: LossOf, mode: Mode) -> LossOf:
    """The same losses in training mode, each from the same state: a queue of negatives never gets longer."""

    def loss(start: int, stop: int) -> Tensor:
        with mode(True, 0):
            return loss_of(start, stop)

    return loss


def _in_company(
    parameters: Mapping[str, Tensor], loss_of: LossOf, company: int, mode: Mode
) -> tuple[GradientSample, list[str]]:
    def some(start: int, stop: int) -> Tensor:
        try:
            return loss_of(start, stop)
        except Exception as error:
            words = f"{stop - start} of its examples have no loss without the rest, {type(error).__name__}: {error}"
            raise InseparableError("the batch cannot be split into examples", words) from error

    with mode(True, 0) as drawn:
        sample, _ = _tapped_company(parameters, some, company)
    return sample, drawn


def _tapped_company(
    parameters: Mapping[str, Tensor], loss_of: LossOf, company: int
) -> tuple[GradientSample, bool | None]:
    """A tap on the first examples, with its readings parameter by parameter, after its sum check.

    A hook that changes the gradient of a parameter would look like examples that act on each other.

    Returns:
        The sample, and whether the examples lead in what the loss averages over, where that had to be found out.

    Raises:
        UnsupportedGradientError: If the tap cannot read this model.
    """
    try:
        return _tapped(parameters, loss_of(0, company), company), None
    except AmbiguousLayoutError:
        try:
            first = find_layout(parameters, loss_of, company)
        except AmbiguousLayoutError:  # examples act on each other; which is what the comparison is about to say
            first = True
        return _tapped(parameters, loss_of(0, company), company, first), first


def _tapped(
    parameters: Mapping[str, Tensor], loss: Tensor, examples: int, batch_first: bool | None = None
) -> GradientSample:
    # With a Gram matrix, since the sum check is made of it.
    tap = GradientTap(parameters.items(), examples, per_layer=True, projections=PROJECTIONS, batch_first=batch_first)
    return ride(tap, loss, parameters)


def _stays(
    parameters: Mapping[str, Tensor],
    loss_of: LossOf,
    exchanged: Callable[[int, int], Tensor],
    examples: int,
    mode: Mode,
    training: bool,
) -> bool:
    """Whether the rows of the first examples are the same whoever the others are; True where there are no others."""
    stay = min(STAY, examples // 2)
    total = min(STAY + EXCHANGED, (examples + stay) // 2)
    if total <= stay:
        return True
    for seed in range(SEEDS):
        with mode(training, seed):
            before, first = _tapped_company(parameters, loss_of, total)
        with mode(training, seed):
            after = _tapped(parameters, exchanged(stay, total), total, first)
        rows, truth, widths = _rows(after, before, stay)
        if not unchanged(rows, truth, widths):
            return False
    return True


def _mean_or_sum(
    parameters: Mapping[str, Tensor], loss_of: LossOf, company: int, mode: Mode, training: bool
) -> Calibration:
    """Other draws make other gradients, but not four times as large ones."""
    with mode(training, 0):
        together, _ = _tapped_company(parameters, loss_of, company)
        single = replay_gradients(lambda i: loss_of(i, i + 1), parameters.items(), company)
    assert together.squared_norms is not None
    assert single.squared_norms is not None
    ratio = float(together.squared_norms.sum() / single.squared_norms.sum())
    sums = company > 1 and ratio > company  # 1 for a mean, N^2 for a sum
    return Calibration(sums=sums, note=DIVIDED_OUT if sums else "")
