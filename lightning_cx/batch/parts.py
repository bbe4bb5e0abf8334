"""Walk through a batch, whatever it is made of: its tensors with their names, and a copy with other tensors.

A batch is any nesting of mappings, lists, tuples, dataclasses and plain objects that hold tensors, as the batches of
graph libraries do. What is neither such a container nor a tensor (a number, a text) is a leaf like a tensor.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Path = tuple[Any, ...]  # keys, fields and positions on the way from the batch to a part


@dataclass(frozen=True)
class Part:
    """One tensor or array of a batch.

    Attributes:
        path: Keys, fields and positions that lead to it.
        value: As the batch holds it.
    """

    path: Path
    value: Tensor | np.ndarray | PackedSequence

    @property
    def key(self) -> str:
        """The innermost key or field on the way, lower case; empty where there are positions alone."""
        return next((key.lower() for key in reversed(self.path) if isinstance(key, str)), "")

    @property
    def tensor(self) -> Tensor:
        """The value as a tensor; packed sequences padded, with the sequences along the first axis."""
        if isinstance(self.value, PackedSequence):
            return nn.utils.rnn.pad_packed_sequence(self.value, batch_first=True)[0]
        return torch.as_tensor(self.value)

    @property
    def length(self) -> int | None:
        """How many entries it has along its first axis; None for a scalar."""
        if isinstance(self.value, PackedSequence):
            return int(self.value.batch_sizes[0])  # every sequence has a first element
        if isinstance(self.value, Tensor) and self.value.is_nested:
            return int(self.value.size(0))
        return None if self.value.ndim == 0 else int(self.value.shape[0])

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        if isinstance(self.value, np.ndarray):
            return self.value.size
        return (self.value.data if isinstance(self.value, PackedSequence) else self.value).numel()

    @property
    def sizes(self) -> str:
        """Its shape in words; an axis along which sequences differ in length is called `ragged`."""
        if isinstance(self.value, PackedSequence):
            return f"[{self.length}, ragged{''.join(f', {n}' for n in self.value.data.shape[1:])}]"
        if isinstance(self.value, Tensor) and self.value.is_nested:
            own = next(iter(self.value.unbind()), None)
            return f"[{self.length}, ragged{''.join(f', {n}' for n in ([] if own is None else own.shape[1:]))}]"
        return str(list(self.value.shape))


def parts_of(batch: Any, path: Path = ()) -> Iterator[Part]:
    """Yield every tensor and array of a batch with the way to it."""
    if isinstance(batch, Tensor | np.ndarray | PackedSequence):
        yield Part(path, batch)
        return
    for key, value in children_of(batch):
        yield from parts_of(value, (*path, key))


def children_of(batch: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container holds, with keys; nothing if it is no container."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        yield from zip(batch._fields, batch, strict=True)  # type: ignore[attr-defined]
    elif isinstance(batch, list | tuple):
        yield from enumerate(batch)
    elif _is_dataclass(batch):
        yield from ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    elif is_graph_batch(batch):
        yield from batch.to_dict().items()
    else:
        yield from _fields_of_object(batch).items()


def _is_dataclass(batch: Any) -> bool:
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)


def is_graph_batch(batch: Any) -> TypeGuard[Any]:
    """Whether something has the methods of a batch of PyTorch Geometric's."""
    wanted = ("to_dict", "index_select", "from_data_list")
    return not isinstance(batch, type | Tensor) and all(hasattr(batch, name) for name in ("num_graphs", *wanted))


def _fields_of_object(batch: Any) -> dict[str, Any]:
    """What a plain object holds, if a tensor is among it."""
    if isinstance(batch, type | nn.Module | str | bytes) or callable(batch) or not hasattr(batch, "__dict__"):
        return {}
    fields = vars(batch)
    found = any(isinstance(value, Tensor | np.ndarray | PackedSequence) for value in fields.values())
    return dict(fields) if found else {}


def map_batch(batch: Any, function: Callable[[Any], Any], whole: Callable[[Any], bool] = lambda part: False) -> Any:
    """Apply a function to every leaf of a batch, and to `whole` parts, and return a batch of the same make."""

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
    if _is_dataclass(batch):
        changed = copy.copy(batch)  # not replace(): fields that the constructor does not take are mapped as well
        for field in dataclasses.fields(batch):
            object.__setattr__(changed, field.name, mapped(getattr(batch, field.name)))
        return changed
    if is_graph_batch(batch):
        changed = copy.copy(batch)
        for key, value in batch.to_dict().items():
            changed[key] = mapped(value)
        return changed
    if fields := _fields_of_object(batch):
        changed = copy.copy(batch)
        for key, value in fields.items():
            object.__setattr__(changed, key, mapped(value))
        return changed
    return function(batch)


def _same_mapping(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    changed = copy.copy(batch)  # its constructor may take anything, as that of defaultdict does
    for key, value in values.items():
        changed[key] = value
    return changed


def replaced(batch: Any, path: Path, value: Any) -> Any:
    """Return a batch in which one part is another; the batch that was given stays as it is."""
    held = next(part for part in parts_of(batch) if part.path == path).value
    return map_batch(batch, lambda leaf: value if leaf is held else leaf)


def names_of(parts: list[Part]) -> dict[Path, str]:
    """Return a name for each part: its innermost key where no other part has it, else the way to it."""
    keys = Counter(part.key for part in parts)
    last = {part.path: part.path and isinstance(part.path[-1], str) for part in parts}
    return {
        part.path: str(part.path[-1]) if last[part.path] and keys[part.key] == 1 else _written(part.path)
        for part in parts
    }


def _written(path: Path) -> str:
    return "batch" + "".join(f"[{key!r}]" if isinstance(key, int) else f".{key}" for key in path)
