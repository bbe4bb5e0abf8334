"""The ways to the Gram matrix that are compared: each is a training step, with `.grad` in place, and its Gram.

Every way is given what suits it: no second pass where its gradients of single examples already add up to the batch's,
no copy that it does not make itself. A way gets a model of its own, since most leave hooks on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from _workloads import Losses, Workload
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_cx.gradients import GradientTap

Step = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Task:
    """One model with one batch."""

    network: nn.Module
    x: Tensor
    y: Tensor
    losses: Losses
    chunk: int | None = None

    @classmethod
    def of(cls, workload: Workload, device: torch.device) -> Task:
        return cls(*workload.build(device), workload.losses, workload.chunk)

    def loss_of(self, output: Tensor) -> Tensor:
        return self.losses(output, self.y).mean()

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())


@dataclass(frozen=True)
class Contender:
    """A way to the Gram matrix; `norms` says that its step returns squared norms instead, `package` what it needs."""

    name: str
    title: str
    prepare: Callable[[Task], Step]
    package: str | None = None
    norms: bool = False

    def is_installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


def gram_of(rows: Iterable[Tensor]) -> Tensor:
    """Sum over parameters, so that the gradients are never copied into one matrix."""
    total: Tensor | None = None
    for row in rows:
        flat = row.flatten(1)
        total = flat @ flat.T if total is None else total.addmm_(flat, flat.T)
    assert total is not None
    return total


def plain(task: Task) -> Step:
    def step() -> None:
        task.network.zero_grad()
        task.loss_of(task.network(task.x)).backward()

    return step


def tapped(task: Task, gram: bool) -> Step:
    tap = GradientTap(task.network.named_parameters(), len(task.x), gram=gram)

    def step() -> Tensor | None:
        task.network.zero_grad()
        loss = task.loss_of(task.network(task.x))
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        return tap.sample.gram if gram else tap.sample.squared_norms

    return step


def by_vmap(task: Task) -> Step:
    parameters = dict(task.network.named_parameters())

    def loss_of_one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return task.losses(functional_call(task.network, weights, (x[None],)), y[None])[0]

    rows_of = vmap(grad(loss_of_one), (None, 0, 0), chunk_size=task.chunk)

    def step() -> Tensor:
        rows = rows_of({name: p.detach() for name, p in parameters.items()}, task.x, task.y)
        for name, row in rows.items():
            parameters[name].grad = row.mean(0)
        return gram_of(rows.values())

    return step


def by_loop(task: Task) -> Step:
    """One forward and backward for each example, into rows that are allocated once."""
    parameters, n = task.parameters(), len(task.x)

    def step() -> Tensor:
        rows = [p.new_empty(n, *p.shape) for p in parameters]
        for i in range(n):
            loss = task.losses(task.network(task.x[i : i + 1]), task.y[i : i + 1])[0]
            for row, gradient in zip(rows, torch.autograd.grad(loss, parameters), strict=True):
                row[i] = gradient
        for p, row in zip(parameters, rows, strict=True):
            p.grad = row.mean(0)
        return gram_of(rows)

    return step


def by_opacus(task: Task) -> Step:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    # Its own replacements (DPLSTM) where it has no hooks for a layer, as its guide advises.
    network = task.network if ModuleValidator.is_valid(task.network) else ModuleValidator.fix(task.network)
    hooked = GradSampleModule(network, batch_first=True, loss_reduction="mean")

    def step() -> Tensor:
        hooked.zero_grad()
        task.loss_of(hooked(task.x)).backward()
        return gram_of(taken(network, "grad_sample"))

    return step


def by_backpack(task: Task) -> Step:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    network = extend(task.network)

    def step() -> Tensor:
        network.zero_grad()
        loss = task.loss_of(network(task.x))
        with backpack(BatchGrad()):
            loss.backward()
        return gram_of(taken(network, "grad_batch")) * len(task.x) ** 2  # its rows are shares of the mean's gradient

    return step


def taken(network: nn.Module, attribute: str) -> list[Tensor]:
    """What a library left on the parameters, removed from there."""
    rows = {name: p.__dict__.pop(attribute, None) for name, p in network.named_parameters()}
    without = [name for name, row in rows.items() if row is None]
    if without:
        raise RuntimeError(f"left no {attribute} on {len(without)} of {len(rows)} parameters, as {without[0]}")
    return [row for row in rows.values() if row is not None]


def by_autogram(task: Task) -> Step:
    from torchjd.autogram import Engine

    engine = Engine(task.network, batch_dim=0)

    def step() -> Tensor:
        task.network.zero_grad()
        losses = task.losses(task.network(task.x), task.y)
        gram = engine.compute_gramian(losses)
        losses.mean().backward()
        return gram

    return step


def by_autojac(task: Task) -> Step:
    from torchjd.autojac import jac

    def step() -> Tensor:
        rows = jac(task.losses(task.network(task.x), task.y), task.parameters(), parallel_chunk_size=task.chunk)
        for p, row in zip(task.parameters(), rows, strict=True):
            p.grad = row.mean(0)
        return gram_of(rows)

    return step


PLAIN = Contender("plain", "plain step", plain)
_WAYS = [
    Contender("ours", "ours, Gram", lambda task: tapped(task, gram=True)),
    Contender("ours-norms", "ours, norms", lambda task: tapped(task, gram=False), norms=True),
    Contender("vmap", "vmap(grad)", by_vmap),
    Contender("opacus", "Opacus hooks", by_opacus, "opacus"),
    Contender("backpack", "BackPACK BatchGrad", by_backpack, "backpack"),
    Contender("autogram", "TorchJD autogram", by_autogram, "torchjd"),
    Contender("loop", "naive loop", by_loop),
    Contender("autojac", "TorchJD autojac", by_autojac, "torchjd"),
]
CONTENDERS = {contender.name: contender for contender in _WAYS}
# Hundreds of plain steps for one Gram: left out unless asked for.
DEFAULT_CONTENDERS = [name for name in CONTENDERS if name != "autojac"]
