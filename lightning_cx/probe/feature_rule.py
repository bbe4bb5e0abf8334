"""What makes two examples alike: the user's function of a batch, or its inputs made comparable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import complexity, default_features
from lightning_cx.probe.batches import inputs_of
from lightning_cx.probe.isolation import isolated_rng

Features = Callable[[Any], Tensor]


def raw_features(features: Features | None, batch: Any, examples: int, seed: int) -> Tensor:
    """Features as they come: what the function returns, or the inputs of the batch.

    Raises:
        ValueError: If the batch shows no inputs, or the function returned another shape.
    """
    if features is None:
        return inputs_of(batch, examples)
    with isolated_rng(seed), torch.no_grad():
        values = features(batch)
    if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != examples:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"features must return a tensor [{examples}, d], got {shape}")
    return values.detach()


def measurable(features: Features | None, values: Tensor) -> Tensor:
    """What the user chose is taken as it is; raw inputs are made comparable, [n, d] float64."""
    return default_features(values) if features is None else complexity.as_matrix(values)
