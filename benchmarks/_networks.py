"""The networks that are measured, written out so that nothing has to be installed for them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU in between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(*channels: int, groups: int = 8, classes: int = 10) -> nn.Sequential:
    """3x3 convolutions with GroupNorm; every second one halves the picture."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise((3, *channels))):
        layers += [nn.Conv2d(before, after, 3, 1 + i % 2, 1), nn.GroupNorm(groups, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    """y = relu(x + branch(x)), the shortcut projected where the shape changes (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        same = before == after and stride == 1
        projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
        self.shortcut = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


def basic(before: int, width: int, stride: int) -> Residual:
    first = [nn.Conv2d(before, width, 3, stride, 1, bias=False), norm(width), nn.ReLU()]
    second = [nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)]
    return Residual(before, width, stride, nn.Sequential(*first, *second))


def bottleneck(before: int, width: int, stride: int) -> Residual:
    after = 4 * width
    narrow = [nn.Conv2d(before, width, 1, bias=False), norm(width), nn.ReLU()]
    wide = [nn.Conv2d(width, width, 3, stride, 1, bias=False), norm(width), nn.ReLU()]
    out = [nn.Conv2d(width, after, 1, bias=False), norm(after)]
    return Residual(before, after, stride, nn.Sequential(*narrow, *wide, *out))


def resnet18() -> nn.Sequential:
    """For 32 x 32 pictures: a 3x3 stem, no pooling before the first stage."""
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), norm(64), nn.ReLU()]
    blocks, before = [], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        blocks += [basic(before, width, 1 + (stage > 0)), basic(width, width, 1)]
        before = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def resnet50() -> nn.Sequential:
    """For 224 x 224 pictures."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, before = [], 64
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(depth):
            blocks.append(bottleneck(before, width, 1 + (stage > 0 and i == 0)))
            before = 4 * width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inward(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outward(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each normalised first and added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.between = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.perceptron(self.between(x))


class GPT(nn.Module):
    """Scores of the next token at every place.

    `tied` is how GPT-2 is written: the head shares the weights of the tokens, and the embedding of the places has no
    axis of examples. Without it every parameter is used once and by each example, which more peers can read.
    """

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.tied = tied
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        places = self.places(places if self.tied else places.expand_as(tokens))
        return self.head(self.last(self.blocks(self.tokens(tokens) + places)))


class Recurrent(nn.Module):
    """An LSTM over tokens, read out at the last step."""

    def __init__(self, vocabulary: int, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, inputs)
        self.lstm, self.head = nn.LSTM(inputs, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0][:, -1])
