"""Find the inputs and the targets of a batch without asking what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cx.batch.take import leaves

# Names under which batches carry what is not an input, lower case.
NOT_INPUTS = frozenset(
    {"label", "labels", "target", "targets", "y", "mask", "attention_mask", "token_type_ids", "position_ids"}
    | {"idx", "index", "indices", "id", "weight", "weights", "sample_weight", "length", "lengths"}
)

TARGET_NAMES = ("label", "labels", "target", "targets", "y")
"""Keys and fields under which batches carry their targets, lower case, the surest first."""

MAX_CLASSES = 1000
"""Different whole numbers in one batch that are still taken for classes; more are numbers, or names of examples."""

MAX_CODE = 1 << 15
"""Span of the whole numbers that are still taken for classes; ImageNet-21k has 21 841 of them."""

MAX_OUTPUTS = 1024
"""Numbers of one example's target; more are images or maps, whose products among themselves would fill the memory."""

_WHAT_TO_DO = (
    'let batches be pairs (inputs, targets), or carry the targets, one row for each example, under the key "target"'
)


def inputs_of(batch: Any, examples: int) -> Tensor:
    """Return the tensor of a batch that most likely holds the inputs: the first per-example one that is no target.

    Raises:
        ValueError: If there is none; says to pass `features=`.
    """
    tensors = [
        leaf
        for name, leaf in leaves(batch)
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == examples and name.lower() not in NOT_INPUTS
    ]
    if not tensors:
        raise ValueError(
            f"the batch ({type(batch).__name__}) holds no tensor of inputs with {examples} examples along its first "
            "axis: pass ProbeSet(features=...), a function from a batch to a tensor [n, d]"
        )
    return tensors[0]


def targets_of(batch: Any, examples: int) -> Tensor:
    """Return what a batch most likely asks the model to predict: what is named so, or the second tensor of a pair.

    Whole numbers, one for each example, are classes and become one-hot rows of the classes that this batch holds; true
    and false, and several zeros and ones for each example (labels that exclude each other in no way), stay numbers, as
    floating-point targets do.

    Args:
        batch: Nested mappings, lists, tuples, dataclasses of tensors and arrays.
        examples: Number of examples N.

    Returns:
        ``[N, C]`` float64 on the device of the targets, C the numbers or classes; NaN and inf as they are.

    Raises:
        ValueError: If no targets are found, or they are token sequences, too many numbers for each example, or whole
            numbers that can hardly be classes; says what to do.

    Example:
        >>> targets_of((torch.zeros(3, 2), torch.tensor([4, 7, 4])), 3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    found = _found(batch, examples).detach()
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


def _found(batch: Any, examples: int) -> Tensor:
    named = [
        (name.lower(), torch.as_tensor(leaf))
        for name, leaf in leaves(batch)
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 0 and leaf.shape[0] == examples
    ]
    for wanted in TARGET_NAMES:
        for name, leaf in named:
            if name == wanted:
                return leaf
    rest = [leaf for name, leaf in named if name not in NOT_INPUTS]
    if len(rest) != 2:
        raise ValueError(
            f"no targets were found: the batch ({type(batch).__name__}) holds {len(rest)} tensors with {examples} "
            f"examples along their first axis, and none is named as targets are; {_WHAT_TO_DO}"
        )
    return rest[1]


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
