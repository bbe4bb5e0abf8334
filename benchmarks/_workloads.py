"""What is measured: a network, a batch for it and the losses of its examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from _networks import GPT, Recurrent, convnet, mlp, resnet18, resnet50
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[int], tuple[Tensor, Tensor]]
Losses = Callable[[Tensor, Tensor], Tensor]
DEFAULT, LARGE, CUDA, TINY = "default", "large", "cuda", "tiny"
SEED = 0


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        name: Key on the command line.
        title: What the table calls it, sizes included.
        examples: Batch size N.
        network: Builds the model.
        draw: Draws inputs and targets of N examples.
        losses: Loss of every example, [N]; training takes their mean.
        chunk: Examples that vmap(grad) takes at a time, for its memory; None takes all.
        group: DEFAULT is always run, LARGE on request, CUDA where there is one; TINY is for the tests.
    """

    name: str
    title: str
    examples: int
    network: Callable[[], nn.Module]
    draw: Draw
    losses: Losses
    chunk: int | None = None
    group: str = DEFAULT

    def build(self, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
        """The same network and batch each time."""
        torch.manual_seed(SEED)
        network, (x, y) = self.network(), self.draw(self.examples)
        return network.to(device), x.to(device), y.to(device)


def cross_entropies(scores: Tensor, classes: Tensor) -> Tensor:
    """Of each example; over a sequence the mean of its places."""
    losses = F.cross_entropy(scores.flatten(0, -2), classes.flatten(), reduction="none")
    return losses.view(len(classes), -1).mean(1)


def squared_errors(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(1)


def labelled(*shape: int, classes: int = 10) -> Draw:
    return lambda n: (torch.randn(n, *shape), torch.randint(classes, (n,)))


def text(vocabulary: int, length: int, *places: int) -> Draw:
    """Tokens, with a target for each of `places`, or one for the whole sequence."""
    return lambda n: (torch.randint(vocabulary, (n, length)), torch.randint(vocabulary, (n, *places)))


def curve(n: int) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, n)[:, None]
    return x, torch.sin(6 * x) + 0.1 * torch.randn(n, 1)


def rows(
    key: str,
    title: str,
    sizes: tuple[int, ...],
    network: Callable[[], nn.Module],
    draw: Draw,
    losses: Losses = cross_entropies,
    chunk: int | None = None,
    group: str = DEFAULT,
) -> list[Workload]:
    """One workload for each batch size."""
    return [Workload(f"{key}-{n}", f"{title}, N={n}", n, network, draw, losses, chunk, group) for n in sizes]


def gpt(tied: bool) -> Callable[[], nn.Module]:
    return partial(GPT, vocabulary=256, length=128, width=256, heads=8, depth=4, tied=tied)


def gpt2() -> nn.Module:
    return GPT(vocabulary=50257, length=1024, width=768, heads=12, depth=12, tied=True)


# The CNN, the LSTM and the regression have the sizes at which the counted floor is the issue's.
_ROWS = [
    *rows("mlp", "MLP 784-512-512-10", (64, 256), lambda: mlp(784, 512, 512, 10), labelled(784)),
    *rows("cnn", "CNN GroupNorm 32x32", (64, 256), lambda: convnet(32, 32, 64, 64), labelled(3, 32, 32)),
    *rows("resnet18", "ResNet-18 GroupNorm 32x32", (64,), resnet18, labelled(3, 32, 32)),
    *rows("gpt", "GPT 4 layers d=256 T=128", (64,), gpt(tied=False), text(256, 128, 128), chunk=16),
    *rows("gpt-tied", "GPT, tied embeddings", (64,), gpt(tied=True), text(256, 128, 128), chunk=16),
    *rows("lstm", "LSTM 64-128 T=64", (64, 256), lambda: Recurrent(32, 64, 128, 32), text(32, 64)),
    *rows("regression", "1-D regression 1-64-64-1", (256,), lambda: mlp(1, 64, 64, 1), curve, squared_errors),
    *rows("gpt", "GPT 4 layers d=256 T=128", (256,), gpt(False), text(256, 128, 128), chunk=16, group=LARGE),
    *rows("resnet50", "ResNet-50 GroupNorm 224x224", (64,), resnet50, labelled(3, 224, 224, classes=1000), group=CUDA),
    *rows("gpt2", "GPT-2 small T=1024", (16,), gpt2, text(50257, 1024, 1024), chunk=1, group=CUDA),
    *rows("tiny-mlp", "MLP 5-7-3", (6,), lambda: mlp(5, 7, 3), labelled(5, classes=3), group=TINY),
    *rows("tiny-cnn", "CNN 8x8", (5,), lambda: convnet(4, 6, groups=2), labelled(3, 8, 8), group=TINY),
]
WORKLOADS = {workload.name: workload for workload in _ROWS}


def names(*groups: str) -> list[str]:
    return [name for name, workload in WORKLOADS.items() if workload.group in groups]
