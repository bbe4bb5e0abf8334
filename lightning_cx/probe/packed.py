"""Sequences of different lengths that torch has packed into one tensor, counted, cut and joined as examples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, unpack_sequence


def sequences_in(packed: PackedSequence) -> int:
    """How many there are."""
    return int(packed.batch_sizes[0])  # every one of them has a first element


def cut_sequences(packed: PackedSequence, numbers: Iterable[int]) -> PackedSequence:
    """The sequences of these numbers, packed again."""
    sequences = unpack_sequence(packed)
    return pack_sequence([sequences[number] for number in numbers], enforce_sorted=False)


def copied_sequences(packed: PackedSequence) -> PackedSequence:
    """A copy of all of them in host memory, cut loose from any graph."""
    with torch.no_grad():
        return cut_sequences(packed.cpu(), range(sequences_in(packed)))


def join_sequences(one: PackedSequence, other: PackedSequence) -> PackedSequence:
    """All of both, one after the other.

    Example:
        >>> packed = pack_sequence([torch.arange(2), torch.arange(3)], enforce_sorted=False)
        >>> sequences_in(join_sequences(packed, cut_sequences(packed, range(1))))
        3
    """
    return pack_sequence([*unpack_sequence(one), *unpack_sequence(other)], enforce_sorted=False)


def padded_sequences(packed: PackedSequence) -> Tensor:
    """As one tensor [n, longest, ...], filled up with zeros."""
    return pad_packed_sequence(packed, batch_first=True)[0]
