"""How large a step may be: the curvature times the step size, against where steps no longer die out."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor


def step_gain(
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    shrinkage: float = 0.0,
) -> float:
    """Give the share of the stable range that a step takes up for each unit of curvature.

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


def edge_of_stability(
    lambda_max: Tensor | float,
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Tensor:
    """Say how close training is to where its steps no longer settle: below 1 they do, above 1 they grow.

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
