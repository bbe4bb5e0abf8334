"""Let what torch.compile has compiled run as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from lightning_cx._torch import dynamo, is_compiled_in_place

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics")  # their classes hold no compiled methods


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled parts inside the block as they were written; compiled code and its guards stay as they are.

    Compiled code calls no hook and hides its parameters, and other batch sizes would compile it anew. Where no
    compiler is loaded nothing happens: its import alone takes a second.
    """
    return torch.compiler.set_stance("force_eager") if dynamo() is not None else nullcontext()


def compiled_parts(module: nn.Module) -> list[str]:
    """Names of the submodules, methods and functions held by a module that `torch.compile` has been applied to.

    Compiled functions that a module only calls, from the globals of its file, are not seen.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
        >>> compiled_parts(net)
        []
        >>> net[1].compile(backend="eager")
        >>> compiled_parts(net)
        ['1']
    """
    if dynamo() is None:
        return []
    found: list[str] = []
    for name, part in module.named_modules():
        if is_compiled_in_place(part):
            found.append(name or type(part).__name__)
        found.extend(f"{name}.{attribute}".strip(".") for attribute in _compiled_functions(part))
    return found


def _compiled_functions(part: nn.Module) -> Iterator[str]:
    own = [kind for kind in type(part).__mro__ if kind.__module__.partition(".")[0] not in LIBRARIES]
    for holder in (part, *own):
        for name, value in vars(holder).items():
            function = type(value) in (FunctionType, MethodType)
            if function and hasattr(value, "get_compiler_config") and name != "_compiled_call_impl":
                yield name
