"""What an optimizer of PyTorch makes of curvature, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_cx.functional.step_size import step_gain

MEMORIES = 10
"""Momentum's memories, of 1 / (1 - beta1) steps each, after which a preconditioner counts as standing still.

A mean over t squared gradients moves by a share of 1 / t in a step, so by a tenth at most within one memory. At its
first step the ratio of Adam was 2.3 in the run of tests/trainer/test_step_size_in_a_fit.py that took 150 steps to come
to the edge.
"""


class UnsupportedOptimizerError(ValueError):
    """The edge of stability of this optimizer is not known; the message says which and why."""


@dataclass(frozen=True, eq=False)
class StepGains:
    """How strongly an optimizer answers to curvature in each entry of each parameter.

    With G the diagonal matrix of all gains and D that of all decays, steps settle as long as the largest eigenvalue of
    ``G^1/2 (H + D) G^1/2`` is below 1, H the Hessian of the training loss and the preconditioner held fixed. That holds
    exactly, also where learning rates and momenta differ from group to group, if no direction is concave: there is no
    other place than z = -1 at which a root can leave the unit circle.

    Attributes:
        gain: By name, ``[]`` float64 if all entries have the same gain, else float32 or wider in the parameter's shape.
            0 for what the optimizer does not move.
        decay: By name, the L2 penalty that is added to the gradient.
        preconditioner: What divides the gradient, in words.
        forming: Why the preconditioner cannot be taken as held fixed yet; empty where it can.
    """

    gain: Mapping[str, Tensor]
    decay: Mapping[str, float]
    preconditioner: str
    forming: str = ""

    def __str__(self) -> str:
        largest = max((float(g.max()) for g in self.gain.values() if g.numel()), default=0.0)
        return f"{self.preconditioner}; gains up to {largest:.4g} in {len(self.gain)} parameters"

    @property
    def common(self) -> tuple[float, float] | None:
        """Gain and decay, where they are the same for all parameters."""
        pairs = {(float(g), self.decay[name]) if g.dim() == 0 else None for name, g in self.gain.items()}
        return pairs.pop() if len(pairs) == 1 else None

    def flat(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Gain and decay of every entry, ``[P]`` each in float32 or wider, parameters one after another.

        Args:
            parameters: By name, those that the gains are of; their order counts.
        """
        gains = [self.gain[name].to(p.device).expand(p.shape).flatten() for name, p in parameters.items()]
        decays = [torch.full_like(gain, self.decay[name]) for gain, name in zip(gains, parameters, strict=True)]
        return torch.cat(gains), torch.cat(decays)


def step_gains(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> StepGains:
    """Read off an optimizer how strongly it answers to curvature, with its preconditioner as it stands.

    SGD has none. Adam and AdamW divide by ``(1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps)``, v the running mean of
    squared gradients (its maximum with `amsgrad`), RMSprop by ``sqrt(v) + eps`` (with `centered` less the square of the
    running mean). Weight decay is curvature, but for AdamW's, which shrinks the weights beside the step.

    Args:
        optimizer: `SGD`, `Adam`, `AdamW` or `RMSprop` of `torch.optim`, itself and not a class derived from it.
        parameters: By name, the parameters themselves, not copies.

    Returns:
        StepGains of the parameters; 0 for one that is in no group or has had no gradient yet.

    Raises:
        UnsupportedOptimizerError: If it is another optimizer, maximises, is to make its first step still, or its
            numbers are out of range.

    References:
        Cohen et al. 2022, "Adaptive gradient methods at the edge of stability".

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> print(step_gains(SGD(net.parameters(), lr=0.1, momentum=0.9), dict(net.named_parameters())))
        no preconditioner (SGD); gains up to 0.02632 in 2 parameters
    """
    name = type(optimizer).__name__
    if type(optimizer) not in _RULES:
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise UnsupportedOptimizerError(f"the edge of stability is defined for {known}, not for {name}")
    words, rule = _RULES[type(optimizer)]
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    gain = {own: torch.zeros((), dtype=torch.float64) for own in parameters}
    forming = ""
    decay = dict.fromkeys(parameters, 0.0)
    for own, parameter in parameters.items():
        group, state = groups.get(id(parameter)), optimizer.state.get(parameter, {})
        if group is None or not (state or rule is _sgd):
            continue
        if group.get("maximize") or parameter.is_complex():
            why = "it maximises" if group.get("maximize") else f"{own} is complex"
            raise UnsupportedOptimizerError(f"the edge of stability of this {name} is not defined: {why}")
        try:
            gain[own], decay[own] = rule(group, state)
        except ValueError as error:
            raise UnsupportedOptimizerError(f"{name}: {error}") from error
        forming = forming or _forming(name, group, state)
    if rule is not _sgd and not any(optimizer.state.get(p) for p in parameters.values()):
        raise UnsupportedOptimizerError(f"{name} has made no step yet, so its preconditioner is not known")
    return StepGains(gain, decay, words, forming)


Rule: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Tensor, float]]


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    del state
    how = float(group["momentum"]), float(group["dampening"]), bool(group["nesterov"])
    return _scalar(step_gain(float(group["lr"]), *how)), float(group["weight_decay"])


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    return _adam_step(group, state, decoupled=bool(group.get("decoupled_weight_decay", False)))


def _adamw(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    return _adam_step(group, state, decoupled=True)


def _adam_step(group: Mapping[str, Any], state: Mapping[str, Any], decoupled: bool) -> tuple[Tensor, float]:
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    (beta1, beta2), steps = map(float, group["betas"]), float(state["step"])
    squares = _wide(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
    divisor = (squares / (1 - beta2**steps)).sqrt() + float(group["eps"])
    shrinkage = rate * decay if decoupled else 0.0
    gain = step_gain(rate, momentum=beta1, dampening=beta1, shrinkage=shrinkage)
    return gain / (1 - beta1**steps) / divisor, 0.0 if decoupled else decay


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    squares = _wide(state["square_avg"])
    if group["centered"]:
        squares = (squares - _wide(state["grad_avg"]).square()).clamp_min(0)
    gain = step_gain(float(group["lr"]), momentum=float(group["momentum"]))
    return gain / (squares.sqrt() + float(group["eps"])), float(group["weight_decay"])


def _forming(name: str, group: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    if "step" not in state:
        return ""
    made, momentum = int(state["step"]), float(group["betas"][0] if "betas" in group else group["momentum"])
    needed = math.ceil(round(MEMORIES / (1 - momentum), 6))
    if made >= needed:
        return ""
    return f"{name} has made {made} of {needed} steps after which its preconditioner changes slowly"


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


_RULES: dict[type[Optimizer], tuple[str, Rule]] = {
    SGD: ("no preconditioner (SGD)", _sgd),
    Adam: ("preconditioner diag(sqrt(v) + eps) of Adam, bias-corrected", _adam),
    AdamW: ("preconditioner diag(sqrt(v) + eps) of AdamW, bias-corrected", _adamw),
    RMSprop: ("preconditioner diag(sqrt(v) + eps) of RMSprop", _rmsprop),
}
