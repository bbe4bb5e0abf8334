"""Calibrate a tap on the loss as training has it: with dropout, random times, mixup, and whatever eval mode leaves out.

A loss may be another one in training mode, so its examples are compared there. Where it draws random numbers one
example alone draws others than it does in company. Then the loss of eval mode tells a sum from a mean, and training
mode is asked something else: whether the rows of the first examples stay as they are when others take the places of
the rest. In batches of one size everybody draws the same numbers as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from lightning_cx.gradients.calibration import (
    COMPANY,
    Calibration,
    LossOf,
    agree,
    alone,
    calibrate,
    compare,
    first_rows,
    tapped,
    tapped_company,
)
from lightning_cx.gradients.errors import InseparableError, UnsupportedGradientError
from lightning_cx.gradients.replay import replay_gradients
from lightning_cx.gradients.sample import CONTRIBUTION, EXACT, GradientSample

STAY = 2  # examples that stay while the others are exchanged
EXCHANGED = 6  # others; so many that a random permutation is unlikely to leave the two among themselves (1 in 28)
SEEDS = 3  # draws that are tried: mixup with a factor close to 1 hardly shows
UNCHANGED = 1e-3  # relative; rows of batches of one shape agree to rounding, and mixup with .999 shows

# (training, seed) -> a pass inside leaves no trace; the list names, afterwards, the random streams that it drew from.
Mode = Callable[[bool, int], AbstractContextManager[list[str]]]
COUPLED = "in training mode the other examples of a batch change an example's gradient (mixup, batch statistics)"


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
        return compare(seen, lambda: _each_alone(named_parameters, loss_of, company, mode), company)
    drawn_in_eval: list[str] = []
    try:
        with mode(False, 0) as drawn_in_eval:
            found = calibrate(named_parameters, loss_of, company)
    except UnsupportedGradientError:
        raise
    except Exception as error:  # torchvision's detectors have no loss in eval mode
        found = Calibration(note=f"not calibrated (in eval mode, {error}): the loss is taken for a mean")
    if seen.status == CONTRIBUTION or not found.conclusive or (found.status == CONTRIBUTION and not drawn_in_eval):
        return found
    if not _stays(named_parameters, loss_of, exchanged, examples, mode):
        return Calibration(CONTRIBUTION, found.sums, note=f"{COUPLED}: rows are contributions")
    return found if found.status == EXACT else _mean_or_sum(named_parameters, loss_of, company, mode)


def _in_company(
    parameters: Mapping[str, Tensor], loss_of: LossOf, company: int, mode: Mode
) -> tuple[GradientSample, list[str]]:
    with mode(True, 0) as drawn:
        sample, _ = tapped_company(parameters, _separable(loss_of), company)
    return sample, drawn


def _separable(loss_of: LossOf) -> LossOf:
    def some(start: int, stop: int) -> Tensor:
        try:
            return loss_of(start, stop)
        except Exception as error:
            words = f"{stop - start} of its examples have no loss without the rest, {type(error).__name__}: {error}"
            raise InseparableError("the batch cannot be taken apart", words) from error

    return some


def _each_alone(parameters: Mapping[str, Tensor], loss_of: LossOf, company: int, mode: Mode) -> GradientSample:
    """Each from the same state: a queue of negatives is as long for the second as for the first."""

    def from_the_start(start: int, stop: int) -> Tensor:
        with mode(True, 0):
            return loss_of(start, stop)

    with mode(True, 0):
        return alone(parameters, from_the_start, company)


def _stays(
    parameters: Mapping[str, Tensor],
    loss_of: LossOf,
    exchanged: Callable[[int, int], Tensor],
    examples: int,
    mode: Mode,
) -> bool:
    """Whether the rows of the first examples are the same whoever the others are; True where there are no others."""
    stay = min(STAY, examples // 2)
    total = min(STAY + EXCHANGED, (examples + stay) // 2)
    if total <= stay:
        return True
    for seed in range(SEEDS):
        with mode(True, seed):
            before, first = tapped_company(parameters, loss_of, total)
        with mode(True, seed):
            after = tapped(parameters, exchanged(stay, total), total, first)
        if not agree(after, first_rows(before, stay), UNCHANGED):
            return False
    return True


def _mean_or_sum(parameters: Mapping[str, Tensor], loss_of: LossOf, company: int, mode: Mode) -> Calibration:
    """Other draws make other gradients, but not four times as large ones."""
    with mode(True, 0):
        together, _ = tapped_company(parameters, loss_of, company)
        single = replay_gradients(lambda i: loss_of(i, i + 1), parameters.items(), company)
    assert together.squared_norms is not None
    assert single.squared_norms is not None
    ratio = float(together.squared_norms.sum() / single.squared_norms.sum())
    sums = company > 1 and ratio > company  # 1 for a mean, N^2 for a sum
    return Calibration(sums=sums, note="the loss is a sum over examples; it was divided out" if sums else "")
