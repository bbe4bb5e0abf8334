"""The network that made the targets, as far as its weights are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Teacher: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path


def teacher_weights(teacher: Teacher) -> dict[str, Tensor]:
    """Take the weights of a teacher by name, from a module, its state dict, or a file that holds one.

    Args:
        teacher: A module, a state dict, or the path of a checkpoint (Lightning's, or a saved state dict).

    Raises:
        ValueError: If there is no such file, it holds more than weights and plain values, or no tensors.
    """
    if isinstance(teacher, nn.Module):
        teacher = teacher.state_dict()
    if isinstance(teacher, str | Path):
        if not Path(teacher).is_file():
            raise ValueError(f"there is no file {str(teacher)!r}: pass a checkpoint, a state dict or a module.")
        teacher = _from_file(Path(teacher))
    state: Any = teacher.get("state_dict", teacher) if isinstance(teacher, Mapping) else {}
    weights = {name: value.detach().cpu() for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError("the teacher has no weights: pass a module, its state dict, or a file that holds one.")
    return weights


def _from_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler runs into what it finds: there is no one type
        raise ValueError(
            f"the file {str(path)!r} is not read as weights ({type(error).__name__}): load it yourself, and pass the "
            'module or its state dict, as torch.load(path, weights_only=False)["state_dict"] if you trust the file.'
        ) from error


def layer_of(weights: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the teacher's layer of the same name, or of the one whose name ends or begins alike.

    A student that is wrapped, as `net.0`, has a teacher that is not, as `0`, and the other way round.

    Raises:
        ValueError: If there is none, or more than one.
    """
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    same = [name for name in names if name == layer]
    alike = same or [name for name in names if layer.endswith(f".{name}") or name.endswith(f".{layer}")]
    if len(alike) != 1:
        raise ValueError(f"the teacher has {len(alike)} layers that could be {layer!r}; it has {', '.join(names)}")
    weight = weights[f"{alike[0]}.weight"]
    if weight.dim() < 2:
        raise ValueError(f"the teacher's layer {alike[0]!r} is no linear or convolution layer, as {layer!r} is one")
    return weight, weights.get(f"{alike[0]}.bias")
