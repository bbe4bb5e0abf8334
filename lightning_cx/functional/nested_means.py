"""How sure a mean over examples is, where only means over the first few, the first more, and so on are known."""

from __future__ import annotations

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.noise import CONFIDENCE


def nested_mean_error(means: Tensor, counts: Tensor) -> Tensor:
    """Standard error of a mean over examples, from its values on growing parts of them.

    Means over the first ``c_1 < c_2 < ... < c_K`` examples give the means ``m_k`` of the K stretches between, of
    ``d_k`` examples each, and ``se^2 = sum_k d_k (m_k - m)^2 / ((K - 1) c_K)``, unbiased for independent examples. It
    has K - 1 degrees of freedom.

    Args:
        means: ``[K]`` any float dtype; the last is the mean whose error is asked for.
        counts: ``[K]`` how many examples each is of, ascending.

    Returns:
        ``[]`` float64, not negative; nan for fewer than 2 parts or non-finite means.

    Raises:
        ValueError: If the shapes differ, or counts are not positive and ascending.

    Example:
        >>> float(nested_mean_error([1.0, 2.0], [1, 2]))  # single values 1 and 3
        1.0
    """
    means, counts = as_tensor(means).double(), as_tensor(counts).double()
    sizes = counts.diff(prepend=counts.new_zeros(1))
    if means.shape != counts.shape or means.dim() != 1 or not bool((sizes > 0).all()):
        raise ValueError(f"each mean has a count, ascending, got {means.tolist()} and {counts.tolist()}.")
    if len(means) < 2:
        return means.new_full((), torch.nan)
    parts = (means * counts).diff(prepend=means.new_zeros(1)) / sizes
    return ((sizes * (parts - means[-1]).square()).sum() / ((len(means) - 1) * counts[-1])).sqrt()


def half_width(standard_error: float, degrees_of_freedom: int, share: float = 0.0) -> float:
    """Half of the 95% interval of a mean of n examples out of N: ``t se sqrt(1 - n / N)``, t Student's.

    Args:
        standard_error: As of a sample of an endless set.
        degrees_of_freedom: Those of the standard error.
        share: n / N, what part of all examples there are was looked at; 0 where N is endless or unknown.

    Returns:
        Not negative; 0 where all examples were looked at, else nan for less than 1 degree of freedom.

    References:
        Cochran 1977, "Sampling techniques", section 2.6, for the finite population.

    Example:
        >>> round(half_width(1.0, 7), 3), half_width(1.0, 7, share=1.0)
        (2.365, 0.0)
    """
    if share >= 1:
        return 0.0
    if degrees_of_freedom < 1:
        return float("nan")
    quantile = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
    return quantile * standard_error * (1 - max(share, 0.0)) ** 0.5
