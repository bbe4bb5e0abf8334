"""How far a step of an optimizer moves each parameter along its gradient: learning rate times preconditioner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

DORMANT = 1e-6
"""A parameter whose gradient is smaller than this share of the largest, root mean square, does not move the outputs by
what it learns: the bias before a batch normalisation, whose gradient is rounding."""


@dataclass(frozen=True)
class Preconditioner:
    """What the optimizer makes of gradients, one number for each parameter.

    Entry by entry a preconditioner of Adam's would blow up where a parameter is rarely used.

    Attributes:
        scale: By what the gradient of each parameter is multiplied, by name, apart from the learning rate.
        known: Whether that is known; else all scales are 1.
        words: The same in words.
    """

    scale: dict[str, float]
    known: bool
    words: str


def preconditioner(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> Preconditioner:
    """Read the preconditioner of an optimizer off its state.

    Args:
        optimizer: SGD, Muon, or any that keeps ``exp_avg_sq`` (Adam and its family, those of other libraries too),
            ``square_avg`` (RMSprop, Adadelta), ``exp_inf`` (Adamax) or ``sum`` (Adagrad) for each parameter.
        parameters: By name; those that it does not hold, and those whose gradient is rounding, get 0.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> preconditioner(SGD(net.parameters(), lr=0.1, momentum=0.75), dict(net.named_parameters())).scale["bias"]
        4.0
    """
    name = type(optimizer).__name__
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scale: dict[str, float] = {}
    sizes: dict[str, float] = {}
    known = True
    for own, parameter in parameters.items():
        group, state = groups.get(id(parameter)), optimizer.state.get(parameter, {})
        if group is None:
            scale[own] = 0.0
            continue
        found = _scale(optimizer, group, state)
        known = known and found is not None
        scale[own] = 1.0 if found is None else found[0]
        if found is not None and found[1] is not None:
            sizes[own] = found[1]
    if not known:
        return Preconditioner(dict.fromkeys(scale, 1.0), False, f"the preconditioner of {name} is not known")
    largest = max(sizes.values(), default=0.0)
    for own, size in sizes.items():
        if size <= DORMANT * largest:
            scale[own] = 0.0
    return Preconditioner(scale, True, f"preconditioner of {name}")


def _scale(
    optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[float, float | None] | None:
    """The scale of one parameter, and the root mean square of its gradient where that sets it; None if not known."""
    eps = float(group.get("eps", 0.0) or 0.0)
    if "exp_avg_sq" in state:
        squares = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        beta2 = float(group["betas"][1]) if "betas" in group else 0.999
        made = float(state["step"]) if "step" in state else math.inf
        return _inverse(math.sqrt(_mean(squares) / (1 - beta2**made)), eps)
    if "square_avg" in state:
        size = math.sqrt(_mean(state["square_avg"]) + (eps if "acc_delta" in state else 0.0))
        moved = math.sqrt(_mean(state["acc_delta"]) + eps) if "acc_delta" in state else 1.0
        momentum = float(group.get("momentum", 0.0))
        found = _inverse(size, eps)
        return found[0] * moved / (1 - momentum), found[1]
    if "exp_inf" in state:
        return _inverse(_mean(state["exp_inf"]), eps)
    if "sum" in state:
        return _inverse(math.sqrt(_mean(state["sum"])), eps)
    if type(optimizer).__name__ == "Muon" and isinstance(state.get("momentum_buffer"), Tensor):
        return _muon(group, state["momentum_buffer"])
    if isinstance(optimizer, SGD):
        momentum = float(group["momentum"])
        return (1 - float(group["dampening"]) if momentum else 1.0) / (1 - momentum), None
    return None


def _muon(group: Mapping[str, Any], momentum: Tensor) -> tuple[float, float | None]:
    """An orthogonal matrix has as many singular values of one as its smaller side is long."""
    rows, columns = momentum.shape[0], momentum[0].numel()
    matched = group.get("adjust_lr_fn") == "match_rms_adamw"
    adjusted = 0.2 * math.sqrt(max(rows, columns)) if matched else math.sqrt(max(1.0, rows / columns))
    size = float(momentum.detach().double().norm())
    if size == 0:
        return 0.0, 0.0
    return adjusted * math.sqrt(min(rows, columns)) / size, size / math.sqrt(momentum.numel())


def _mean(values: Tensor) -> float:
    return float(values.detach().double().mean())


def _inverse(size: float, eps: float) -> tuple[float, float]:
    return (1 / (size + eps) if size + eps > 0 else 0.0), size
