"""The targets of a batch as numbers, one row for each example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_cx.batch.anatomy import Anatomy
from lightning_cx.batch.parts import parts_of
from lightning_cx.batch.spec import BatchSpec, BatchSpecError

MAX_CLASSES = 1000
"""Different whole numbers in one batch that are still taken for classes; more are numbers, or names of examples."""

MAX_CODE = 1 << 15
"""Span of the whole numbers that are still taken for classes; ImageNet-21k has 21 841 of them."""

MAX_OUTPUTS = 1024
"""Numbers of one example's target; more are images or maps, whose products among themselves would fill the memory."""

_WHAT_TO_DO = (
    "pass BatchSpec(targets=...), or let batches be pairs (inputs, targets) or carry the targets, one row for each "
    'example, under the key "target"'
)


def targets_of(batch: Any, anatomy: Anatomy, spec: BatchSpec | None = None) -> Tensor:
    """Return what a batch asks the model to predict.

    Whole numbers, one for each example, are classes and become one-hot rows of the classes that this batch holds; true
    and false, and several zeros and ones for each example (labels that exclude each other in no way), stay numbers, as
    floating-point targets do.

    Args:
        batch: Nested mappings, lists, tuples, dataclasses of tensors and arrays.
        anatomy: Which of its tensors are targets.
        spec: What the user says of the batch.

    Returns:
        ``[N, C]`` float64 on the device of the targets, C the numbers or classes; NaN and inf as they are.

    Raises:
        ValueError: If no targets are found, or they are token sequences, too many numbers for each example, or whole
            numbers that can hardly be classes; says what to do.

    Example:
        >>> from lightning_cx.batch import anatomy_of
        >>> batch = torch.zeros(3, 2), torch.tensor([4, 7, 4])
        >>> targets_of(batch, anatomy_of(batch)).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    examples = anatomy.examples
    found = _found(batch, anatomy, spec).detach()
    if found.is_complex():
        raise ValueError(f"targets are complex numbers: {_WHAT_TO_DO} as real ones")
    rows = found.reshape(examples, found.shape[1:].numel())
    if 0 in rows.shape:
        raise ValueError(f"targets have shape {list(found.shape)}, which holds no numbers: {_WHAT_TO_DO}")
    if rows.is_floating_point() or rows.dtype == torch.bool:
        return _numbers(rows)
    if rows.shape[1] == 1:
        return _one_hot(rows[:, 0])
    if bool(((rows == 0) | (rows == 1)).all()):
        return _numbers(rows)
    raise ValueError(
        f"targets are {rows.shape[1]} whole numbers for each example, a sequence of tokens or a map of classes, and "
        "similarity of such targets is not defined here: measure something else, or a model with one target per example"
    )


def _found(batch: Any, anatomy: Anatomy, spec: BatchSpec | None) -> Tensor:
    if spec is not None and callable(spec.targets):
        values = torch.as_tensor(spec.targets(batch))
        if values.dim() == 0 or len(values) != anatomy.examples:
            raise BatchSpecError(
                f"BatchSpec(targets=...) must return a tensor [{anatomy.examples}, ...], and returned one of shape "
                f"{list(values.shape)}"
            )
        return values
    held = {part.path: part for part in parts_of(batch)}
    parts = [held[path].tensor for path in anatomy.targets if path in held]
    if not parts:
        raise ValueError(f"no targets were found ({anatomy}): {_WHAT_TO_DO}")
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.reshape(len(part), -1).double() for part in parts], 1)


def _numbers(rows: Tensor) -> Tensor:
    if rows.shape[1] > MAX_OUTPUTS:
        raise ValueError(
            f"targets have {rows.shape[1]} numbers for each example, more than {MAX_OUTPUTS}: measure something else, "
            "or let the batch carry smaller targets"
        )
    return rows.double()


def _one_hot(codes: Tensor) -> Tensor:
    classes, member = codes.unique(return_inverse=True)
    if len(classes) > MAX_CLASSES or int(classes[-1]) - int(classes[0]) >= MAX_CODE:
        raise ValueError(
            f"targets are {len(classes)} different whole numbers between {int(classes[0])} and {int(classes[-1])}, "
            "hardly classes: let them be floating-point numbers if they are quantities"
        )
    return torch.nn.functional.one_hot(member, len(classes)).double()
