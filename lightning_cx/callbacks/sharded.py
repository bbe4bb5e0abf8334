"""Parameters that are cut in pieces over processes, and the whole ones that the graph of a loss shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has cut parameters of the module in pieces."""
    return any(_pieces(part) for part in module.modules())


def held_parameters(module: nn.Module) -> dict[str, Parameter]:
    """The parameters of a module by name, as optimizers hold them, at any time.

    From a forward to its backward a module may show the whole parameters in place of the pieces: the outermost one
    does, and all with `reshard_after_forward=False`.
    """
    held = dict(module.named_parameters())
    return held | {name: piece.sharded_param for name, piece in _named_pieces(module) if name in held}


def whole_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stand in the graph of a loss for the parameters of a module, by the same names.

    While a sharded module runs, each piece is put together with those of the other processes; what the forward used,
    and what a gradient arrives at, is the whole one. Others stand for themselves.

    Args:
        module: After a forward pass.
        parameters: Those to look for, as `module.named_parameters()` names them.
    """
    whole = {name: piece._unsharded_param for name, piece in _named_pieces(module) if name in parameters}
    return {**parameters, **whole}


def _named_pieces(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, part in module.named_modules():
        for piece in _pieces(part):
            # The group of a module holds what its children left to it.
            of = {id(child): name for name, child in part.named_modules(prefix=prefix)}
            path = of.get(id(piece._module_info.module), "")
            yield f"{path}.{piece._module_info.param_name}".lstrip("."), piece


def _pieces(part: nn.Module) -> list[Any]:
    state = getattr(part, "_get_fsdp_state", None)
    group = None if state is None else state()._fsdp_param_group
    return [] if group is None else list(group.fsdp_params)
