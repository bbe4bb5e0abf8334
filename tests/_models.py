"""Small models of each kind, with the naive per-example loop that everything is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossOf = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(module(x), y)


def naive_rows(module: nn.Module, loss_of: LossOf, x: Tensor, y: Tensor) -> Tensor:
    """[N, P] gradients in float64, one example at a time."""
    double = copy.deepcopy(module).double()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    parameters = [p for p in double.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(loss_of(double, x[i : i + 1], y[i : i + 1]), parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
                    for p, g in zip(parameters, gradients, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def relative_error(measured: Tensor, truth: Tensor) -> float:
    return float((measured.double() - truth).norm() / truth.norm())


class Mlp(nn.Sequential):
    def __init__(self, classes: int = 5) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, classes)
        )


class Convnet(nn.Sequential):
    def __init__(self, classes: int = 5, channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(3, 12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
        )


class Block(nn.Module):
    """A pre-norm transformer block written by hand, with scaled_dot_product_attention."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.norm2(x))


class TinyGpt(nn.Module):
    """Token and position embeddings, one block, the output tied to the token table."""

    def __init__(self, vocabulary: int = 11, length: int = 9, width: int = 16, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.block, self.norm = Block(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.block(x)))


class Vit(nn.Module):
    """Patches by convolution, a class token, a sliced free position table, PyTorch's own encoder layer."""

    def __init__(self, classes: int = 5, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 12, 16))
        self.scale = nn.Parameter(torch.rand(16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1)
        z = (z + self.positions[:, : z.shape[1]]) * self.scale
        z = self.layer(z) if self.batch_first else self.layer(z.transpose(0, 1)).transpose(0, 1)
        return self.head(z[:, 0])


class BagOfWords(nn.Module):
    def __init__(self, classes: int = 5, padding_idx: int | None = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 12, padding_idx=padding_idx)
        self.head = nn.Linear(12, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


class Computing(nn.Module):
    """Any function of an input and named parameters, buffers and layers: `Computing(lambda m, x: x * m.p, p=...)`."""

    def __init__(self, compute: Callable[..., Tensor], **parts: Tensor | nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def mean_square(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A loss of outputs alone, the mean over examples."""
    return module(x).pow(2).flatten(1).mean(1).mean()


class Unread(nn.Module):
    """A layer whose autograd node nobody knows: `UnreadFunctionBackward` of `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return UnreadFunction.apply(x, self.weight)  # type: ignore[no-any-return]


class UnreadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum().reshape(1)
