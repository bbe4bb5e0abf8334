"""Hashes of coordinates, and sketches of residuals with very many outputs by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

MOST_OUTPUTS = 256
"""Residuals of more outputs than this are sketched: energies are then right within sqrt(2 / 256) = 9%, alike at all
checks, since the sketch is the same."""


def sketch_outputs(values: Any, most: int = MOST_OUTPUTS, seed: int = 0) -> Tensor:
    """Shorten the outputs of a residual so that energies over the examples survive: a count sketch.

    Each output is added, with a random sign, to one of `most` sums. Energies are kept on average, and sums are linear
    in the residual. Sign and place are a hash of where an output stands (token 3, word 17), so batches that are padded
    to different lengths are sketched alike, and nothing is drawn or kept.

    Args:
        values: ``[n, ...]``, one row per example; any real dtype.
        most: Number of outputs to leave; fewer are returned as they are.
        seed: Seed of signs and places.

    Returns:
        ``[n, min(outputs, most)]`` in the dtype of the values, float32 at least.

    Raises:
        ValueError: If `most` is not positive, or there is no axis of examples.

    References:
        Charikar, Chen & Farach-Colton 2002, "Finding frequent items in data streams"; Weinberger et al. 2009, "Feature
        hashing for large scale multitask learning", lemma 2, for the energies.

    Example:
        >>> logits = torch.randn(8, 50, 1000, generator=torch.Generator().manual_seed(0))
        >>> short = sketch_outputs(logits)
        >>> short.shape, bool((short.square().sum() / logits.square().sum() - 1).abs() < 0.1)
        (torch.Size([8, 256]), True)
    """
    values = as_tensor(values)
    if values.ndim == 0:
        raise ValueError("a residual has one row for each example, got a single number.")
    if most < 1:
        raise ValueError(f"at least one output has to be left, got most={most}.")
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    flat = values.reshape(len(values), values.shape[1:].numel())
    if flat.shape[1] <= most:
        return flat
    hashes = coordinate_hash(values.shape[1:], seed, flat.device)
    sign = (hashes & 1).to(flat.dtype) * 2 - 1
    place = (hashes >> 1) % most
    return flat.new_zeros(len(flat), most).index_add_(1, place, flat * sign)


_FACTORS = (-7046029254386353131, -4417276706812531889, 1609587929392839161, -8796714831421723037, 2870177450012600261)


def coordinate_hash(shape: Sequence[int], number: int, device: torch.device | str = "cpu") -> Tensor:
    """Hash each coordinate of an array to 40 random bits ``[product of shape]`` int64, as splitmix64 mixes.

    An entry has the same number whatever the lengths of the axes, so arrays that are padded differently agree; other
    numbers (or seeds) give other hashes. Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
    """
    key = torch.tensor(number + 1, device=device) * _FACTORS[0]
    for axis, size in enumerate(shape):
        steps = torch.arange(1, size + 1, device=device) * _FACTORS[1 + axis % 4]
        key = _mix(key[..., None] + steps)
    return (_mix(key) >> 20 & (1 << 40) - 1).flatten()


_MIX = (-4658895280553007687, -7723592293110705685)


def _mix(key: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _MIX, strict=True):
        key = (key ^ (key >> shift & (1 << 64 - shift) - 1)) * factor
    return key ^ (key >> 31 & (1 << 33) - 1)
