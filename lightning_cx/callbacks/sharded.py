"""Parameters that are cut in pieces over processes, and the whole ones that the graph of a loss shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from lightning_cx._torch import place_of_piece, sharded_pieces, unsharded


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has cut parameters of the module in pieces."""
    return any(sharded_pieces(part) for part in module.modules())


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
    whole = {name: unsharded(piece) for name, piece in _named_pieces(module) if name in parameters}
    return {**parameters, **whole}


def _named_pieces(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, part in module.named_modules():
        for piece in sharded_pieces(part):
            # The group of a module holds what its children left to it.
            of = {id(child): name for name, child in part.named_modules(prefix=prefix)}
            module, name = place_of_piece(piece)
            yield f"{of.get(id(module), '')}.{name}".lstrip("."), piece
