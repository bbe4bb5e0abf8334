"""Cut examples out of a batch and join batches, without knowing what they are.

The one thing known of a batch is its number of examples N: a part is cut if it has one entry for each example
(`per_example`), and everything else, a scalar, a shared table, a name, stays whole. Cutting by the number of entries
alone would take the pair `(inputs, targets)` of a batch of two for two examples, so a list counts as per example only
if it holds no tensor that is. Graphs are cut with their nodes and edges, sequences of unequal length on demand with
the padding that they would have without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from lightning_cx.batch.graphs import choose_graphs, graphs_in, join_graphs
from lightning_cx.batch.padding import filling, trimmed
from lightning_cx.batch.parts import is_graph_batch, map_batch, parts_of

GOLDEN = 0.6180339887  # multiples of it, modulo 1, are as evenly spread as can be


def per_example(part: Any, examples: int) -> bool:
    """Whether a part of a batch has one entry for each example, and is not made of parts that have.

    A list as long as the batch that holds no per-example tensor is itself per example: texts, images of all sizes.
    """
    if isinstance(part, Tensor) and part.is_nested:
        return part.size(0) == examples
    if isinstance(part, Tensor | np.ndarray):
        return part.ndim > 0 and part.shape[0] == examples
    if isinstance(part, PackedSequence):
        return _count_sequences(part) == examples
    if not isinstance(part, list | tuple) or hasattr(part, "_fields") or len(part) != examples:
        return False
    return not any(per_example(inner.value, examples) for inner in parts_of(part))


def holds_graphs(part: Any) -> bool:
    """Whether a part of a batch holds graphs, whose nodes lie along one axis."""
    return is_graph_batch(part) or graphs_in(part) is not None


def _is_cut(examples: int) -> Callable[[Any], bool]:
    return lambda part: holds_graphs(part) or per_example(part, examples)


def join(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    """Put two batches of the same make together; what is not per example is taken from the first.

    Padded sequences of different lengths are padded to the longer, with what pads the one that is padded already,
    and zeros else.

    Raises:
        ValueError: If what is per example in them cannot be joined, as tensors with different numbers of axes.
    """
    theirs: list[Any] = []
    map_batch(other, theirs.append, _is_cut(sizes[1]))
    remaining = iter(theirs)

    def joined(part: Any) -> Any:
        theirs_part: Any = next(remaining, None)
        if holds_graphs(part):
            return join_graphs(part, theirs_part, sizes)
        if not per_example(part, sizes[0]):
            return part
        if isinstance(part, PackedSequence) and isinstance(theirs_part, PackedSequence):
            return pack_sequence([*unpack_sequence(part), *unpack_sequence(theirs_part)], enforce_sorted=False)
        if isinstance(part, Tensor) and isinstance(theirs_part, Tensor) and part.is_nested:
            return _nested([*part.unbind(), *theirs_part.unbind()], part)
        if isinstance(part, Tensor | np.ndarray) and isinstance(theirs_part, type(part)):
            if part.ndim == theirs_part.ndim:
                return _concatenated(part, theirs_part)
        elif isinstance(part, list | tuple) and type(part) is type(theirs_part):
            return part.__class__([*part, *theirs_part])  # type: ignore[arg-type]
        shapes = [list(getattr(p, "shape", [])) or type(p).__name__ for p in (part, theirs_part)]
        raise ValueError(f"two batches cannot be joined: {shapes[0]} does not fit {shapes[1]}")

    return map_batch(one, joined, _is_cut(sizes[0]))


def _concatenated(one: Tensor | np.ndarray, other: Tensor | np.ndarray) -> Any:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if one.shape[1:] == other.shape[1:]:
            return np.concatenate([np.asarray(one), np.asarray(other)])
        return _concatenated(torch.as_tensor(one), torch.as_tensor(other)).numpy()
    if one.shape[1:] == other.shape[1:]:
        return torch.cat([one, other])
    narrower, wider = sorted((one, other), key=lambda part: part.shape[1:].numel())
    return padded_cat([one, other], filling(wider) or filling(narrower))


def take(batch: Any, start: int, stop: int, examples: int, trim: bool = False) -> Any:
    """Cut examples [start, stop) out of a batch of `examples`; leaves that are not per example stay whole.

    Args:
        batch: What to cut.
        start: First example.
        stop: One past the last.
        examples: Number of examples in the batch.
        trim: Whether padded sequences lose the padding that is there for longer ones (`lightning_cx.batch.padding`).

    Raises:
        TypeError: If nothing in the batch is per example.
    """
    taken = choose(batch, range(start, min(stop, examples)), examples)
    return trimmed(taken, batch, range(start, min(stop, examples)), examples) if trim else taken


def choose(batch: Any, chosen: Sequence[int], examples: int) -> Any:
    """Return a batch of the chosen examples, in their order.

    Raises:
        TypeError: If nothing in the batch is per example.
    """
    found = False

    def cut(part: Any) -> Any:
        nonlocal found
        if holds_graphs(part):
            found = True
            return choose_graphs(part, chosen, examples)
        if not per_example(part, examples):
            return part
        found = True
        if isinstance(part, PackedSequence):
            sequences = unpack_sequence(part)
            return pack_sequence([sequences[number] for number in chosen], enforce_sorted=False)
        if isinstance(part, Tensor) and part.is_nested:
            rows = part.unbind()
            return _nested([rows[number] for number in chosen], part)
        if isinstance(part, Tensor | np.ndarray):
            if isinstance(chosen, range) and chosen.step == 1:
                return part[chosen.start : chosen.stop]
            return part[list(chosen)]
        return type(part)(part[number] for number in chosen)

    taken = map_batch(batch, cut, _is_cut(examples))
    if not found:
        raise TypeError(f"cannot take single examples out of a batch of type {type(batch).__name__}")
    return taken


def _nested(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=like.layout)


def spread_out(batch: Any, examples: int) -> Any:
    """The same examples in another order, in which the first few come from everywhere: a loader may sort by length.

    Raises:
        TypeError: If nothing in the batch is per example.
    """
    return choose(batch, sorted(range(examples), key=lambda i: i * GOLDEN % 1), examples)


def leaves(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch, packed sequences padded, with the name of the innermost key or field that holds it."""
    for part in parts_of(batch):
        yield part.key, part.tensor


def alike(one: Any, other: Any) -> bool:
    """Whether two batches hold the same tensors; nan is like nan."""
    pairs = list(zip(parts_of(one), parts_of(other), strict=False))
    return all(_same(a.value, b.value) for a, b in pairs)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, PackedSequence):
        return _same(one.data, other.data) and torch.equal(one.batch_sizes, other.batch_sizes)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    if one.is_nested:
        return one.size(0) == other.size(0) and all(map(_same, one.unbind(), other.unbind()))
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def to_cpu(batch: Any) -> Any:
    """A copy of a batch in host memory, cut loose from any graph."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            with torch.no_grad():
                return pack_sequence(unpack_sequence(leaf.cpu()), enforce_sorted=False)
        return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf

    return map_batch(batch, copied)


def padded_cat(parts: list[Tensor], value: float | Sequence[float] = 0) -> Tensor:
    """Concatenate along the examples; where other axes differ (padded sequences), fill up with `value`."""
    if len({part.shape[1:] for part in parts}) <= 1:
        return torch.cat(parts)
    widest = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].dim())]
    whole = parts[0].new_full((sum(len(part) for part in parts), *widest), value)  # type: ignore[arg-type]
    start = 0
    for part in parts:
        whole[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        start += len(part)
    return whole


def _count_sequences(packed: PackedSequence) -> int:
    return int(packed.batch_sizes[0])  # every one of them has a first element
