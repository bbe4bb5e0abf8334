"""Find, without asking, which tensor of a training step is the model's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.gradients.graph import is_penalty, read_graph


@dataclass(frozen=True)
class ModuleOutput:
    """Floating-point tensors that one call of one submodule returned."""

    name: str
    tensors: tuple[Tensor, ...]


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[list[ModuleOutput]]:
    """Record what `module` and its submodules return while the block runs, in the order in which they return.

    Only modules that hold parameters count: a loss module or an activation is not what the model predicts.
    """
    names = {part: name or "the module itself" for name, part in module.named_modules()}
    names = {part: name for part, name in names.items() if next(part.parameters(), None) is not None}
    records: list[ModuleOutput] = []

    def record(part: nn.Module, _: object, output: object) -> None:
        if part in names:
            tensors = tuple(t for t in _tensors(output) if t.is_floating_point() and t.requires_grad)
            records.append(ModuleOutput(names[part], tensors))

    # One hook on the class of all modules instead of one on each: nothing of the user's is touched.
    handle = nn.modules.module.register_module_forward_hook(record)
    try:
        yield records
    finally:
        handle.remove()


def find_output(
    records: Sequence[ModuleOutput], loss: Tensor, parameters: Mapping[str, Tensor], examples: int
) -> ModuleOutput | None:
    """Return the recorded output nearest to the loss through which alone the parameters act on it.

    Args:
        records: What `recorded_outputs` collected.
        loss: The loss that was computed from it.
        parameters: Trainable parameters by name.
        examples: Number of examples n; an output has it as its first axis.

    Returns:
        The output, with those of its tensors that the loss depends on; None if no recorded output separates all
        parameters from the loss (penalties on parameters alone do not count).
    """
    for record in reversed(records):
        tensors = [t for t in record.tensors if t.dim() > 0 and t.shape[0] == examples and t.grad_fn is not None]
        if not tensors:
            continue
        walked, reached, outside = _without(loss, {t.grad_fn for t in tensors}, parameters)
        kept = tuple(t for t in tensors if t.grad_fn in reached)
        if kept and (not outside or _only_penalised(loss, outside, walked, examples)):
            return ModuleOutput(record.name, kept)
    return None


def _without(
    loss: Tensor, cut: set[Any], parameters: Mapping[str, Tensor]
) -> tuple[set[Any], set[Any], dict[str, Tensor]]:
    """Walk from the loss and stop at the cut: nodes walked, cut nodes met, parameters met all the same."""
    names = {id(p): name for name, p in parameters.items()}
    waiting, walked = [loss.grad_fn], {loss.grad_fn}
    reached: set[Any] = set()
    outside: dict[str, Tensor] = {}
    while waiting:
        node = waiting.pop()
        if node in cut:
            reached.add(node)
            continue
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            outside[names[id(variable)]] = variable
        for child, _ in node.next_functions if node is not None else ():
            if child is not None and child not in walked:
                walked.add(child)
                waiting.append(child)
    return walked, reached, outside


def _only_penalised(loss: Tensor, parameters: Mapping[str, Tensor], walked: set[Any], examples: int) -> bool:
    graph = read_graph(loss, parameters, examples)
    return all(is_penalty(graph, node) for node in graph.consumers if node in walked)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def residual_rows(output: ModuleOutput, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and minus the derivative of `loss` with respect to them, both [n, C] float64."""
    slopes = torch.autograd.grad(loss, output.tensors, allow_unused=True)
    pairs = [(t, torch.zeros_like(t) if g is None else g) for t, g in zip(output.tensors, slopes, strict=True)]
    values = torch.cat([t.detach().double().reshape(len(t), -1) for t, _ in pairs], 1)
    return values, -torch.cat([g.double().reshape(len(g), -1) for _, g in pairs], 1)
