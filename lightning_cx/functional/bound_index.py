"""An index of how much noisy training could have learned by heart: a generalisation theorem's formula as a number."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

QUARTILES = ((1.0, 1.0), (1.2, 0.981537), (1.4, 0.972367), (1.6, 0.965774), (1.8, 0.959756), (2.0, 0.953873))
"""Upper quartile of the symmetric alpha-stable law exp(-|t|^alpha), from `scipy.stats.levy_stable`; straight lines
between them are right within .2%."""


def levy_dimension_constant(alpha: Any, parameters: int) -> Tensor:
    """Say how much a dimension counts under noise of a tail index: K of the bound index.

    ``K = (2 - alpha) Gamma(1 - alpha/2) d^(1 - alpha/2) / (alpha 2^(alpha/2))``, computed as
    ``2 Gamma(2 - alpha/2) ...``, which has no singularity: K = 1/2 at alpha = 2, where the dimension drops out.

    Args:
        alpha: Tail index between 1 and 2, a number or ``[...]``.
        parameters: Number d of trainable parameters, at least 1.

    Returns:
        ``[...]`` float64, positive; nan where alpha is not in [1, 2].

    Raises:
        ValueError: If there is no parameter.

    References:
        Dupuis & Simsekli 2024, "Generalization bounds for heavy-tailed SDEs through the fractional Fokker-Planck
        equation" (K_{alpha, d}); THEORY section 7.

    Example:
        >>> round(float(levy_dimension_constant(1.6, 45258)), 9), float(levy_dimension_constant(2.0, 45258))
        (5.625324654, 0.5)
    """
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, got parameters={parameters}.")
    alpha = as_tensor(alpha).double()
    half = alpha / 2
    constant = 2 * torch.lgamma(2 - half).exp() * float(parameters) ** (1 - half) / (alpha * 2**half)
    return torch.where((alpha >= 1) & (alpha <= 2), constant, torch.nan)


def bound_index(
    alpha: Any,
    sigma: Any,
    steps: Any,
    step_size: Any,
    squared_gradient: Any,
    examples: int,
    parameters: int,
    radius: float = 1.0,
) -> Tensor:
    """Compare runs by how far gradients drove the weights against how much noise blurred them. An index, not a bound.

    ``100 sqrt(K T eta g^2 / (2 n R^(2 - alpha) sigma^alpha))`` with K of `levy_dimension_constant`. SGD is read as the
    Euler scheme of ``dW = -grad F dt + sigma dL`` with isotropic alpha-stable noise L, whose characteristic function is
    ``exp(-t |u|^alpha)``. The theorem behind it caps the expected gap between training and test error, in percent of
    the loss's range, up to constants and a confidence term. Its assumptions (isotropic noise of one scale, no momentum)
    do not hold for networks, and its size means nothing: 84 to 148% were measured against gaps of 4 to 8%.

    Args:
        alpha: Tail index of the noise, between 1 and 2: a number or ``[...]``.
        sigma: Scale of the noise, positive; see `noise_level`.
        steps: Number T of optimizer steps.
        step_size: Learning rate eta, its mean over the steps.
        squared_gradient: Mean of ``|g|^2`` over the steps, g the gradient of the whole training loss.
        examples: Number n of training examples, at least 1.
        parameters: Number d of trainable parameters, at least 1.
        radius: R, a length in the space of the parameters that the theorem leaves to the reader. It drops out at
            alpha = 2.

    Returns:
        ``[...]`` float64 in percent; nan where alpha is not in [1, 2], sigma is not positive, another quantity is
        negative, or any is not finite.

    Raises:
        ValueError: If `examples` or `parameters` is below 1, or `radius` is not positive.

    References:
        Dupuis & Simsekli 2024, "Generalization bounds for heavy-tailed SDEs through the fractional Fokker-Planck
        equation"; THEORY section 7.

    Example:
        >>> f"{bound_index(2.0, 0.1, 1000, 0.01, 0.5, 50_000, 10_000):.1f}"  # 100 sqrt(.5 * 1000 * .01 * .5 / 1000)
        '5.0'
    """
    if examples < 1:
        raise ValueError(f"a training set holds at least one example, got examples={examples}.")
    if not radius > 0:
        raise ValueError(f"the radius is a positive length, got radius={radius}.")
    alpha, sigma, steps, step_size, squared_gradient = (
        as_tensor(value).double() for value in (alpha, sigma, steps, step_size, squared_gradient)
    )
    drive = levy_dimension_constant(alpha, parameters) * steps * step_size * squared_gradient
    blur = 2 * examples * float(radius) ** (2 - alpha) * sigma.clamp_min(0.0) ** alpha
    known = (steps >= 0) & (step_size >= 0) & (squared_gradient >= 0) & (sigma > 0) & blur.isfinite()
    return torch.where(known & drive.isfinite(), 100 * (drive / blur).sqrt(), torch.nan)


def noise_level(differences: Any, alpha: float, parameters: int) -> Tensor:
    """Say how large the noise of one coordinate is, from random projections of differences between noisy vectors.

    The scale c of isotropic alpha-stable noise with characteristic function ``exp(-c^alpha |u|^alpha)``: half the
    interquartile range of a projection over that of the law with scale 1, the median over the projections, divided by
    the length ``sqrt(d)`` of a random direction. Quartiles exist whatever the tail.

    Args:
        differences: ``[n, k]`` projections of n noise vectors onto k random directions whose mean square length is d.
        alpha: Tail index, between 1 and 2.
        parameters: Number d of parameters, at least 1.

    Returns:
        ``[]`` float64, non-negative; the standard deviation is ``sqrt(2) c`` at alpha = 2. nan for fewer than 4
        vectors, no projection, an alpha outside [1, 2], or if any entry is not finite.

    Raises:
        ValueError: If the differences are not a matrix or there is no parameter.

    References:
        McCulloch 1986, "Simple consistent estimators of stable distribution parameters".

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> noise = torch.randn(4000, 64, generator=draw, dtype=torch.float64)  # directions of length 1 each
        >>> f"{noise_level(noise, 2.0, 1) * 2**0.5:.2f}"
        '1.00'
    """
    differences = as_tensor(differences).detach().double()
    if differences.ndim != 2:
        raise ValueError(f"differences are a matrix [n, k], got shape {list(differences.shape)}.")
    if parameters < 1:
        raise ValueError(f"a model has at least one parameter, got parameters={parameters}.")
    if len(differences) < 4 or not differences.numel() or not bool(differences.isfinite().all()) or not 1 <= alpha <= 2:
        return differences.new_full((), torch.nan)
    low, high = torch.quantile(differences, differences.new_tensor([0.25, 0.75]), dim=0)
    return (high - low).median() / 2 / _quartile(alpha) / math.sqrt(parameters)


def _quartile(alpha: float) -> float:
    """Interpolate the table."""
    right = min(bisect_right(QUARTILES, (alpha, math.inf)), len(QUARTILES) - 1)
    (before, low), (after, high) = QUARTILES[right - 1], QUARTILES[right]
    return low + (high - low) * (alpha - before) / (after - before)
