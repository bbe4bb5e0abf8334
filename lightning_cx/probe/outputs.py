"""Find the output of a model in the graph of its loss, and the slope of the loss there.

Which of all tensors of a training step is the model's output nobody says. It is found by what an output is: a tensor
that some module with parameters returned, with the examples along its first axis, through which alone the parameters
act on the loss. Of several such cuts through the graph the one nearest to the loss is taken, and minus the slope of the
loss there is the residual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx._torch import is_compiled_wrapper, output_shape

LossOf = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Some examples of the probe as one batch, on the model's device."""

    batch: Any
    examples: int


@dataclass(frozen=True)
class ResidualLaw:
    """What the slope of a loss at the outputs is.

    Attributes:
        why_not: Why it is no residual, in words; empty where it is one.
        flat: Why its size is none, in words, where the loss is piecewise linear: the slope of an absolute error is a
            sign, that of a hinge is gone as soon as an example is right.
        squared: Whether the loss is a squared error of each output, whose slope is divided by its curvature.
        unit: Else, what the slope is to be divided by: it is so many times the target less the prediction.
    """

    why_not: str = ""
    flat: str = ""
    squared: bool = False
    unit: float = 1.0


@dataclass(frozen=True)
class ChunkReading:
    """What one chunk showed: tensors [n, ...] of the model output and minus the slope of the chunk's loss there."""

    source: str
    outputs: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    per_example: bool
    loss: float


def residuals_of(module: nn.Module, chunk: Chunk, loss_of: LossOf, law: ResidualLaw | None = None) -> ChunkReading:
    """Run one chunk, inside `ProbePasses.isolated`, and return the model output and minus the slope of the loss there.

    With a law of squared errors, the slope is divided by the curvature: residuals are then target less prediction,
    however the loss averages.

    Raises:
        ValueError: If the loss has no graph, no module output carries all of it, or the module is one in a wrapper.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "_forward_module"):
        raise ValueError(
            f"the probe got a {type(module).__name__}, which waits for other processes or needs its own backward: "
            "pass the model inside (`model.module`); under a precision of Fabric's, with `fabric.autocast()` in loss_fn"
        )
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with recorded_outputs(module) as records:
        loss = loss_of(chunk.batch)
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        raise ValueError("the loss of the probe has no autograd graph, so it has no residual")
    if loss.numel() != 1 and loss.shape != (chunk.examples,):
        raise ValueError(
            f"the loss has shape {tuple(loss.shape)}; a scalar or one loss for each of {chunk.examples} examples is "
            "needed: return one from loss_fn(module, batch)"
        )
    output, slopes = find_output(records, loss.sum(), parameters, chunk.examples)
    residuals = tuple(-slope for slope in slopes)
    if law is not None and law.squared:
        residuals = _over_curvature(loss.sum(), output.tensors)
    outputs = tuple(t.detach() for t in output.tensors)
    return ChunkReading(output.name, outputs, residuals, loss.numel() > 1, float(loss.detach().double().sum()))


def _over_curvature(loss: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Minus slope over curvature, output by output; zero where an output does not count."""
    slopes = [torch.zeros_like(t) if s is None else s for t, s in zip(outputs, _slopes(loss, outputs), strict=True)]
    inner = torch.stack([s.sum() for s in slopes]).sum()
    found = torch.autograd.grad(inner, list(outputs), allow_unused=True)
    pairs = [(s.detach(), torch.zeros_like(s) if c is None else c) for s, c in zip(slopes, found, strict=True)]
    return tuple(torch.where(c > 0, -s / c, 0.0) for s, c in pairs)


@dataclass(frozen=True)
class ModuleOutput:
    """Floating-point tensors that one call of a submodule returned, or several of them.

    Attributes:
        name: Of the submodule.
        tensors: What it returned.
        held: Parameters, more than a number each, that act on the loss beside them, entry by entry: a learned noise of
            each output. They are taken for constants.
    """

    name: str
    tensors: tuple[Tensor, ...]
    held: tuple[str, ...] = ()


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[list[ModuleOutput]]:
    """Record what `module` and its submodules return while the block runs, in the order in which they return.

    Only modules that hold trainable parameters count: a loss, an activation or the frozen network of a perceptual
    loss is not what the model predicts.
    """
    names = {part: name or "the module itself" for name, part in module.named_modules()}
    names = {part: name for part, name in names.items() if any(p.requires_grad for p in part.parameters())}
    records: list[ModuleOutput] = []

    def record(part: nn.Module, _: object, output: object) -> None:
        if part in names:
            tensors = tuple(t for t in _tensors(output) if t.is_floating_point() and t.requires_grad)
            records.append(ModuleOutput(names[part], tensors))

    if any(map(is_compiled_wrapper, names)):  # they warn the user of a hook on the class
        handles = [part.register_forward_hook(record) for part in names]
    else:  # one hook on the class of all modules instead of one on each: nothing of the user's is touched
        handles = [nn.modules.module.register_module_forward_hook(record)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def find_output(
    records: Sequence[ModuleOutput], loss: Tensor, parameters: Mapping[str, Tensor], examples: int
) -> tuple[ModuleOutput, tuple[Tensor, ...]]:
    """Find the recorded outputs nearest to the loss through which alone the parameters act on it.

    An output in which the loss is linear is a loss itself (one for each example) or a bare score; its slope holds
    nothing of the target, so what lies behind it is taken instead.

    Args:
        records: What `recorded_outputs` collected.
        loss: The loss that was computed from it, a scalar.
        parameters: Trainable parameters by name.
        examples: Number of examples n; an output has it as its first axis.

    Returns:
        The outputs and, for each of their tensors, the derivative of the loss with respect to it.

    Raises:
        ValueError: If no recorded outputs separate all parameters from the loss. Penalties on parameters alone do
            not count, nor do parameters of a single number such as a temperature; those that meet the output entry by
            entry are held fixed and named.
    """
    names: dict[Tensor, str] = {}
    for record in records:
        for t in record.tensors:
            if t.dim() > 0 and t.shape[0] == examples and t.grad_fn is not None:
                names[t] = record.name
    linear: list[str] = []
    while True:
        cut = {t.grad_fn for t in names}
        walked = reachable(loss.grad_fn, cut)
        tensors = tuple(t for t in names if t.grad_fn in walked)
        outside = {id(p): name for name, p in parameters.items() if p.numel() > 1}
        held, across = _beside(walked, cut, outside)
        if not tensors or across:
            raise ValueError(_refusal(linear, across))
        slopes, flat = partial_slopes(loss, tensors)
        if not flat:
            return ModuleOutput(" and ".join(dict.fromkeys(names[t] for t in tensors)), tensors, held), slopes
        linear += [names.pop(t) for t in flat]


def _refusal(linear: list[str], across: Sequence[str]) -> str:
    seen = f" (the loss is linear in the output of {linear[0]}, so its slope is not a residual)" if linear else ""
    if across and not linear:
        seen = f" (the parameter {across[0]} acts on the loss beside it)"
    return (
        "no output of a submodule with the examples along its first axis carries the whole loss"
        f"{seen}, so residuals cannot be found: pass ProbeSet(loss_fn=...), a function (module, batch) -> losses [n] "
        "that calls the module, or a submodule that returns the prediction, on the batch"
    )


ENTRY_BY_ENTRY = frozenset(
    f"{name}Backward{number}"
    for name in ("Add", "Sub", "Rsub", "Mul", "Div", "Pow", "Maximum", "Minimum", "Where", "Addcmul", "Addcdiv")
    for number in (0, 1)
)


def _beside(
    walked: Mapping[Any, list[Any]], cut: set[Any], parameters: Mapping[int, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say which parameters act on the loss beside the outputs, and not only by a number of their own, as penalties do.

    Args:
        walked: Nodes between the loss and the cut, with their children.
        cut: Nodes of the outputs.
        parameters: Names of the parameters that count, by identity.

    Returns:
        Names of those that meet the outputs entry by entry, and of those that do otherwise.
    """
    leaves = [node for node in walked if id(getattr(node, "variable", None)) in parameters and node not in cut]
    held: list[str] = []
    across: list[str] = []
    from_output = _above(walked, cut) if leaves else set()
    for leaf in leaves:
        from_parameter = _above(walked, {leaf})
        for node in from_output & from_parameter:
            kinds = {(child in from_output, child in from_parameter) for child in walked[node]} - {(False, False)}
            if len(kinds) > 1 and not (node.name() in ("AddBackward0", "SubBackward0") and output_shape(node) == ()):
                (held if node.name() in ENTRY_BY_ENTRY else across).append(parameters[id(leaf.variable)])
    return tuple(dict.fromkeys(held)), tuple(dict.fromkeys(across))


def _above(walked: Mapping[Any, list[Any]], start: set[Any]) -> set[Any]:
    """Nodes whose value depends on one of `start`, those included."""
    parents: dict[Any, list[Any]] = {}
    for node, children in walked.items():
        for child in children:
            parents.setdefault(child, []).append(node)
    waiting = [node for node in start if node in walked]
    above = set(waiting)
    while waiting:
        for parent in parents.get(waiting.pop(), []):
            if parent not in above:
                above.add(parent)
                waiting.append(parent)
    return above


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def reachable(start: Any, cut: set[Any]) -> dict[Any, list[Any]]:
    """Nodes on the way from `start` down to the nodes of `cut`, where the way ends, each with its children."""
    children: dict[Any, list[Any]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node is None or node in children:
            continue
        children[node] = [] if node in cut else [child for child, _ in node.next_functions if child is not None]
        waiting += children[node]
    return children


def partial_slopes(loss: Tensor, outputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """D loss / d output for each output with the others held fixed, and the outputs whose slope is a constant.

    An autoencoder returns its code and the reconstruction made from it: the slope of the code is that of the
    penalty on the code alone, without what flows back through the decoder.

    Args:
        loss: A scalar.
        outputs: Tensors that it depends on.
    """
    nodes = {t.grad_fn for t in outputs}
    nested = any(nodes & reachable(t.grad_fn, nodes - {t.grad_fn}).keys() - {t.grad_fn} for t in outputs)
    if nested:
        slopes = [_one_slope(loss, t, [o for o in outputs if o is not t]) for t in outputs]
    else:
        slopes = _slopes(loss, outputs)
    found = [(t, s) for t, s in zip(outputs, slopes, strict=True) if s is not None]
    flat = [t for t, s in found if s.grad_fn is None or nodes.isdisjoint(reachable(s.grad_fn, nodes))]
    plain = (torch.zeros_like(t) if s is None else s.detach() for t, s in zip(outputs, slopes, strict=True))
    return tuple(plain), flat


def _one_slope(loss: Tensor, output: Tensor, fixed: Sequence[Tensor]) -> Tensor | None:
    handles = [t.register_hook(torch.zeros_like) for t in fixed]
    try:
        return _slopes(loss, [output])[0]
    finally:
        for handle in handles:
            handle.remove()


def _slopes(loss: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    # The graph of the slope tells whether it depends on the output at all: sgn in |f - y| does, a mean does not.
    return torch.autograd.grad(loss, list(outputs), create_graph=True, allow_unused=True)
