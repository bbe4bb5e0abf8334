"""Ask a model which tensors of a batch its output depends on: those are its inputs, whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cx.batch import Anatomies, Anatomy, parts_of, replaced
from lightning_cx.probe.outputs import Chunk, residuals_of
from lightning_cx.probe.passes import ProbePasses


def ask(passes: ProbePasses, batch: Any, examples: int, anatomies: Anatomies) -> Anatomy:
    """Let the rows of one tensor after another change places among the examples, and see what that changes.

    What changes the output is an input; what changes the loss alone is a target or a weight; the rest is not used. The
    model runs once for each tensor, in eval mode, from the same random numbers.

    Args:
        passes: The model and its loss.
        batch: Some examples.
        examples: How many; of one alone nothing can be learned.
        anatomies: Where the answer goes.

    Returns:
        The anatomy of such batches, as it is now known.
    """
    anatomy = anatomies.of(batch, examples)
    paths = (*anatomy.inputs, *anatomy.targets)
    if anatomy.asked or examples < 2 or not paths:
        return anatomy
    before = _shown(passes, batch, examples)
    if before is None:
        return anatomy
    held = {part.path: part.value for part in parts_of(batch)}
    output, loss = {}, {}
    for path in paths:
        value = held[path]
        if not isinstance(value, Tensor) or value.is_nested:
            continue
        after = _shown(passes, replaced(batch, path, value.roll(1, 0)), examples)
        if after is not None:  # else rows do not fit one another: nothing is known
            output[path] = not _equal(before[0], after[0])
            loss[path] = output[path] or not _equal(before[1], after[1])
    return anatomies.learn(batch, output, loss)


def _shown(passes: ProbePasses, batch: Any, examples: int) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
    """Outputs and residuals of a batch; None where they cannot be had."""
    try:
        with passes.isolated():
            found = residuals_of(passes.module, Chunk(passes.place(batch), examples), passes.loss_of)
    except Exception:  # the user's code on a batch that it was not made for; nothing is concluded from that
        return None
    return found.outputs, found.residuals


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )
