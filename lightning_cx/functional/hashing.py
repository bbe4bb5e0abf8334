"""Random numbers that depend on where an entry stands and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FACTORS = (-7046029254386353131, -4417276706812531889, 1609587929392839161, -8796714831421723037, 2870177450012600261)
_MIX = (-4658895280553007687, -7723592293110705685)


def coordinate_hash(shape: Sequence[int], number: int, device: torch.device | str = "cpu") -> Tensor:
    """A random number of 40 bits for each coordinate of an array, by the mixing steps of splitmix64.

    An entry has the same number whatever the lengths of the axes, so arrays that are padded differently agree.

    Args:
        shape: Lengths of the axes.
        number: Of the array, or a seed: other numbers give other hashes.
        device: Where to put them.

    Returns:
        ``[product of shape]`` int64.

    References:
        Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".

    Example:
        >>> bool((coordinate_hash((2, 3), 0).view(2, 3) == coordinate_hash((2, 5), 0).view(2, 5)[:, :3]).all())
        True
    """
    key = torch.tensor(number + 1, device=device) * _FACTORS[0]
    for axis, size in enumerate(shape):
        steps = torch.arange(1, size + 1, device=device) * _FACTORS[1 + axis % 4]
        key = _mix(key[..., None] + steps)
    return (_mix(key) >> 20 & (1 << 40) - 1).flatten()


def _mix(key: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _MIX, strict=True):
        key = (key ^ (key >> shift & (1 << 64 - shift) - 1)) * factor
    return key ^ (key >> 31 & (1 << 33) - 1)
