"""How the strength of modes goes with their complexity: interference indices and what they are by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from lightning_cx.functional.complexity.axis import Axis
from lightning_cx.functional.complexity.spectrum import low_weights, median_index

SAME_MEDIAN = 1e-9
"""Median indices, and values of an index, this close are a tie: rounding must not rank them."""

MIN_MODES_TO_RANK = 3
"""Two modes are always in perfect order, one way or the other."""


@dataclass(frozen=True, eq=False)
class Ordering:
    """How strength goes with complexity in one set of modes; every tensor is float64.

    Attributes:
        rank_correlation: ``[]`` Spearman's correlation of a mode's rank with its median complexity.
        amplification: ``[q]`` a_j of the strongest modes.
        attenuation: ``[q]`` d_j of the weakest modes, weakest first.
    """

    rank_correlation: Tensor
    amplification: Tensor
    attenuation: Tensor

    @property
    def cii(self) -> Tensor:
        """``[]`` the constructive interference index, the mean of a_j; nan without modes."""
        return mean_or_nan(self.amplification)

    @property
    def dii(self) -> Tensor:
        """``[]`` the destructive interference index, the mean of d_j; nan without modes."""
        return mean_or_nan(self.attenuation)


def ordering(eigenvalues: Tensor, energies: Tensor, q: int) -> Ordering:
    """Say whether the strong modes are simpler than the rest, and the weak ones more complex.

    The strongest modes are each compared with what remains of the gradient after them: with l_j the share of u_j on
    the low side of the median of ``g = sum_{i > j} lambda_i e_i``, ``a_j = 2 l_j - 1``. The weakest are compared with
    what stands before them, ``sum_{i < j}``: ``d_j = 1 - 2 l_j``.

    Args:
        eigenvalues: ``[r]`` descending.
        energies: ``[r, L]`` level energies of each mode.
        q: Number of modes at either end; at most ``r - 1`` are used.

    Returns:
        Ordering of ``min(q, r - 1)`` modes.
    """
    as_they_are = torch.arange(eigenvalues.numel(), device=eigenvalues.device)[None]
    return Ordering(
        rank_correlation=_spearman_with_order(median_index(energies)[as_they_are])[0],
        amplification=2 * _low_shares(eigenvalues, energies, as_they_are, q)[0] - 1,
        attenuation=1 - 2 * _low_shares(eigenvalues.flip(0), energies, as_they_are.flip(1), q)[0],
    )


def permutation_null(
    eigenvalues: Tensor, energies: Tensor, q: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pair singular values with singular functions at random: CII and rank correlation ``[count]`` by chance."""
    orders = torch.rand(count, eigenvalues.numel(), generator=generator).argsort(1).to(eigenvalues.device)
    amplification = 2 * _low_shares(eigenvalues, energies, orders, q) - 1
    return amplification.mean(1), _spearman_with_order(median_index(energies)[orders])


def shuffled_cii(
    eigenvalues: Tensor, modes: Tensor, axis: Axis, q: int, count: int, generator: torch.Generator
) -> Tensor:
    """CII ``[count]`` after pairing examples with places on the axis at random: what an axis without meaning gives."""
    n = axis.vectors.shape[0]
    by_example = modes.reshape(n, len(modes) // n, modes.shape[1])
    as_they_are = torch.arange(eigenvalues.numel(), device=eigenvalues.device)[None]
    seen = eigenvalues.new_full((count,), torch.nan)
    for i in range(count):
        order = torch.randperm(n, generator=generator).to(modes.device)
        energies = axis.energies(by_example[order].reshape(modes.shape))
        seen[i] = (2 * _low_shares(eigenvalues, energies, as_they_are, q) - 1).mean()
    return seen


def tail_probability(seen: Tensor, null: Tensor) -> Tensor:
    """``(1 + #{null >= seen}) / (1 + #null)``: the observed one counts among the random (Phipson & Smyth 2010).

    Example:
        >>> float(tail_probability(torch.tensor(1.0), torch.tensor([0.0, 1.0, 2.0])))
        0.75
    """
    p = (1 + (null >= seen - SAME_MEDIAN).sum()).double() / (1 + len(null))
    return torch.where(seen.isfinite() & (len(null) > 0), p, torch.nan)


def mean_or_nan(values: Tensor) -> Tensor:
    """Mean of a vector; nan of an empty one."""
    return values.mean() if values.numel() else values.new_full((), torch.nan)


def sd_or_nan(values: Tensor) -> Tensor:
    """Standard deviation of a vector; nan of fewer than two numbers."""
    return values.std() if values.numel() > 1 else values.new_full((), torch.nan)


def _low_shares(eigenvalues: Tensor, energies: Tensor, orders: Tensor, q: int) -> Tensor:
    """Share of each of the first q modes on the low side of the gradient made of those after it.

    Args:
        eigenvalues: ``[r]`` in order.
        energies: ``[r, L]`` level energies of the modes.
        orders: ``[B, r]`` which mode takes which eigenvalue.
        q: Number of modes; at most ``r - 1`` have others after them.

    Returns:
        ``[B, min(q, r - 1)]``.
    """
    q = max(min(q, eigenvalues.numel() - 1), 0)
    first = energies[orders[:, :q]]
    after = torch.zeros(orders.shape, dtype=eigenvalues.dtype, device=eigenvalues.device)
    after.scatter_(1, orders[:, q:], eigenvalues[q:].expand(len(orders), -1))
    spectra = eigenvalues[:q, None] * first
    # Sums from the weak end, since what is left after a dominant mode would drown in its rounding.
    from_here = torch.cat([spectra, (after @ energies)[:, None]], 1).flip(1).cumsum(1).flip(1)
    weights = low_weights(from_here[:, 1:])
    return (weights * first).sum(-1) / first.sum(-1)


def _spearman_with_order(medians: Tensor) -> Tensor:
    r = medians.shape[-1]
    if r < MIN_MODES_TO_RANK:
        return medians.new_full(medians.shape[:-1], torch.nan)
    ranks = rankdata((medians / SAME_MEDIAN).round().cpu().numpy(), axis=-1)
    seen = torch.from_numpy(ranks).to(medians) - (r + 1) / 2
    order = torch.arange(r, dtype=medians.dtype, device=medians.device) - (r - 1) / 2
    return (seen @ order) / (seen.norm(dim=-1) * order.norm())
