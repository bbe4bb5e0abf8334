"""Views of small models on data of their own, and the Hessian as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_cx.probe import ProbePasses

LossOf = Callable[[Tensor, Tensor], Tensor]


def tanh_net(outputs: int = 1, width: int = 5, inputs: int = 3, seed: int = 0) -> nn.Sequential:
    """Of float64, with weights from numpy."""
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(rng.standard_normal(p.shape)))
    return net


def data(n: int, outputs: int = 1, inputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed + 50)
    x = torch.from_numpy(rng.standard_normal((n, inputs)))
    return x, torch.from_numpy(rng.standard_normal((n, outputs)))


def view_of(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: Optimizer | None = None,
    training_examples: int | None = None,
    loss: LossOf = F.mse_loss,
) -> ProbePasses:
    """The mean loss of a module over examples, seen in chunks of 16."""
    chunks = [((x[i : i + 16], y[i : i + 16]), len(x[i : i + 16])) for i in range(0, len(x), 16)]

    def loss_of(batch: Any) -> Tensor:
        return loss(net(batch[0]), batch[1])

    return ProbePasses(net, chunks, loss_of, optimizer=optimizer, training_examples=training_examples)


def formed_hessian(net: nn.Module, x: Tensor, y: Tensor, loss: LossOf = F.mse_loss) -> Tensor:
    """[P, P] by torch.func, parameters in their order."""
    own = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in own.values()]

    def of(flat: Tensor) -> Tensor:
        parts = torch.split(flat, sizes)
        named = {name: part.view_as(p) for (name, p), part in zip(own.items(), parts, strict=True)}
        return loss(torch.func.functional_call(net, named, (x,)), y)

    return torch.autograd.functional.hessian(of, torch.cat([p.flatten() for p in own.values()]))
