"""How fast the largest values grow: the tail beyond any stable law, and the only tool for norms and trajectories."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import gamma
from torch import Tensor

from lightning_cx.functional.tails.ecf import TailFit, refused, samples_of, tail_fit, why_not

FRACTION = 0.1
"""Share of the samples that `xi_dedh` calls the tail; THEORY section 6."""

NORMAL_975 = 1.959964

SMALL_TAIL = 8.0
"""The asymptotic interval of `xi_dedh` is widened by 1 + 8 / k: under Pareto laws of index 1 to 3 and k = 12, 25, 51,
102, 410, 95% of the errors lay within 2.1-3.5, 2.5-2.9, 2.3-2.5, 2.1 and 1.9-2.0 standard errors."""
LEVELS = (0.025, 0.975)


def hill(samples: Any, k: int | None = None) -> TailFit:
    """Estimate the power law of the largest values: alpha of ``P(X > x) ~ x^-alpha``.

    The reciprocal of the mean excess of the logarithm over the largest k: ``1 / mean(log(x_(i) / x_(k+1)))``. Moments
    of order alpha and above are infinite: no variance below 2, no mean below 1. The estimator always finds a power
    law; where the interval of `xi_dedh` reaches 0, there is none.

    The interval is exact under a power law, for k times the mean excess is then gamma distributed.

    Args:
        samples: ``[n]`` numbers, of which the magnitude counts, or ``[n, d]`` vectors, of which the norm does; any real
            dtype. Take off the location before: a constant added to the samples changes the index.
        k: How many of the largest to use; None takes ``2 sqrt(n)``.

    Returns:
        TailFit with `index` alpha > 0. Refused, with nan and a reason, for fewer than 128 samples, for samples of which
        any is NaN or infinite, where more than half are zero, and where the k + 1 largest are equal.

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``, or k is not between 2 and n - 1.

    References:
        Hill 1975, "A simple general approach to inference about the tail of a distribution".

    Example:
        >>> uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
        >>> print(hill(uniform ** (-1 / 1.5)))  # Pareto with alpha = 1.5
        1.50 (95% between 1.25 and 1.77; n = 4096)
    """
    ordered, reason = _magnitudes(samples)
    n = len(ordered)
    k = round(2 * math.sqrt(n)) if k is None and n else k
    if reason:
        return refused(n, reason, ordered)
    assert k is not None
    excess, reason = _log_excess(ordered, k)
    if reason:
        return refused(n, reason, ordered)
    index = 1 / float(excess.mean())
    low, high = (float(gamma.ppf(level, k)) / k * index for level in LEVELS)
    return tail_fit(index, low, high, n, ordered)


def xi_dedh(samples: Any, fraction: float = FRACTION) -> TailFit:
    """Estimate whether the largest values follow a power law (xi > 0), have a light tail (0) or an end (xi < 0).

    With ``M_j`` the mean of ``log(x_(i) / x_(k+1))^j`` over the largest k, ``xi = M_1 + 1 - .5 / (1 - M_1^2 / M_2)``:
    the moment estimator of Dekkers, Einmahl and de Haan. A power law of index alpha has ``xi = 1 / alpha``; the normal
    law has 0, which is approached from below (-.1 at 4096 samples). The interval is the asymptotic one at 95%,
    widened for small tails. It knows the scatter, not the bias that a tail has which is no power law yet: the largest
    tenth of a mixture of two scales, or of a lognormal law, grows like a power law without being one.

    Args:
        samples: ``[n]`` numbers, of which the magnitude counts, or ``[n, d]`` vectors, of which the norm does; any real
            dtype. Take off the location before.
        fraction: Share of the samples that counts as the tail, in (0, 1).

    Returns:
        TailFit with `index` xi, about -1 to 2. Refused, with nan and a reason, for fewer than 128 samples, for samples
        of which any is NaN or infinite, where more than half are zero, and where the values of the tail are equal.

    Raises:
        ValueError: If the shape is not ``[n]`` or ``[n, d]``, or `fraction` is not in (0, 1).

    References:
        Dekkers, Einmahl & de Haan 1989, "A moment estimator for the index of an extreme-value distribution", eq. 1.7
        and corollary 3.2.

    Example:
        >>> uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
        >>> print(xi_dedh(uniform ** (-1 / 1.5)))  # Pareto with alpha = 1.5: xi = .67
        0.66 (95% between 0.54 and 0.78; n = 4096)
        >>> print(xi_dedh(uniform))  # ends at 1
        -1.01 (95% between -1.23 and -0.79; n = 4096)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the tail is a share between 0 and 1 of the samples, got fraction={fraction}.")
    ordered, reason = _magnitudes(samples)
    n = len(ordered)
    if reason:
        return refused(n, reason, ordered)
    k = min(max(10, int(fraction * n)), n - 1)
    excess, reason = _log_excess(ordered, k)
    if reason:
        return refused(n, reason, ordered)
    first, second = float(excess.mean()), float(excess.square().mean())
    spread = 1 - first**2 / second
    if spread <= 1e-9:
        return refused(n, f"degenerate: the largest {k} values are the same number", ordered)
    xi = first + 1 - 0.5 / spread
    error = NORMAL_975 * (1 + SMALL_TAIL / k) * math.sqrt(_variance(xi) / k)
    return tail_fit(xi, xi - error, xi + error, n, ordered)


def _variance(xi: float) -> float:
    """Return the asymptotic variance of sqrt(k) times the error of the moment estimator."""
    if xi >= 0:
        return 1 + xi**2
    return (1 - xi) ** 2 * (1 - 2 * xi) * (1 - xi + 6 * xi**2) / ((1 - 3 * xi) * (1 - 4 * xi))


def _magnitudes(samples: Any) -> tuple[Tensor, str]:
    """Sort magnitudes, largest first, in float64, and return why nothing can be read from them, if so."""
    samples = samples_of(samples)
    reason = why_not(samples)
    if reason:
        return samples.new_zeros(samples.shape[0]), reason
    sizes = samples.abs().double() if samples.ndim == 1 else _norms(samples)
    zeros = float((sizes == 0).double().mean())
    if zeros > 0.5:
        reason = f"degenerate: {zeros:.0%} of the samples are zero"
    return sizes.sort(descending=True).values, reason


def _norms(samples: Tensor) -> Tensor:
    """Compute norms in float64 up to a factor, a block of rows at a time, as wide float32 samples fill memory once."""
    largest = samples.abs().amax().double().clamp_min(torch.finfo(torch.float64).tiny)  # squares of 1e200 overflow
    return torch.cat([(block.double() / largest).norm(dim=1) for block in samples.split(256)])


def _log_excess(ordered: Tensor, k: int) -> tuple[Tensor, str]:
    """Compute ``log(x_(i) / x_(k+1))`` of the largest k."""
    n = len(ordered)
    if not 2 <= k < n or k != int(k):
        raise ValueError(f"the tail holds between 2 and {n - 1} of {n} samples, got k={k}.")
    if not float(ordered[k]) > 0:
        return ordered, f"degenerate: only {int((ordered > 0).sum())} of the samples are not zero, {k + 1} are needed"
    # A difference of logarithms, for the ratio may overflow.
    excess = ordered[:k].log() - ordered[k].log()
    if not float(excess[0]) > 0:
        return ordered, f"degenerate: the largest {k + 1} values are the same number"
    return excess, ""
