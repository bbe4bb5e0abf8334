"""Find what code would use up or move on if it ran once more: iterators, open files, random generators.

To run a training step again, or to read an example that training reads later, leaves no trace only if everything that
moves on is put back. Generators can be; an iterator cannot: what it gave is gone. Such things hang on attributes of the
module or the data set, in closures, or in globals that a method names, so it is the code that is followed: from the
method that runs to the names that it mentions.
"""

from __future__ import annotations

import builtins
import functools
import io
import random
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_OBJECTS = 5_000  # how far is searched; what lies deeper is data
MOST_ITEMS = 100  # longer containers are data
STREAMS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Code of these packages does not name what is the user's.
LIBRARIES = frozenset(
    {"lightning", "lightning_cx", "lightning_fabric", "lightning_utilities", "numpy", "pytorch_lightning", "scipy"}
    | {"torch", "torchmetrics", "transformers", "pandas", "sklearn"}
) | frozenset(sys.stdlib_module_names)
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, slice, Tensor, np.ndarray, type)


@dataclass(frozen=True)
class Found:
    """Something that moves on when code runs.

    Attributes:
        thing: The object.
        where: The way to it, as the user would write it: "self.unlabelled", "the global RNG".
    """

    thing: Any
    where: str

    @property
    def is_iterator(self) -> bool:
        """Whether what it gives is gone afterwards."""
        return not isinstance(self.thing, (*STREAMS, io.IOBase))

    def __str__(self) -> str:
        """Return it in words: "self.unlabelled (a list_iterator)"."""
        return f"{self.where} (a {type(self.thing).__name__.lstrip('_')})"


def what_moves(holder: Any, methods: tuple[str, ...]) -> list[Found]:
    """Return the iterators, open files and random generators that methods of an object use.

    Args:
        holder: A module or a data set.
        methods: Where its code is entered.
    """
    return list(_Search(holder, methods).found())


class _Search:
    def __init__(self, holder: Any, methods: tuple[str, ...]) -> None:
        self._seen: dict[int, Any] = {}  # holds what was seen, so that no other object gets its id
        self._waiting: list[tuple[Any, str]] = []
        self._functions: set[CodeType] = set()
        self._root = holder
        self._own = {base.__module__.partition(".")[0] for base in type(holder).__mro__}
        self._enter(holder, "self", methods)

    def found(self) -> Iterator[Found]:
        while self._waiting and len(self._seen) < MOST_OBJECTS:
            thing, where = self._waiting.pop(0)
            if isinstance(thing, (*STREAMS, io.IOBase)) or _is_iterator(thing):
                yield Found(thing, where)
            elif isinstance(thing, dict):
                self._add_items(thing.items(), where)
            elif isinstance(thing, list | tuple | set | frozenset):
                self._add_items(list(enumerate(thing)) if len(thing) <= MOST_ITEMS else (), where)
            elif isinstance(thing, functools.partial):
                self._add(thing.func, where)
                self._add_items(list(enumerate(thing.args)), where)
                self._add_items(thing.keywords.items(), where)
            elif isinstance(thing, MethodType):
                self._add(thing.__self__, where.rpartition(".")[0] or where)
                self._function(thing.__func__, thing.__self__, where.rpartition(".")[0] or where)
            elif isinstance(thing, FunctionType):  # what it calls an argument may be the holder
                self._function(thing, self._root, "self")
            else:
                self._enter(thing, where, ())

    def _add(self, thing: Any, where: str) -> None:
        if isinstance(thing, (*_ATOMS, ModuleType)) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        self._waiting.append((thing, where))

    def _add_items(self, items: Collection[tuple[Any, Any]], where: str) -> None:
        for key, item in items if len(items) <= MOST_ITEMS else ():
            self._add(item, f"{where}[{key!r}]")

    def _enter(self, thing: Any, where: str, methods: tuple[str, ...]) -> None:
        """Follow an object of the user's: the methods that run, or all that its class has; else all it holds."""
        kind = type(thing)
        own = [base for base in kind.__mro__ if not self._is_foreign(base.__module__)]
        if not own:
            if isinstance(thing, nn.Module):
                for name, child in thing.named_children():
                    self._add(child, f"{where}.{name}")
            elif kind.__module__.startswith(("torch.utils.data", "torchvision")):  # Subset, ConcatDataset, transforms
                for name, value in _attributes(thing).items():
                    self._add(value, f"{where}.{name}")
            return
        names = methods or tuple(
            name
            for base in own
            for name, value in vars(base).items()
            if isinstance(value, FunctionType)
            and (not name.startswith("__") or name in ("__call__", "__getitem__", "__getitems__"))
        )
        for name in names:
            if name in _attributes(thing):
                self._add(_attributes(thing)[name], f"{where}.{name}")
            function = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
            function = getattr(function, "__wrapped__", function)
            if isinstance(function, FunctionType):
                self._function(function, thing, where)

    def _function(self, function: FunctionType, holder: Any, where: str) -> None:
        """Follow what a function names: attributes of `self`, globals, variables of an enclosing function."""
        if function.__code__ in self._functions or self._is_foreign(function.__module__):
            return
        self._functions.add(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if cell != CellType():  # else not assigned yet
                self._add(cell.cell_contents, f"the variable {name}")
        for name in _names(function.__code__):
            if name in function.__globals__ and name not in vars(builtins):
                thing = function.__globals__[name]
                if not isinstance(thing, FunctionType) or thing.__module__ == function.__module__:
                    self._add(thing, f"the global {name}")
            if holder is not None:
                self._attribute(holder, name, where)

    def _is_foreign(self, module: str | None) -> bool:
        """Whether a module is of a library other than the holder's own, whose code names nothing of the user's."""
        root = (module or "").partition(".")[0]
        if root in LIBRARIES:
            return True
        file = getattr(sys.modules.get(root), "__file__", None) or ""
        return root not in self._own and ("site-packages" in file or "dist-packages" in file)

    def _attribute(self, holder: Any, name: str, where: str) -> None:
        attributes = _attributes(holder)
        children = attributes.get("_modules", {})
        if name in attributes:
            self._add(attributes[name], f"{where}.{name}")
        elif isinstance(children, dict) and name in children:
            self._add(children[name], f"{where}.{name}")
        else:
            held = next((vars(base)[name] for base in type(holder).__mro__ if name in vars(base)), None)
            if isinstance(held, property) and isinstance(held.fget, FunctionType):
                self._function(held.fget, holder, where)
            elif isinstance(held, FunctionType):
                self._function(held, holder, where)
            elif held is not None and not isinstance(held, staticmethod | classmethod | property):
                self._add(held, f"{where}.{name}")
            elif isinstance(held, staticmethod | classmethod) and isinstance(held.__func__, FunctionType):
                self._function(held.__func__, holder, where)


def _attributes(thing: Any) -> dict[str, Any]:
    held = getattr(thing, "__dict__", None)
    return held if isinstance(held, dict) else {}


def _is_iterator(thing: Any) -> bool:
    return hasattr(type(thing), "__next__") and not isinstance(thing, nn.Module)


def _names(code: CodeType) -> set[str]:
    """Every name that code mentions, that of functions inside it, too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
