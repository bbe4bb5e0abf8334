"""Everything that a run of a module may change, and how to put it back."""

from __future__ import annotations

import enum
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from types import FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOG_LENGTH = 10_000  # a longer list is a log: only its last elements are looked into, the others are shared

FEW_OBJECTS, FEW_ITEMS = 10_000, 100  # how far a data set is searched for generators; long lists are its data

_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, slice})
_OPAQUE = (type, ModuleType, FunctionType, MethodType, MappingProxyType, enum.Enum, BaseException)
# Objects of these packages run threads, hold files, data sets or whole trainers: none of our business.
_FOREIGN = frozenset(
    {"aim", "asyncio", "clearml", "comet_ml", "concurrent", "lightning", "lightning_fabric", "logging", "mlflow"}
    | {"multiprocessing", "neptune", "pytorch_lightning", "queue", "socket", "tensorboard", "tensorboardX"}
    | {"tensorflow", "threading", "torch", "wandb", "weakref", "datasets", "h5py", "pandas", "polars", "pyarrow"}
)


class Snapshot:
    """The state of all that can be reached from a module through attributes and containers.

    Containers and objects stay the same objects and get their contents back, so it does not matter from where they
    are reached. Tensors are never written to, since a graph of the user may hold them: until `restore`, clones
    stand in their place, one for each tensor however often it is reached.

    Attributes:
        parameters: Every Parameter that was met; these stay in place.
    """

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self._undo: list[Callable[[], object]] = []
        self._stand_ins: dict[int, tuple[Any, Any]] = {}  # by id; holds the originals so that ids stay theirs
        self._waiting: list[Any] = []

    def take(self, value: Any) -> None:
        """Remember the state of `value` and of all that it holds, and put clones in the place of tensors."""
        self._stand_in(value)
        while self._waiting:
            self._remember(self._waiting.pop())

    def take_streams(self, value: Any) -> None:
        """Remember only where the random generators that `value` holds stand, as those of a data set's transforms."""
        waiting, seen = [value], {id(value): value}
        while waiting and len(seen) < FEW_OBJECTS:
            one = waiting.pop()
            self._stream(one)
            held = one if isinstance(one, list | tuple | dict) else getattr(one, "__dict__", ())
            held = held.values() if isinstance(held, dict) else held
            for item in held if len(held) <= FEW_ITEMS else ():
                if id(item) not in seen and type(item) not in _ATOMS and not isinstance(item, (*_OPAQUE, Tensor)):
                    seen[id(item)] = item
                    waiting.append(item)

    def restore(self) -> None:
        """Put everything back as it was when it was taken."""
        for undo in self._undo:
            undo()

    def _stand_in(self, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        known = self._stand_ins.get(id(value))
        if known is not None:
            return known[1]
        result = value
        if isinstance(value, nn.Parameter):
            self.parameters.append(value)
        elif isinstance(value, Tensor):
            result = _clone(value)
        elif isinstance(value, tuple):
            result = self._tuple(value)
        elif not isinstance(value, _OPAQUE):
            self._waiting.append(value)
        self._stand_ins[id(value)] = (value, result)
        return result

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self._stand_in(item) for item in value]
        if all(map(_is, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)

    def _remember(self, value: Any) -> None:
        if isinstance(value, dict):
            self._dictionary(value)
        elif isinstance(value, list | deque):
            self._sequence(value)
        elif isinstance(value, set):
            saved = value.copy()
            self._undo.append(lambda: value == saved or (value.clear(), value.update(saved)))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, nn.Module) or not _is_foreign(type(value)):
            self._object(value)
        else:
            self._stream(value)

    def _dictionary(self, value: dict[Any, Any]) -> None:
        saved = dict(value)
        # The base class writes: a user's own __setitem__ may do more than set.
        base: Any = OrderedDict if isinstance(value, OrderedDict) else dict

        def undo() -> None:
            if (
                len(value) == len(saved)
                and all(map(_is, value, saved))
                and all(map(_is, value.values(), saved.values()))
            ):
                return
            base.clear(value)
            for key, item in saved.items():
                base.__setitem__(value, key, item)

        self._undo.append(undo)
        if not _ATOMS.issuperset(map(type, saved.values())):
            for key, item in saved.items():
                stand_in = self._stand_in(item)
                if stand_in is not item:
                    base.__setitem__(value, key, stand_in)

    def _sequence(self, value: list[Any] | deque[Any], inside: bool = True) -> None:
        saved = list(value)

        def undo() -> None:
            if len(value) != len(saved) or not all(map(_is, value, saved)):
                value.clear()
                value.extend(saved)

        self._undo.append(undo)
        if inside and not _ATOMS.issuperset(map(type, saved)):
            for index in range(max(0, len(saved) - LOG_LENGTH), len(saved)):
                item = saved[index]
                stand_in = self._stand_in(item)
                if stand_in is not item:
                    value[index] = stand_in

    def _array(self, value: np.ndarray) -> None:
        if not value.flags.writeable or isinstance(value, np.memmap):
            return
        saved = value.copy()
        self._undo.append(lambda: np.copyto(value, saved))

    def _object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            appended = getattr(value, "_defaults", None)
            if isinstance(value, nn.Module) and isinstance(appended, dict):
                # The list states of a torchmetrics.Metric can hold an epoch; update only ever appends to them.
                for state in map(attributes.get, appended):
                    if isinstance(state, list) and id(state) not in self._stand_ins:
                        self._stand_ins[id(state)] = (state, state)
                        self._sequence(state, inside=False)
            self._stand_in(attributes)
        for name in (n for kind in type(value).__mro__ for n in _slots(kind)):
            self._slot(value, name)
        self._stream(value)

    def _slot(self, value: Any, name: str) -> None:
        if not hasattr(value, name):
            self._undo.append(lambda: hasattr(value, name) and object.__delattr__(value, name))
            return
        saved = getattr(value, name)
        self._undo.append(lambda: object.__setattr__(value, name, saved))
        stand_in = self._stand_in(saved)
        if stand_in is not saved:
            object.__setattr__(value, name, stand_in)

    def _stream(self, value: Any) -> None:
        """Remember where a random stream of the user's own stands."""
        if isinstance(value, torch.Generator):
            self._rewind(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._rewind(lambda state: setattr(bits, "state", state), bits.state)
        elif isinstance(value, np.random.RandomState):
            self._rewind(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            self._rewind(value.setstate, value.getstate())

    def _rewind(self, set_state: Callable[[Any], object], state: Any) -> None:
        self._undo.append(lambda: set_state(state))


def _is(one: object, other: object) -> bool:
    return one is other


def _clone(value: Tensor) -> Tensor:
    if not value.is_leaf:
        with torch.enable_grad():  # what hangs on the user's graph still does
            return value.clone()
    return value.detach().clone().requires_grad_(value.requires_grad)


def _slots(kind: type) -> list[str]:
    names = kind.__dict__.get("__slots__", ())
    names = (names,) if isinstance(names, str) else names
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


_foreign: dict[type, bool] = {}


def _is_foreign(kind: type) -> bool:
    if kind not in _foreign:
        roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
        _foreign[kind] = not roots.isdisjoint(_FOREIGN)
    return _foreign[kind]
