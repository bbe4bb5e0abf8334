"""Modules with compiled parts, and a backend that counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier
from _models import Convnet
from test_monitor import Watch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters
from torch.nn import functional as F

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample

EVERY, BATCHES = 3, 10  # two epochs of five batches; 0, 3, 6 and 9 are sampled


class Counting:
    """The aot_eager backend, which needs no C++ compiler, with a count of what it compiled and of what ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        code = lookup_backend("aot_eager")(graph, inputs)

        def run(*arguments: Any) -> Any:
            self.ran += 1
            return code(*arguments)

        return run


class Net(nn.Module):
    """A net with a forward of its own: torch compiles no bare nn.Sequential in place."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(dropout), Convnet())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels)


class Plain(Classifier):
    """Logs nothing: Lightning's own `log` cannot be traced by every torch."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(Net(dropout))
        self.criterion = entropy

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.criterion(self.net(batch[0]), batch[1])


def submodule(backend: Any, **options: Any) -> pl.LightningModule:
    module = Plain(**options)
    module.net = torch.compile(module.net, backend=backend)
    return module


def in_place(backend: Any, **options: Any) -> pl.LightningModule:
    module = Plain(**options)
    module.net[2].compile(backend=backend)
    return module


def whole(backend: Any, **options: Any) -> Any:
    return torch.compile(Plain(**options), backend=backend)


def loss(backend: Any, **options: Any) -> pl.LightningModule:
    module = Plain(**options)
    module.criterion = torch.compile(entropy, backend=backend)
    return module


KINDS = {"a submodule": submodule, "a submodule in place": in_place, "the whole module": whole, "the loss": loss}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def monitor(*instruments: Watch, **options: Any) -> ComplexityMonitor:
    chosen = list(instruments) or None
    return ComplexityMonitor(chosen, **{"every_n_steps": EVERY, "probe": ProbeSet(size=128), "strict": True, **options})


def samples(watch: Watch) -> list[GradientSample]:
    return [o.gradients for o in watch.seen if o.gradients is not None]
