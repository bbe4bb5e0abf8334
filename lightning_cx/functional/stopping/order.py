"""Which functions of the examples are simple: the order in which a target is least surprising."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from lightning_cx.functional.complexity.basis import Basis, kernel_basis, laplacian_basis
from lightning_cx.functional.complexity.features import as_matrix
from lightning_cx.functional.complexity.levels import octave_bands
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.stopping.noise_floor import noise_floor

CALM_NEIGHBOURS = 5
"""Few enough to lie on one side of a border, enough for the noise of their mean to be a fifth of one example's."""

NEIGHBOURS, FEATURES = "smooth along neighbours", "smooth in the features"
ORDERS = (NEIGHBOURS, FEATURES)


@dataclass(frozen=True, eq=False)
class TargetOrder:
    """The order of complexity that suits a target best, of those that were tried.

    Attributes:
        basis: Functions of the examples in that order.
        name: What makes a function simple there, in words.
        least_noise: Noise energy per function that is certainly there: the lower of what the most complex functions
            (`noise_floor`) and what neighbours that agree (`calm_noise`) say.
    """

    basis: Basis
    name: str
    least_noise: float


def order_of_target(features: Any, initial: Any) -> TargetOrder:
    """Choose the order of complexity in which a target is least surprising: by neighbours, or by distance.

    A neighbourhood graph (`laplacian_basis`) follows curved sheets of data; smooth functions of the features
    (`gaussian_basis`) extend over ten dimensions, where 500 examples leave a graph no neighbours. What an order does
    not capture of the target it takes for noise, so the wrong one makes a clean target look noisy. The order with the
    smaller ``sum_b n_b log(mean energy of octave b)`` is taken: twice the description length of the initial residual
    as Gaussian noise of one variance for each octave, up to constants.

    Args:
        features: ``[n, d]`` in which examples of like target are near to each other.
        initial: ``[n]`` or ``[n, C]`` residual before training.

    Returns:
        TargetOrder. Of residuals that are not finite or all zero, the graph's.

    Raises:
        ValueError: If the lengths differ, or the features make no basis (see `laplacian_basis`).

    References:
        Rissanen 1978, "Modeling by shortest data description"; measured in `docs/benchmarks/stopping.md`.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> x = torch.randn(256, 10, generator=draw, dtype=torch.float64)
        >>> order_of_target(x, x @ torch.ones(10).double()).name
        'smooth in the features'
    """
    matrix = as_matrix(as_tensor(features))
    initial = as_tensor(initial).detach().double().to(matrix.device)
    if initial.ndim == 0 or len(initial) != len(matrix):
        raise ValueError(f"features of {len(matrix)} examples, but a residual of shape {list(initial.shape)}.")
    initial = initial.reshape(len(initial), -1)
    orders = {name: basis_by_name(name, matrix) for name in ORDERS}
    coefficients = {name: basis.vectors.T @ initial for name, basis in orders.items()}
    lengths = {name: description_length(values) for name, values in coefficients.items()}
    best = min(lengths, key=lambda name: lengths[name])
    # Of the order that was chosen alone: a few near-copies can make the last functions of another one look calm.
    least = min(noise_floor(coefficients[best]).least, calm_noise(matrix, initial))
    return TargetOrder(orders[best], best, least)


def calm_noise(features: Any, values: Any) -> float:
    """Estimate the noise where neighbours agree: borders between classes, however sharp, are no noise.

    ``e_i = |y_i - mean of the 5 nearest neighbours|^2 / (1 + 1/5)``, averaged over the half of the examples whose
    neighbours vary least. An example's own noise has no part in how its neighbours vary, so noise that is everywhere is
    found in the calm half as well; what sits at borders alone is not.

    Args:
        features: ``[n, d]``.
        values: ``[n]`` or ``[n, C]`` residual before training.

    Returns:
        Energy per example, added over outputs; inf for fewer than 12 examples, nan where a value is not finite.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> x = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
        >>> noise = 0.5 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> calm_noise(x, (x > 0.3).double()), abs(calm_noise(x, (x > 0.3) + noise) - 0.25) < 0.05
        (0.0, True)
    """
    matrix = as_matrix(as_tensor(features))
    values = as_tensor(values).detach().double().to(matrix.device)
    if values.ndim == 0 or len(values) != len(matrix):
        raise ValueError(f"features of {len(matrix)} examples, but values of shape {list(values.shape)}.")
    if len(matrix) < 2 * (CALM_NEIGHBOURS + 1):
        return math.inf
    values = values.reshape(len(values), -1)
    apart = torch.cdist(matrix, matrix).fill_diagonal_(math.inf)
    around = values[apart.topk(CALM_NEIGHBOURS, largest=False).indices]
    middle = around.mean(1)
    unrest = (around - middle[:, None]).square().sum((1, 2))
    calm = unrest.argsort()[: len(values) // 2]
    return float((values - middle)[calm].square().sum(1).mean()) / (1 + 1 / CALM_NEIGHBOURS)


def basis_by_name(name: str, features: Any) -> Basis:
    """Make the basis of an order again, for a run that is resumed.

    Args:
        name: As in `TargetOrder.name`.
        features: ``[n, d]``.

    Raises:
        ValueError: If there is no order of that name, or the features make no basis.
    """
    if name not in ORDERS:
        raise ValueError(f"no order of complexity is called {name!r}; known are {', '.join(ORDERS)}.")
    matrix = as_matrix(as_tensor(features))
    return laplacian_basis(matrix) if name == NEIGHBOURS else gaussian_basis(matrix)


def gaussian_basis(features: Any) -> Basis:
    """Order functions by how smooth they are in the features: eigenvectors of a Gaussian kernel, the constant first.

    The width of the kernel is the median distance of two examples.

    Args:
        features: ``[n, ...]``, flattened per example, any real dtype.

    Returns:
        Basis of n functions of complexity 0, 1, ... n - 1 (the rank), on the device of the features.

    Raises:
        ValueError: If there is no example, or a feature is not finite.

    Example:
        >>> slow = gaussian_basis(torch.linspace(-1, 1, 50)).vectors[:, 1]
        >>> int((slow[1:] * slow[:-1] < 0).sum())  # crosses zero once
        1
    """
    matrix = as_matrix(as_tensor(features))
    squares = torch.cdist(matrix, matrix, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = squares[squares > 0]
    kernel = torch.exp(-squares / apart.median()) if apart.numel() else torch.ones_like(squares)
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    # The constant has no energy in the centred kernel; lifted above all others it comes first, and exactly.
    return kernel_basis(centred + (centred.diagonal().sum() + 1) / len(centred))


def description_length(coefficients: Any) -> float:
    """Say how surprising a function is in a basis, as noise of one variance for each octave: lower is better ordered.

    ``sum_b n_b log(mean energy of octave b)``, comparable between bases of the same function alone.

    Args:
        coefficients: ``[L]`` or ``[L, C]``, in order of complexity.

    Returns:
        In nats, times two over the number of outputs; inf where an energy is not finite or all are zero.

    Example:
        >>> simple_first = torch.tensor([4.0, 0.5, 0.5, 0.5])
        >>> description_length(simple_first) < description_length(simple_first.flip(0))
        True
    """
    values = as_tensor(coefficients).detach().double()
    values = values.reshape(len(values), -1)
    energy = (values / values.abs().amax()).square().sum(1)
    if not bool(energy.isfinite().all()):
        return math.inf
    tiny = torch.finfo(torch.float64).eps ** 2  # rounding, relative to the largest coefficient
    means = [(stop - start, float(energy[start:stop].mean())) for start, stop in octave_bands(len(energy))]
    return sum(count * math.log(mean + tiny) for count, mean in means)
