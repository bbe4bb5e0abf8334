"""Can what is left be told from white noise?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.linalg import gram_participation_ratio

KOLMOGOROV_95 = 1.3581
"""95% point of the supremum of a Brownian bridge's absolute value (Kolmogorov 1933)."""


@dataclass(frozen=True, eq=False)
class Whiteness:
    """How far a residual's energies are from being spread evenly over a basis.

    Attributes:
        distance: ``[]`` float64 in [0, 1], the largest distance between the cumulative share of the energy and the
            straight line of white noise.
        limit: ``[]`` float64, the distance that white noise stays below in 95% of all cases.
        excess_is_low: ``[]`` bool, whether the surplus is on the simple side: structure that is still unlearned. Else
            the complex side is too strong: the simple one was fitted below the noise.
    """

    distance: Tensor
    limit: Tensor
    excess_is_low: Tensor

    @property
    def ratio(self) -> Tensor:
        """``[]`` distance over limit; up to 1 the residual cannot be told from white noise."""
        return self.distance / self.limit

    def __str__(self) -> str:
        if not bool(self.ratio.isfinite()):
            return "whiteness unknown: there is no energy, or it is not finite"
        if self.ratio <= 1:
            return f"cannot be told from white noise: distance {self.distance:.3f}, limit {self.limit:.3f}"
        side = "simple" if self.excess_is_low else "complex"
        return f"not white: too much on the {side} side, distance {self.distance:.3f}, limit {self.limit:.3f}"


def whiteness(energy: Tensor, sizes: Tensor, outputs: float = 1.0) -> Whiteness:
    """Say whether what is left of the target still has structure or looks like white noise.

    The normalised cumulative periodogram ``sum_{i <= l} e_i / sum e`` of white noise follows the straight line
    ``sum_{i <= l} n_i / K``, where level l holds n_l of the K basis functions. Its largest deviation is the distance.
    Under Gaussian noise with d independent outputs an energy has the relative variance ``2 / d``, and
    ``sqrt(q) distance`` with ``q = d K / 2`` goes to the supremum of a Brownian bridge; the limit is its 95% point with
    Stephens' correction for finite q.

    Args:
        energy: ``[L]`` level energies in order of complexity, without the constant if that was fitted or centred.
        sizes: ``[L]`` number of basis functions in each level.
        outputs: Effective number d of independent outputs whose energies were added, see `independent_outputs`.

    Returns:
        Whiteness; nan distance and limit where there is no energy, it is not finite, or there are fewer than 2 levels.

    Raises:
        ValueError: If the lengths differ.

    References:
        Hansen, Kilmer & Kjeldsen 2006, "Exploiting residual information in the parameter choice for discrete
        ill-posed problems", section 3; Stephens 1974, "EDF statistics for goodness of fit", for the correction.

    Example:
        >>> import torch
        >>> print(whiteness(torch.ones(100), torch.ones(100)))
        cannot be told from white noise: distance 0.000, limit 0.188
        >>> print(whiteness(1 / torch.arange(1, 101), torch.ones(100)))
        not white: too much on the simple side, distance 0.494, limit 0.188
    """
    energy, sizes = as_tensor(energy).double(), as_tensor(sizes).double()
    if energy.shape != sizes.shape or energy.ndim != 1:
        raise ValueError(f"each level needs one energy and one size, got {list(energy.shape)} and {list(sizes.shape)}.")
    total = energy.sum()
    if energy.numel() < 2 or not bool(total.isfinite() & (total > 0)):
        unknown = total.new_full((), torch.nan)
        return Whiteness(unknown, unknown, unknown.bool())
    deviation = (energy / total).cumsum(0) - sizes.cumsum(0) / sizes.sum()
    at = deviation.abs().argmax()
    root = (outputs * sizes.sum() / 2).sqrt()
    return Whiteness(deviation[at].abs(), KOLMOGOROV_95 / (root + 0.12 + 0.11 / root), deviation[at] > 0)


def independent_outputs(values: Tensor) -> Tensor:
    """Count the outputs of a residual that vary independently, ``(tr S)^2 / tr S^2`` of their covariance S.

    The energies of white noise with covariance S over its outputs vary as those of so many independent, equal ones.

    Args:
        values: ``[n, C]`` one row per example; the mean is taken off.

    Returns:
        ``[]`` float64 between 1 and C; nan without variation or with entries that are not finite.

    Example:
        >>> import torch
        >>> one_hot_minus_mean = torch.eye(10).repeat(5, 1) - 0.1
        >>> round(float(independent_outputs(one_hot_minus_mean)), 9)
        9.0
    """
    values = as_tensor(values).double()
    varying = values - values.mean(0)
    return gram_participation_ratio(varying.T @ varying)
