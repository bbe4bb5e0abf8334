"""Every private name of torch that the package uses, in one place.

PyTorch has no public way to see what an autograd node saved, who holds a saved tensor, or when a backward ends. What
is used instead is listed here, so that a release that renames something breaks one file; `tests/test_torch_names.py`
holds each name, and all that the records of `lightning_cx.gradients` read off nodes, to the installed torch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import SavedTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import _Holder

Node = Any  # torch.autograd.graph.Node; saved tensors are attributes that its type does not declare
BatchNorm = _BatchNorm
InstanceNorm = _InstanceNorm
preserve_version_counter = _unsafe_preserve_version_counter
NODE_TYPES: Any = torch._C._functions  # type: ignore[attr-defined]  # the classes of torch's own nodes, by name
_LEAF: type = NODE_TYPES.AccumulateGrad

# Before SavedTensor.data existed, nothing told what holds a saved tensor.
SEES_CHECKPOINTS = hasattr(SavedTensor, "data")

# Autograd nodes


def saved(node: Node, name: str) -> Any:
    """Return what an autograd node saved under a name: a tensor, a number, a tuple or None."""
    return getattr(node, "_saved_" + name)


def has_saved(node: Node, name: str) -> bool:
    """Return whether nodes of this type save something under a name; its value is not unpacked."""
    return hasattr(type(node), "_saved_" + name)


@cache
def saved_names(kind: type) -> tuple[str, ...]:
    """List the names under which a type of node saves something."""
    return tuple(name.removeprefix("_saved_") for name in dir(kind) if name.startswith("_saved_"))


@cache
def _packed_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def output_metadata(node: Node) -> Any:
    """Return shape, dtype and device of each output of a node's forward, which its backward takes as input."""
    return node._input_metadata


def is_leaf(node: Node) -> bool:
    """Return whether a node accumulates the gradient of a parameter, which is its `variable`."""
    return type(node) is _LEAF


def output_shape(node: Node, output: int = 0) -> tuple[int, ...]:
    """Return the shape of one output of a node, or of a parameter."""
    return tuple(node.variable.shape if type(node) is _LEAF else node._input_metadata[output].shape)


def is_checkpointed(node: Node) -> bool:
    """Return whether non-reentrant checkpointing holds the saved tensors of a node; they unpack only once."""
    packed = (getattr(node, name, None) for name in _packed_names(type(node)))
    return any(type(getattr(held, "data", None)) is _Holder for held in packed)


def any_checkpoint_alive() -> bool:
    """Return whether any tensor of the process is held by non-reentrant checkpointing."""
    return any(type(held) is _Holder for held in gc.get_referrers(_Holder))


def call_after_backward(function: Callable[[], None]) -> None:
    """Have a function called once the backward that runs now has ended."""
    torch.autograd.Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]


# Tensors and modules


def backward_hooks(tensor: Tensor) -> dict[int, Any] | None:
    """Return the hooks on the gradient of a tensor."""
    return tensor._backward_hooks


def drop_backward_hooks(tensor: Tensor) -> None:
    """Make a tensor as if it had never had a hook on its gradient."""
    tensor._backward_hooks = None


def post_accumulate_hooks(tensor: Tensor) -> Any:
    """Return the hooks that run once a gradient was accumulated, such as an optimizer inside the backward."""
    return tensor._post_accumulate_grad_hooks  # type: ignore[attr-defined]


def version(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return tensor._version


def buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers, to be changed without its `__setattr__`."""
    return module._buffers


# The compiler: its import alone takes a second, so it is asked only where something has loaded it


def dynamo() -> Any:
    """Return `torch._dynamo` if it is loaded, else None."""
    return sys.modules.get("torch._dynamo")


def anything_compiled() -> bool:
    """Return whether the compiler has compiled anything so far in this process."""
    utilities = sys.modules.get("torch._dynamo.utils")
    return utilities is not None and utilities.counters.get("frames", {}).get("total", 0) > 0


def is_compiled_wrapper(part: nn.Module) -> bool:
    """Return whether a module is what `torch.compile(module)` returns."""
    return dynamo() is not None and isinstance(part, dynamo().OptimizedModule)


def is_compiled_in_place(part: nn.Module) -> bool:
    """Return whether `module.compile()` was called on a module."""
    return part._compiled_call_impl is not None


def sharded_pieces(part: nn.Module) -> list[Any]:
    """Return the parameters that `fully_shard` has cut in pieces and handed to a module to look after."""
    state = getattr(part, "_get_fsdp_state", None)
    group = None if state is None else state()._fsdp_param_group
    return [] if group is None else group.fsdp_params


def unsharded(piece: Any) -> Tensor:
    """Return the whole parameter that a module shows in place of a piece while it runs."""
    return piece._unsharded_param


def place_of_piece(piece: Any) -> tuple[nn.Module, str]:
    """Return the module that holds a piece, and the piece's name there."""
    return piece._module_info.module, piece._module_info.param_name
