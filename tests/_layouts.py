"""Shared by the tests of where the examples lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _models import mean_square
from torch import Tensor, nn

from lightning_cx.gradients import GradientSample, GradientTap

N = 6
Model = Callable[[], tuple[nn.Module, Tensor]]


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def tapped(module: nn.Module, x: Tensor, **options: Any) -> GradientSample:
    tap = GradientTap(module.named_parameters(), len(x), projections=2, **options)
    loss = mean_square(module, x, x)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    return tap.sample
