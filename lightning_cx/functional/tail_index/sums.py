"""Sums of samples: what a batch makes of single examples."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tail_index.characteristic import FIT_POINTS, decay_of, squared_modulus, standardised

MIN_SUMS = 64
"""Fewer sums say nothing about their shape; THEORY section 6."""

GROUPINGS = 8
"""Ways to group samples into sums, averaged: on a scale mixture that halves the scatter of the shift."""


def sum_size(batch_size: int, n: int) -> int:
    """How many samples to add up: the batch size, at least 2, but so few that 64 sums remain."""
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one example, got batch_size={batch_size}.")
    return min(max(batch_size, 2), max(2, n // MIN_SUMS))


def grouped_sums(projected: Tensor, size: int, seed: int) -> Tensor:
    """Add up samples in groups drawn at random, several times over: which meet must not decide what is found.

    Args:
        projected: ``[..., n]`` samples along the last axis.
        size: How many are added up.
        seed: Seed of the groups.

    Returns:
        ``[8, ..., n // size]``, one layer for each way to group.
    """
    n = projected.shape[-1]
    generator = Generator().manual_seed(seed)
    sums = []
    for _ in range(GROUPINGS):
        order = torch.randperm(n, generator=generator)[: n // size * size].to(projected.device)
        sums.append(projected[..., order].unflatten(-1, (-1, size)).sum(-1))
    return torch.stack(sums)


def indices_of_sums(sums: Tensor) -> Tensor:
    """Tail index of sums from `grouped_sums`, ``[...]``, from the mean of ``|phi|^2`` over the ways to group."""
    return decay_of(squared_modulus(standardised(sums), FIT_POINTS).mean(0))[0]
