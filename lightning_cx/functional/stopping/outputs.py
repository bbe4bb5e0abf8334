"""Residuals with very many outputs, such as tokens times vocabulary, made short."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.hashing import coordinate_hash
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
