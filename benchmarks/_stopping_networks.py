"""The networks of the stopping benchmark: small enough for one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from _networks import Attention, Block, mlp
from torch import Tensor, nn
from torch.nn import functional as F

Network = Callable[[], nn.Module]


def deep(inputs: int, outputs: int = 1) -> Network:
    return lambda: mlp(inputs, 128, 128, 128, outputs)


def shallow(inputs: int, outputs: int = 1) -> Network:
    return lambda: mlp(inputs, 128, 128, outputs)


def large_at_first(network: Network, factor: float) -> Network:
    """All weights so many times what they would be: what is learnt first does not carry over (Liu et al. 2023)."""

    def build() -> nn.Module:
        built = network()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.mul_(factor)
        return built

    return build


def convnet(batch_norm: bool = False) -> Network:
    """For 8 x 8 pictures as rows of 64 numbers."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if batch_norm else []

    return lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        *norm(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        *norm(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def convnet_1d(channels: int, outputs: int, batch_norm: bool = False, width: int = 24) -> Network:
    """Three convolutions over a series ``[n, channels, length]`` and the mean over places."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after, stride in ((channels, width, 2), (width, width, 2), (width, width, 1)):
            layers += [nn.Conv1d(before, after, 5, stride, 2), *([nn.BatchNorm1d(after)] if batch_norm else [])]
            layers += [nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(4 * width, outputs))

    return build


class GRU(nn.Module):
    """A recurrent network over ``[n, channels, length]``, or over tokens ``[n, length]``, read out at the end.

    Attributes:
        unrolled: Whether to compute the same place by place, which vmap can follow.
    """

    unrolled: bool = False

    def __init__(self, channels: int, width: int, outputs: int, tokens: bool = False) -> None:
        super().__init__()
        self.inward = nn.Embedding(channels, width) if tokens else nn.Identity()
        self.tokens = tokens
        self.gru = nn.GRU(width if tokens else channels, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x) if self.tokens else x.transpose(1, 2)
        return self.head(self.state_by_place(x) if self.unrolled else self.gru(x)[0][:, -1])

    def state_by_place(self, x: Tensor) -> Tensor:
        names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
        weight_in, bias_in, weight_on, bias_on = (getattr(self.gru, name) for name in names)
        state = x.new_zeros(len(x), self.gru.hidden_size)
        for here in x.unbind(1):
            r, z, n = F.linear(here, weight_in, bias_in).chunk(3, -1)
            hr, hz, hn = F.linear(state, weight_on, bias_on).chunk(3, -1)
            new, update = torch.tanh(n + torch.sigmoid(r + hr) * hn), torch.sigmoid(z + hz)
            state = new + update * (state - new)
        return state


@contextmanager
def unrolled(network: nn.Module) -> Iterator[None]:
    """Have recurrent parts compute in a way that vmap can follow."""
    parts = [part for part in network.modules() if isinstance(part, GRU)]
    for part in parts:
        part.unrolled = True
    try:
        yield
    finally:
        for part in parts:
            part.unrolled = False


def gru(channels: int, outputs: int, width: int = 32, tokens: bool = False) -> Network:
    return lambda: GRU(channels, width, outputs, tokens)


class Transformer(nn.Module):
    """Tokens ``[n, length]`` or patches ``[n, length, width]`` of a series to the scores at the last place."""

    def __init__(self, inward: nn.Module, length: int, width: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.inward = inward
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(depth)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.inward(x) + self.places)[:, -1]))


def transformer(vocabulary: int, length: int, outputs: int, width: int = 32, depth: int = 1) -> Network:
    return lambda: Transformer(nn.Embedding(vocabulary, width), length, width, outputs, depth)


def patch_transformer(length: int, patch: int, outputs: int, width: int = 32, depth: int = 2) -> Network:
    """Over a series of one channel, cut in patches."""

    def build() -> nn.Module:
        inward = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (length // patch, patch)), nn.Linear(patch, width))
        return Transformer(inward, length // patch, width, outputs, depth)

    return build


class AttendAll(nn.Module):
    """Attention without normalisation, which learns sums of cyclic groups fast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, 4)
        self.perceptron = mlp(width, 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.perceptron(x)


def group_transformer(modulus: int, width: int = 64) -> Network:
    """Two tokens a and b, read out at b."""

    def build() -> nn.Module:
        network = Transformer(nn.Embedding(modulus, width), 2, width, modulus, 0)
        network.blocks, network.last = nn.Sequential(AttendAll(width)), nn.Identity()  # type: ignore[assignment]
        return network

    return build


class Pairs(nn.Module):
    """One table for both tokens, their sum through a perceptron."""

    def __init__(self, modulus: int, width: int) -> None:
        super().__init__()
        self.tokens, self.perceptron = nn.Embedding(modulus, width), mlp(width, 2 * width, modulus)

    def forward(self, x: Tensor) -> Tensor:
        return self.perceptron(self.tokens(x).sum(1))


def pairs(modulus: int, width: int = 64) -> Network:
    return lambda: Pairs(modulus, width)


class TextConvnet(nn.Module):
    """Tokens ``[n, length]`` through one convolution and the largest response of each filter."""

    def __init__(self, vocabulary: int, outputs: int, width: int) -> None:
        super().__init__()
        self.tokens, self.filters = nn.Embedding(vocabulary, 16), nn.Conv1d(16, width, 5)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.filters(self.tokens(x).transpose(1, 2)).relu().amax(2))


def text_convnet(vocabulary: int, outputs: int, width: int = 64) -> Network:
    return lambda: TextConvnet(vocabulary, outputs, width)
