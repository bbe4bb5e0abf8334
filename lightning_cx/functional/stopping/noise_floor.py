"""How much of the initial residual is noise, read where the target has nothing: among the complex functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import f as f_law
from torch import Tensor

from lightning_cx.functional.complexity.levels import octave_bands
from lightning_cx.functional.inputs import as_tensor

TOP_PARTS = 8
"""The upper half of the functions is looked at in so many parts: 32 functions each on a probe of 512."""

LEVEL = 0.05
"""An octave that stands out from all above it at this level holds something of the target."""

PART_LEVEL = 0.01
"""The same for one of the parts: eight are looked at, and one that stands out by chance delays the stop."""

GATE_LEVEL = 1e-3
"""The target must stand out among the simple functions at this level, or the basis does not order it; THEORY section 5:
all problems that were tried had p < 7e-7, shuffled bases never came below."""


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
        >>> import torch
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


def _white_from(energy: Tensor, starts: Sequence[int], freedom: int, level: float) -> int:
    """The first function from which on all is white: parts are taken in from the top until one stands out.

    Args:
        energy: ``[L]``.
        starts: First function of each part, ascending; the last part is white by definition.
        freedom: Independent outputs.
        level: Of the F test.
    """
    cut = starts[-1]
    for start in reversed(starts[:-1]):
        if f_test(energy[start:cut], energy[cut:], freedom) < level:
            break
        cut = start
    return cut


def target_is_ordered(initial: Any) -> tuple[bool, float]:
    """Say whether a basis orders the target at all: whether its simple eighth stands out from its complex half.

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
        >>> import torch
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


def degrees_of_freedom(outputs: int) -> int:
    """Independent outputs: one-hot targets of C classes have C - 1, a regression of one output has 1."""
    return max(outputs - 1, 1)


def f_test(some: Tensor, others: Tensor, freedom: int) -> float:
    """How often noise would make the mean of some energies exceed that of others so far: one-sided F test.

    Args:
        some: ``[a]`` energies, each the sum over `freedom` independent outputs.
        others: ``[b]`` energies that are taken for noise.
        freedom: Independent outputs.
    """
    first, second = float(some.mean()), float(others.mean())
    if second == 0:
        return 0.0 if first > 0 else 1.0
    return float(f_law.sf(first / second, freedom * len(some), freedom * len(others)))


def _energies(initial: Any) -> tuple[Tensor, int]:
    initial = as_tensor(initial).detach().double().cpu()
    if initial.ndim not in (1, 2) or (initial.ndim == 2 and initial.shape[1] == 0):
        raise ValueError(f"coefficients of one residual are [L] or [L, C], got shape {list(initial.shape)}.")
    initial = initial.reshape(len(initial), -1) if initial.numel() else initial.reshape(0, 1)
    return initial.square().sum(1), degrees_of_freedom(initial.shape[1])
