"""Cut examples out of a batch and join batches, without knowing what they are.

A batch is any nesting of lists, tuples, mappings and dataclasses. The one thing known of it is its number of examples
N: a part is cut if it has one entry for each example (`per_example`), and everything else, a scalar, a shared table, a
name, stays whole. Cutting by the number of entries alone would take the pair `(inputs, targets)` of a batch of two for
two examples, so a list counts as per example only if it holds no tensor that is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, unpack_sequence

GOLDEN = 0.6180339887  # multiples of it, modulo 1, are as evenly spread as can be


def map_batch(batch: Any, function: Callable[[Any], Any], whole: Callable[[Any], bool] = lambda part: False) -> Any:
    """Apply a function to every leaf of nested lists, tuples, mappings and dataclasses, and to `whole` parts."""

    def mapped(part: Any) -> Any:
        return map_batch(part, function, whole)

    if whole(batch) or isinstance(batch, PackedSequence):
        return function(batch)
    if isinstance(batch, Mapping):
        return _same_mapping(batch, {key: mapped(value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(mapped, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(mapped, batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = copy.copy(batch)  # not replace(): fields that the constructor does not take are mapped as well
        for field in dataclasses.fields(batch):
            object.__setattr__(changed, field.name, mapped(getattr(batch, field.name)))
        return changed
    return function(batch)


def _same_mapping(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    changed = copy.copy(batch)  # its constructor may take anything, as that of defaultdict does
    for key, value in values.items():
        changed[key] = value
    return changed


def per_example(part: Any, examples: int) -> bool:
    """Whether a part of a batch has one entry for each example, and is not made of parts that have.

    A list as long as the batch that holds no per-example tensor is itself per example: texts, images of all sizes.
    """
    if isinstance(part, Tensor | np.ndarray):
        return part.ndim > 0 and part.shape[0] == examples
    if isinstance(part, PackedSequence):
        return _count_sequences(part) == examples
    if not isinstance(part, list | tuple) or hasattr(part, "_fields") or len(part) != examples:
        return False
    return not any(isinstance(leaf, Tensor | np.ndarray) and per_example(leaf, examples) for _, leaf in leaves(part))


def join(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    """Put two batches of the same make together; what is not per example is taken from the first.

    Raises:
        ValueError: If what is per example in them cannot be joined, as padded sequences of different lengths.
    """
    parts: list[Any] = []
    map_batch(other, parts.append, lambda part: per_example(part, sizes[1]))
    theirs = iter(parts)

    def joined(part: Any) -> Any:
        theirs_part: Any = next(theirs, None)
        if not per_example(part, sizes[0]):
            return part
        if isinstance(part, PackedSequence) and isinstance(theirs_part, PackedSequence):
            return _join_sequences(part, theirs_part)
        if type(part) is type(theirs_part) and isinstance(part, Tensor | np.ndarray):
            if part.shape[1:] == theirs_part.shape[1:]:
                return (
                    torch.cat([part, theirs_part]) if isinstance(part, Tensor) else np.concatenate([part, theirs_part])
                )
        elif type(part) is type(theirs_part):
            return part + theirs_part
        shapes = [list(getattr(p, "shape", [])) or type(p).__name__ for p in (part, theirs_part)]
        raise ValueError(f"two batches cannot be joined: {shapes[0]} does not fit {shapes[1]}")

    return map_batch(one, joined, lambda part: per_example(part, sizes[0]))


def take(batch: Any, start: int, stop: int, examples: int) -> Any:
    """Cut examples [start, stop) out of a batch of `examples`; leaves that are not per example stay whole.

    Raises:
        TypeError: If nothing in the batch is per example.
    """

    def some(part: Any) -> Any:
        return _cut_sequences(part, range(start, stop)) if isinstance(part, PackedSequence) else part[start:stop]

    return _cut(batch, some, examples)


def spread_out(batch: Any, examples: int) -> Any:
    """The same examples in another order, in which the first few come from everywhere: a loader may sort by length.

    Raises:
        TypeError: If nothing in the batch is per example.
    """
    order = sorted(range(examples), key=lambda i: i * GOLDEN % 1)

    def reorder(part: Any) -> Any:
        if isinstance(part, PackedSequence):
            return _cut_sequences(part, order)
        return part[order] if isinstance(part, Tensor | np.ndarray) else type(part)(part[i] for i in order)

    return _cut(batch, reorder, examples)


def _cut(batch: Any, cut: Callable[[Any], Any], examples: int) -> Any:
    found = []

    def cut_if_per_example(part: Any) -> Any:
        if not per_example(part, examples):
            return part
        found.append(part)
        return cut(part)

    taken = map_batch(batch, cut_if_per_example, lambda part: per_example(part, examples))
    if not found:
        raise TypeError(f"cannot take single examples out of a batch of type {type(batch).__name__}")
    return taken


def leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a batch, packed sequences padded, with the name of the innermost key or field that holds it."""
    if isinstance(batch, PackedSequence):
        yield name, _pad_sequences(batch)
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, str(key))
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        for key, value in zip(batch._fields, batch, strict=True):  # type: ignore[attr-defined]
            yield from leaves(value, key)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from leaves(value, name)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name), field.name)
    else:
        yield name, batch


def alike(one: Any, other: Any) -> bool:
    """Whether two batches hold the same tensors; nan is like nan."""
    pairs = zip((leaf for _, leaf in leaves(one)), (leaf for _, leaf in leaves(other)), strict=False)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in tensors)


def to_cpu(batch: Any) -> Any:
    """A copy of a batch in host memory, cut loose from any graph."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return _copy_sequences(leaf)
        return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf

    return map_batch(batch, copied)


def padded_cat(parts: list[Tensor], value: float = 0) -> Tensor:
    """Concatenate along the examples; where other axes differ (padded sequences), fill up with `value`."""
    if len({part.shape[1:] for part in parts}) <= 1:
        return torch.cat(parts)
    widest = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].dim())]
    whole = parts[0].new_full((sum(len(part) for part in parts), *widest), value)
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        start += len(part)
    return whole


# Sequences of different lengths that torch has packed into one tensor: time leads there and sequences are sorted by
# length, so an index into it means nothing. They are unpacked, chosen and packed again.


def _count_sequences(packed: PackedSequence) -> int:
    return int(packed.batch_sizes[0])  # every one of them has a first element


def _cut_sequences(packed: PackedSequence, numbers: Iterable[int]) -> PackedSequence:
    sequences = unpack_sequence(packed)
    return pack_sequence([sequences[number] for number in numbers], enforce_sorted=False)


def _copy_sequences(packed: PackedSequence) -> PackedSequence:
    with torch.no_grad():
        return _cut_sequences(packed.cpu(), range(_count_sequences(packed)))


def _join_sequences(one: PackedSequence, other: PackedSequence) -> PackedSequence:
    return pack_sequence([*unpack_sequence(one), *unpack_sequence(other)], enforce_sorted=False)


def _pad_sequences(packed: PackedSequence) -> Tensor:
    return pad_packed_sequence(packed, batch_first=True)[0]
