"""The same examples in the same order, whichever process saw them and when."""

from __future__ import annotations

import torch
from torch import Tensor

SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Shifts and multipliers that make every bit of 64 depend on all (Steele, Lea & Flood 2014, `mix64variant13`)."""


def content_sample(rows: Tensor, n_features: int, most: int) -> Tensor:
    """Put examples in an order that depends on their content only, and keep the first of them.

    The order is that of a hash of the features, so that the first ``most`` are as good as drawn at random, the same
    in every epoch whatever their values have become, and the first of the union of several sets are among the first
    of each (a bottom-k sample): processes may drop the others before they are merged. Among equal features the
    values decide; equal rows are interchangeable.

    Args:
        rows: ``[n, d + C]`` finite float64: features, then values.
        n_features: d.
        most: How many to keep.

    Returns:
        ``[min(n, most), d + C]``, bit by bit the same for any order of the input.

    References:
        Cohen & Kaplan 2007, "Summarizing data using bottom-k sketches".

    Example:
        >>> rows = torch.arange(8.0).double().reshape(4, 2)
        >>> torch.equal(content_sample(rows, 1, 3), content_sample(rows.flip(0), 1, 3))
        True
    """
    if len(rows) == 0:
        return rows
    keyed = torch.cat([_hash(rows[:, :n_features])[:, None], rows], dim=1)
    _, rank = torch.unique(keyed, dim=0, return_inverse=True)  # the one lexicographic sort that torch has
    return rows[rank.argsort()[:most]]


def _hash(features: Tensor) -> Tensor:
    """Map each row to one of 2^53 equally likely numbers."""
    bits = (features + 0.0).contiguous().view(torch.int64)  # -0.0 equals 0.0, and so must its bits
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator) + 1
    return (_mix((_mix(bits) * odd.to(bits.device)).sum(1)) >> 11).double()


def _mix(bits: Tensor) -> Tensor:
    for shift, multiplier in SPLITMIX:
        bits = (bits ^ (bits >> shift)) * (multiplier - 2**64)  # the same number modulo 2^64, as int64 has it
    return bits ^ (bits >> 31)
