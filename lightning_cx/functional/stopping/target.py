"""The target before training: in which order of complexity it is simplest, and how much of it is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import f as f_law
from torch import Tensor

from lightning_cx.functional.complexity.basis import Basis, kernel_basis, laplacian_basis, octave_bands
from lightning_cx.functional.inputs import as_matrix, as_tensor


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


NEIGHBOURS, FEATURES = "smooth along neighbours", "smooth in the features"
ORDERS = (NEIGHBOURS, FEATURES)


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


@dataclass(frozen=True)
class NoiseFloor:
    """Noise energy of a target on a basis.

    Attributes:
        sigma2: Noise energy per basis function, added over outputs; nan where it could not be read.
        cut: First basis function of the part that looks like white noise.
        spread: Relative standard error of `sigma2`.
        least: The same energy over the most complex functions alone, down to where more than noise shows; where a clean
            target still falls in the upper half, a far smaller number than `sigma2`.
    """

    sigma2: float
    cut: int
    spread: float
    least: float


LEVEL = 0.05
"""An octave that stands out from all above it at this level holds something of the target."""

TOP_PARTS = 8
"""The upper half of the functions is looked at in so many parts: 32 functions each on a probe of 512."""

PART_LEVEL = 0.01
"""Level at which one of the parts stands out: eight are looked at, and one that does by chance delays the stop."""


def noise_floor(initial: Any) -> NoiseFloor:
    """Estimate the noise in a target from the complex part of the initial residual.

    Noise has the same energy in every basis function, structure has it in the simple ones. From the top octave down,
    an octave joins the floor as long as its mean energy does not exceed that of all above it (one-sided F test at .05);
    the floor is the mean over all functions from there, or from the middle of the range if that is lower.

    Args:
        initial: ``[L]`` or ``[L, C]`` coefficients of the initial residual in a basis, in order of complexity.

    Returns:
        NoiseFloor; nan for fewer than 4 functions and where a coefficient is not finite.

    Raises:
        ValueError: If the shape is another.

    References:
        THEORY section 5.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> noise = 0.5 * torch.randn(512, generator=draw, dtype=torch.float64)
        >>> noise[:10] += 8.0  # the target
        >>> floor = noise_floor(noise)
        >>> abs(floor.sigma2 - 0.25) < 3 * floor.spread * 0.25, floor.cut
        (True, 64)
    """
    energy, freedom = _energies(initial)
    n = len(energy)
    if n < 4 or not bool(energy.isfinite().all()):
        return NoiseFloor(math.nan, n, math.nan, math.nan)
    octaves = [start for start, _ in octave_bands(n)]
    cut = _white_from(energy, octaves, freedom, LEVEL)
    floor = energy[min(cut, n // 2) :]
    parts = sorted({n - (n - n // 2) * k // TOP_PARTS for k in range(1, TOP_PARTS + 1)} - {n})
    white = _white_from(energy, parts, freedom, PART_LEVEL)
    # Where all of the upper half is white, so is what the octaves say.
    least = float(energy[white:].mean()) if white > n // 2 else float(floor.mean())
    return NoiseFloor(float(floor.mean()), cut, math.sqrt(2 / (freedom * len(floor))), min(least, float(floor.mean())))


GATE_LEVEL = 1e-3
"""The target must stand out among the simple functions at this level, or the basis does not order it; THEORY section 5:
all problems that were tried had p < 7e-7, shuffled bases never came below."""


def target_is_ordered(initial: Any) -> tuple[bool, float]:
    """Test whether a basis orders the target: whether its simple eighth stands out from its complex half.

    Where it does not, nothing can be said about fitting noise: on such a basis a target is noise from the start.

    Args:
        initial: ``[L]`` or ``[L, C]`` coefficients of the initial residual, in order of complexity; the first one, the
            constant, is left out.

    Returns:
        Whether the F test of the functions 1 to L/8 against the upper half has p < .001, and p; False and nan for fewer
        than 16 functions or where a coefficient is not finite.

    Raises:
        ValueError: If the shape is another.

    Example:
        >>> target_is_ordered(1 / (1 + torch.arange(256.0)))[0]
        True
        >>> target_is_ordered(torch.randn(256, generator=torch.Generator().manual_seed(0)))[0]
        False
    """
    energy, freedom = _energies(initial)
    n = len(energy)
    if n < 16 or not bool(energy.isfinite().all()):
        return False, math.nan
    p = f_test(energy[1 : n // 8], energy[n // 2 :], freedom)
    return p < GATE_LEVEL, p


def _energies(initial: Any) -> tuple[Tensor, int]:
    initial = as_tensor(initial).detach().double().cpu()
    if initial.ndim not in (1, 2) or (initial.ndim == 2 and initial.shape[1] == 0):
        raise ValueError(f"coefficients of one residual are [L] or [L, C], got shape {list(initial.shape)}.")
    initial = initial.reshape(len(initial), -1) if initial.numel() else initial.reshape(0, 1)
    return initial.square().sum(1), degrees_of_freedom(initial.shape[1])


def _white_from(energy: Tensor, starts: Sequence[int], freedom: int, level: float) -> int:
    """Return the first function from which on all is white: parts join from the top until one stands out in the F test.

    `starts` are the first functions of the parts, ascending; the last part is white by definition.
    """
    cut = starts[-1]
    for start in reversed(starts[:-1]):
        if f_test(energy[start:cut], energy[cut:], freedom) < level:
            break
        cut = start
    return cut


CALM_NEIGHBOURS = 5
"""Few enough to lie on one side of a border, enough for the noise of their mean to be a fifth of one example's."""


def calm_noise(features: Any, values: Any) -> float:
    """Estimate the noise where neighbours agree: borders between classes, however sharp, are no noise.

    ``e_i = |y_i - mean of the 5 nearest neighbours|^2 / (1 + 1/5)``, averaged over the half of the examples whose
    neighbours vary least: energy per example, added over outputs; inf for fewer than 12 examples. An example's own
    noise has no part in how its neighbours vary, so noise that is everywhere is found in the calm half as well; what
    sits at borders alone is not.
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


def description_length(coefficients: Any) -> float:
    """Compute how surprising a function is in a basis, as noise of one variance per octave; lower is better ordered.

    ``sum_b n_b log(mean energy of octave b)``, comparable between bases of the same function alone. In nats, times two
    over the number of outputs; inf where an energy is not finite or all are zero.
    """
    values = as_tensor(coefficients).detach().double()
    values = values.reshape(len(values), -1)
    energy = (values / values.abs().amax()).square().sum(1)
    if not bool(energy.isfinite().all()):
        return math.inf
    tiny = torch.finfo(torch.float64).eps ** 2  # rounding, relative to the largest coefficient
    means = [(stop - start, float(energy[start:stop].mean())) for start, stop in octave_bands(len(energy))]
    return sum(count * math.log(mean + tiny) for count, mean in means)


def basis_by_name(name: str, features: Any) -> Basis:
    """Construct the basis of an order again, for a run that is resumed.

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

    The width of the kernel is the median distance of two examples; complexity is the rank.
    """
    matrix = as_matrix(as_tensor(features))
    squares = torch.cdist(matrix, matrix, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = squares[squares > 0]
    kernel = torch.exp(-squares / apart.median()) if apart.numel() else torch.ones_like(squares)
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    # The constant has no energy in the centred kernel; lifted above all others it comes first, and exactly.
    return kernel_basis(centred + (centred.diagonal().sum() + 1) / len(centred))


def f_test(some: Tensor, others: Tensor, freedom: int) -> float:
    """Return how often noise would make the mean of some energies exceed that of others so far: one-sided F test."""
    first, second = float(some.mean()), float(others.mean())
    if second == 0:
        return 0.0 if first > 0 else 1.0
    return float(f_law.sf(first / second, freedom * len(some), freedom * len(others)))


def degrees_of_freedom(outputs: int) -> int:
    """Return the number of independent outputs: C - 1 for one-hot targets of C classes, 1 for one output."""
    return max(outputs - 1, 1)
