"""Examples and gradients that the tests of this folder share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.tails.stable import elliptical_stable


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(n: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unequal scales, and values of two outputs: something simple, a mean, and noise."""
    features = torch.randn(n, 3, generator=draw(seed)) * torch.tensor([1.0, 30.0, 0.01])
    values = torch.randn(n, 2, generator=draw(seed + 1)) + 0.5
    values[:, 0] += 3 * features[:, 0]
    return features, values


def gradients(n: int = 150, seed: int = 0) -> Tensor:
    """Heavy-tailed gradients of one batch."""
    return elliptical_stable(1.6, n, 40, draw(seed)) + 0.3


def gram(n: int = 16, seed: int = 0) -> Tensor:
    gradients = 0.3 + torch.randn(n, 20, dtype=torch.float64, generator=draw(seed))
    return gradients @ gradients.T
