"""How large a step may be: the curvature times the step size, against where steps no longer die out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_cx.functional.inputs import as_tensor


def edge_of_stability(
    lambda_max: Tensor | float,
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Tensor:
    """Compute how close training is to where its steps no longer settle: below 1 they do, above 1 they grow.

    ``eta (lambda_max + decay) / (2 (1 + mu))`` for SGD with momentum mu; Nesterov's is ``1 + 2 mu`` times as large
    and dampening divides it by ``1 / (1 - dampening)``, see `step_gain`. Adam with its preconditioner P held fixed is
    heavy-ball with ``momentum=beta1, dampening=beta1``, where `lambda_max` is that of ``P^-1/2 H P^-1/2``.

    Args:
        lambda_max: ``[...]`` largest eigenvalue of the Hessian of the training loss, any float dtype.
        learning_rate: eta.
        momentum: mu, 0 to below 1.
        dampening: As in `torch.optim.SGD`.
        nesterov: As in `torch.optim.SGD`.
        weight_decay: L2 penalty that is added to the gradient, as in `torch.optim.SGD`: curvature like any other.

    Returns:
        ``[...]`` float64; 1 is the edge. nan where `lambda_max` is, negative where no direction is convex.

    Raises:
        ValueError: If a number of the optimizer is out of range.

    References:
        THEORY section 8; Cohen et al. 2021, as in `step_gain`; Cohen et al. 2022, "Adaptive gradient methods at the
        edge of stability", for Adam's ``2 (1 + beta1) / ((1 - beta1) eta)``.

    Example:
        >>> float(edge_of_stability(20.0, learning_rate=0.1))
        1.0
        >>> round(float(edge_of_stability(38.0, learning_rate=1.0, momentum=0.9, dampening=0.9)), 9)  # Adam: 38 / eta
        1.0
    """
    gain = step_gain(learning_rate, momentum, dampening, nesterov)
    return gain * (as_tensor(lambda_max).to(torch.float64) + weight_decay)


def step_gain(
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    shrinkage: float = 0.0,
) -> float:
    """Return the share of the stable range that a step takes up for each unit of curvature.

    Let a loss have curvature h along one direction, so that its gradient is ``h x``. Step by step x is multiplied by
    the roots z of a quadratic, and the first to leave the unit circle as h grows is z = -1: x flips its sign and no
    longer shrinks. That happens at ``h gain = 1`` with

        plain and heavy-ball momentum mu:   gain = eta (1 - dampening) / ((1 + mu) (2 - shrinkage))
        Nesterov:                           gain = eta (1 + 2 mu)      / ((1 + mu) (2 - shrinkage))

    Args:
        learning_rate: eta, not negative.
        momentum: mu, 0 to below 1.
        dampening: Of the gradient as it enters the momentum, as in `torch.optim.SGD`; without momentum PyTorch
            ignores it, and so does this.
        nesterov: Whether the gradient is taken ahead, as in `torch.optim.SGD`.
        shrinkage: Share by which every step shrinks the weights themselves: eta times the decay of AdamW.

    Returns:
        The gain, not negative; 1 / gain is the largest stable curvature.

    Raises:
        ValueError: If a number is out of range.

    References:
        Polyak 1964 for heavy-ball's ``2 (1 + mu) / eta``; Cohen et al. 2021, "Gradient descent on neural networks
        typically occurs at the edge of stability", for Nesterov's ``2 (1 + mu) / ((1 + 2 mu) eta)``.

    Example:
        >>> [round(1 / gain) for gain in (step_gain(0.1), step_gain(0.1, 0.9), step_gain(0.1, 0.9, dampening=0.9))]
        [20, 38, 380]
    """
    if not (learning_rate >= 0 and 0 <= momentum < 1 and dampening <= 1 and 0 <= shrinkage < 2):
        raise ValueError(
            "steps shrink only with a learning rate >= 0, momentum from 0 to below 1, dampening up to 1 and shrinkage "
            f"from 0 to below 2, got {learning_rate}, {momentum}, {dampening}, {shrinkage}."
        )
    heavy_ball = 1 - dampening if momentum else 1.0
    taken = 1 + 2 * momentum if nesterov else heavy_ball
    return learning_rate * taken / ((1 + momentum) * (2 - shrinkage))


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
        """Return gain and decay of every entry, ``[P]`` each in float32 or wider, in the order of `parameters`."""
        gains = [self.gain[name].to(p.device).expand(p.shape).flatten() for name, p in parameters.items()]
        decays = [torch.full_like(gain, self.decay[name]) for gain, name in zip(gains, parameters, strict=True)]
        return torch.cat(gains), torch.cat(decays)


class UnsupportedOptimizerError(ValueError):
    """The edge of stability of this optimizer is not known; the message says which and why."""


Rule: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Tensor, float]]


def step_gains(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> StepGains:
    """Derive from an optimizer how strongly it responds to curvature, with its present preconditioner.

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


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    del state
    how = float(group["momentum"]), float(group["dampening"]), bool(group["nesterov"])
    return _scalar(step_gain(float(group["lr"]), *how)), float(group["weight_decay"])


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    return _adam_step(group, state, decoupled=bool(group.get("decoupled_weight_decay", False)))


def _adam_step(group: Mapping[str, Any], state: Mapping[str, Any], decoupled: bool) -> tuple[Tensor, float]:
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    (beta1, beta2), steps = map(float, group["betas"]), float(state["step"])
    squares = _wide(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
    divisor = (squares / (1 - beta2**steps)).sqrt() + float(group["eps"])
    shrinkage = rate * decay if decoupled else 0.0
    gain = step_gain(rate, momentum=beta1, dampening=beta1, shrinkage=shrinkage)
    return gain / (1 - beta1**steps) / divisor, 0.0 if decoupled else decay


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _adamw(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    return _adam_step(group, state, decoupled=True)


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Tensor, float]:
    squares = _wide(state["square_avg"])
    if group["centered"]:
        squares = (squares - _wide(state["grad_avg"]).square()).clamp_min(0)
    gain = step_gain(float(group["lr"]), momentum=float(group["momentum"]))
    return gain / (squares.sqrt() + float(group["eps"])), float(group["weight_decay"])


MEMORIES = 10
"""Momentum's memories, of 1 / (1 - beta1) steps each, after which a preconditioner counts as standing still.

A mean over t squared gradients moves by a share of 1 / t in a step, so by a tenth at most within one memory. At its
first step the ratio of Adam was 2.3 in the run of tests/trainer/test_step_size_in_a_fit.py that took 150 steps to come
to the edge.
"""


def _forming(name: str, group: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    if "step" not in state:
        return ""
    made, momentum = int(state["step"]), float(group["betas"][0] if "betas" in group else group["momentum"])
    needed = math.ceil(round(MEMORIES / (1 - momentum), 6))
    if made >= needed:
        return ""
    return f"{name} has made {made} of {needed} steps after which its preconditioner changes slowly"


_RULES: dict[type[Optimizer], tuple[str, Rule]] = {
    SGD: ("no preconditioner (SGD)", _sgd),
    Adam: ("preconditioner diag(sqrt(v) + eps) of Adam, bias-corrected", _adam),
    AdamW: ("preconditioner diag(sqrt(v) + eps) of AdamW, bias-corrected", _adamw),
    RMSprop: ("preconditioner diag(sqrt(v) + eps) of RMSprop", _rmsprop),
}
