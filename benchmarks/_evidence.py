"""The evidence-based stopping criterion of Mahsereci et al. 2017: our baseline among rules without validation data."""

from __future__ import annotations

import math
from typing import Any

import torch
from _workloads import Losses
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_cx.functional.inputs import as_tensor

COCKPIT_EPSILON = 1e-5
"""What Cockpit 1.0.2 adds to every variance unless told otherwise.

It decides when a ReLU network stops. Of the 4353 coordinates of 1-64-64-1 networks on 256 noisy points, 2093 to 2832
had gradient 0 for every example; Adam first crossed 0 at steps 110 to 120 where they were left out, at 30 to 70 where
they counted as noise (1e-12), at 20 to 30 with this. With tanh all four of 0, 1e-12, 1e-8 and 1e-5 crossed together.
Three seeds each, checked every 10 steps; the test error was least after step 290 or later.
"""


def evidence(gradients: Any, epsilon: float = 0.0) -> Tensor:
    """Say whether the mean gradient of some examples can be told from noise: above 0 it cannot, and training stops.

    ``EB = 1 - (B / D) sum_k g_k^2 / S_k`` with mean g_k and unbiased variance S_k of coordinate k over B examples. If
    the true gradient is 0, each ``B g_k^2 / S_k`` is the square of a t statistic and EB is near 0: for Gaussian
    gradients ``-2 / (B - 3)`` in the mean, slightly below it.

    The examples may be a minibatch or all training data. Those too are a sample, of what could have been drawn, and
    the formula is the same with their number as B; near a minimum of their loss g vanishes, S does not, and EB goes
    to 1.

    Args:
        gradients: ``[B, D]`` one row per example, any dtype; computed in float64.
        epsilon: Added to every variance, in squared units of the gradients. 0 is the formula as written;
            `COCKPIT_EPSILON` is that of its best known implementation.

    Returns:
        ``[]`` float64 without a unit, up to 1 for vanishing mean gradients, without a bound below. Independent of the
        scale of each coordinate if ``epsilon`` is 0. Then 0 / 0 says nothing and a coordinate whose gradient is 0 for
        every example is left out (the weights of a dead unit, of a border pixel) and D counts the others; a gradient
        that is not 0 and the same for all examples is certain, and EB is -inf. With a positive ``epsilon`` the former
        count as noise. nan if no coordinate is left, or a mean or variance is not finite, as above 1e154; below 1e-162
        squares are 0 and a gradient looks certain.

    Raises:
        ValueError: If the gradients are no matrix, of fewer than 2 examples, or ``epsilon`` is negative or not finite.

    References:
        Mahsereci, Balles, Lassner & Hennig 2017, "Early stopping without a validation set", arXiv 1703.09580;
        Schneider, Dangel & Hennig 2021, "Cockpit", whose quantity `EarlyStopping` gives the same (check_evidence.py).

    Example:
        >>> noise = torch.randn(64, 10_000, generator=torch.Generator().manual_seed(0))
        >>> round(float(evidence(noise)), 2), round(float(evidence(noise + 1)), 1)
        (-0.03, -65.8)
    """
    rows = as_tensor(gradients).detach().double()
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            "a variance over examples needs gradients [examples, parameters] of at least 2 examples, got shape "
            f"{list(rows.shape)}: stack the gradients of single examples."
        )
    return evidence_of_moments(*moments(rows), len(rows), epsilon)


def evidence_of_moments(mean: Any, variance: Any, examples: int, epsilon: float = 0.0) -> Tensor:
    """Give `evidence` where mean and variance over the examples are already known.

    Args:
        mean: ``[D]`` mean gradient over the examples.
        variance: ``[D]`` unbiased variance over the examples, of one gradient and not of the mean.
        examples: Their number B.
        epsilon: Added to every variance.

    Returns:
        As `evidence`; nan for a negative variance too.

    Raises:
        ValueError: If the shapes differ, there are fewer than 2 examples, or ``epsilon`` is negative or not finite.

    Example:
        >>> float(evidence_of_moments([1.0, 3.0], [4.0, 4.0], examples=4))
        -4.0
    """
    mean, variance = as_tensor(mean).detach().double(), as_tensor(variance).detach().double()
    if mean.ndim != 1 or mean.shape != variance.shape:
        raise ValueError(
            f"each parameter needs one mean and one variance, got {list(mean.shape)} and {list(variance.shape)}."
        )
    if examples < 2:
        raise ValueError(f"a variance over examples needs at least 2 of them, got {examples}: take a larger batch.")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is added to variances and must be finite, 0 or above, got {epsilon}.")
    if not bool((mean.isfinite() & variance.isfinite() & (variance >= 0)).all()):
        return mean.new_full((), torch.nan)
    variance = variance + epsilon
    informative = (mean != 0) | (variance != 0)
    # Divided before squaring, so that small means do not underflow to the 0 of 0 / 0.
    return 1 - examples * (mean / variance.sqrt())[informative].square().mean()


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce gradients to mean and unbiased variance of each coordinate.

    Args:
        rows: ``[B, D]`` gradients of at least 2 examples.

    Returns:
        Mean and variance, ``[D]`` each. A coordinate that is the same for all examples has a variance of exactly 0.
    """
    shifted = rows - rows[0]  # a mean of equal numbers can be rounded, a mean of zeros cannot
    mean = shifted.mean(0)
    return rows[0] + mean, shifted.sub_(mean).square_().sum(0) / (len(rows) - 1)  # in place: twice as fast


def per_example_gradients(network: nn.Module, losses: Losses, x: Tensor, y: Tensor, chunk: int | None = None) -> Tensor:
    """Give the loss gradient of each example in a row of its own, B x D numbers in all: for small networks.

    Args:
        network: Any module that treats examples apart and draws nothing: no batch norm or dropout in training mode.
            Its mode and its `.grad` stay as they are.
        losses: Output and target of a batch to one loss per example, ``[B]``.
        x: ``[B, ...]`` inputs.
        y: ``[B, ...]`` targets.
        chunk: Examples at once, all unless given; bounds the memory of activations, not that of the result.

    Returns:
        ``[B, D]`` in the network's dtype over the D numbers of the parameters with `requires_grad`, in the order of
        `named_parameters`.

    Raises:
        ValueError: If no parameter is trained, or inputs and targets are not one for one.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("no parameter of this network has requires_grad: there is no gradient to judge.")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"each example needs one input and one target, got {len(x)} and {len(y)}.")

    def loss_of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return losses(functional_call(network, weights, (x[None],)), y[None])[0]

    rows = vmap(grad(loss_of_one), (None, 0, 0), chunk_size=chunk)(parameters, x, y)
    return torch.cat([row.flatten(1) for row in rows.values()], dim=1)
