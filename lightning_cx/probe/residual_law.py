"""Ask a loss whether its slope at the outputs of a model is a residual, and in which unit.

A residual is what is missing to the target: it shrinks as the target is learned, in a unit that stays the same. For
squared errors, cross entropy, Poisson and all other likelihoods with a canonical link the slope is that, times a
constant. It is not where the output holds the scale of its own error (a learned variance, a mixture): such a loss is
convex in its outputs nowhere near an error, as these others are everywhere, and that can be seen without knowing the
targets. Nor is it where the loss is piecewise linear: the slope of an absolute error is a sign, however small it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_cx.batch import Anatomy, parts_of, replaced, targets_of
from lightning_cx.probe.outputs import Chunk, ModuleOutput, ResidualLaw, find_output, reachable, recorded_outputs
from lightning_cx.probe.passes import ProbePasses

PROBES = 4  # random directions in the space of the outputs; each example has its own
ROUNDING = 1e-3  # relative, of products in single precision
SEED = 0

FLAT = (
    "the loss is piecewise linear in the output of {source} (absolute errors, quantiles): its slope says which way, "
    "and not how far"
)
SCALES_ITSELF = (
    "the loss is not convex in the output of {source}, as where it holds more than a prediction (a learned variance, a "
    "mixture): its slope changes its unit as the model learns"
)
BESIDE = "the parameter {held} acts on the loss beside the output of {source}, and not on each entry of it alone"


def residual_law(passes: ProbePasses, batch: Any, examples: int, anatomy: Anatomy) -> ResidualLaw:
    """Find out what the slope of a loss is, from its curvature at the outputs of a few examples.

    Args:
        passes: The model and its loss.
        batch: Some examples.
        examples: How many.
        anatomy: Which tensors of the batch are targets.

    Raises:
        ValueError: If no output carries the whole loss.
    """
    with passes.isolated():
        found, slopes, alone = _slopes(passes, batch, examples)
        other = _with_other_targets(passes, batch, examples, anatomy)
        rows_of_all = _rows(slopes, examples)
        source, outputs, slopes = found.name, *_of_the_targets(found.tensors, slopes, other)
        rows = _rows(slopes, examples)
        draw = torch.Generator().manual_seed(SEED)
        tried = []
        for _ in range(PROBES):
            direction = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t) for t in outputs]
            tried.append((_rows(direction, examples), _rows(_products(slopes, outputs, direction), examples)))
        flat = all(not bool(product.any()) for _, product in tried)
        elementwise = flat or _is_elementwise(slopes, outputs, tried[0], examples, draw)
        convex = all(_is_convex(direction, product) for direction, product in tried)
        if flat and bool(rows.any()):
            return ResidualLaw(flat=FLAT.format(source=source))
        if found.held and not elementwise:
            return ResidualLaw(BESIDE.format(held=found.held[0], source=source))
        if not convex and not elementwise:
            return ResidualLaw(SCALES_ITSELF.format(source=source))
        if elementwise and not flat and _is_constant(slopes, outputs):
            return ResidualLaw(squared=alone)
    return ResidualLaw(unit=_unit(batch, examples, anatomy, rows_of_all, other))


def _slopes(passes: ProbePasses, batch: Any, examples: int) -> tuple[ModuleOutput, tuple[Tensor, ...], bool]:
    """The outputs next to the loss, the slopes of the examples' own losses there with their graph, if these are all.

    Of outputs that are made of each other, as a reconstruction is of its code, the last ones count.
    """
    chunk = Chunk(passes.place(batch), examples)
    with recorded_outputs(passes.module) as records:
        loss = passes.loss_of(chunk.batch)
    output, _ = find_output(records, loss.sum(), passes.trainable(), examples)
    nodes = {t: t.grad_fn for t in output.tensors}
    inside = {t: {n for o, n in nodes.items() if o is not t} & set(reachable(nodes[t], set())) for t in nodes}
    last = tuple(t for t in nodes if not any(nodes[t] in used for used in inside.values()))
    found = torch.autograd.grad(passes.summed(loss, examples), list(last), create_graph=True, allow_unused=True)
    slopes = tuple(torch.zeros_like(t) if s is None else s for t, s in zip(last, found, strict=True))
    return replace(output, tensors=last), slopes, len(last) == len(output.tensors)


def _products(slopes: Sequence[Tensor], outputs: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The second derivative of the loss with respect to the outputs, times a direction."""
    graph = [(s, d) for s, d in zip(slopes, direction, strict=True) if s.requires_grad]
    if not graph:
        return [torch.zeros_like(t) for t in outputs]
    inner = torch.stack([(s * d).sum() for s, d in graph]).sum()
    found = torch.autograd.grad(inner, list(outputs), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if p is None else p for t, p in zip(outputs, found, strict=True)]


def _rows(tensors: Sequence[Tensor], examples: int) -> Tensor:
    return torch.cat([t.detach().reshape(examples, -1).double().cpu() for t in tensors], 1)


def _is_convex(direction: Tensor, product: Tensor) -> bool:
    curvature = (direction * product).sum(1)
    return bool((curvature >= -ROUNDING * direction.norm(dim=1) * product.norm(dim=1)).all())


def _is_elementwise(
    slopes: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tried: tuple[Tensor, Tensor],
    examples: int,
    draw: torch.Generator,
) -> bool:
    """Whether each output has an error of its own: other directions in the others leave its product as it was."""
    direction, product = tried
    signs = (torch.rand(direction.shape, generator=draw, dtype=torch.float64) < 0.5).double() * 2 - 1
    widths = [t[0].numel() for t in outputs]
    parts = [part.reshape(t.shape).to(t) for part, t in zip((direction * signs).split(widths, 1), outputs, strict=True)]
    other = _rows(_products(slopes, outputs, parts), examples)
    return bool((other - signs * product).norm() <= ROUNDING * product.norm())


def _is_constant(slopes: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether the curvature does not depend on the outputs, as that of a squared error does not."""
    inner = torch.stack([s.sum() for s in slopes if s.requires_grad]).sum()
    curvature = torch.autograd.grad(inner, list(outputs), create_graph=True, allow_unused=True)
    graph = [c.sum() for c in curvature if c is not None and c.requires_grad]
    if not graph:
        return True
    third = torch.autograd.grad(torch.stack(graph).sum(), list(outputs), retain_graph=True, allow_unused=True)
    size = max(float(c.detach().abs().max()) for c in curvature if c is not None)
    return all(t is None or float(t.abs().max()) <= ROUNDING * size for t in third)


def _with_other_targets(passes: ProbePasses, batch: Any, examples: int, anatomy: Anatomy) -> tuple[Tensor, ...] | None:
    """The slopes if each example had the target of the one before; None where the targets are not known."""
    held = {part.path: part.value for part in parts_of(batch)}
    alone = [path for path in anatomy.targets if path in held and path not in anatomy.inputs]
    targets = held[alone[0]] if anatomy.asked and len(alone) == 1 else None
    if not isinstance(targets, Tensor):
        return None
    try:
        _, slopes, _ = _slopes(passes, replaced(batch, alone[0], targets.roll(1, 0)), examples)
    except (ValueError, RuntimeError):  # the target of one does not fit another
        return None
    return tuple(slope.detach() for slope in slopes)


def _of_the_targets(
    outputs: Sequence[Tensor], slopes: Sequence[Tensor], other: Sequence[Tensor] | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Those outputs whose slope depends on the targets: others, as the choices of a router, carry penalties alone."""
    if other is None or len(other) != len(slopes):
        return tuple(outputs), tuple(slopes)
    moved = [not torch.equal(a.detach(), b) for a, b in zip(slopes, other, strict=True)]
    kept = [
        pair for pair, moves in zip(zip(outputs, slopes, strict=True), moved, strict=True) if moves or not any(moved)
    ]
    return tuple(output for output, _ in kept), tuple(slope for _, slope in kept)


def _unit(batch: Any, examples: int, anatomy: Anatomy, rows: Tensor, other: Sequence[Tensor] | None) -> float:
    """By how much the slope changes where the target does by one; 1 where the targets are not known, or it varies."""
    if other is None:
        return 1.0
    try:
        values = targets_of(batch, anatomy)
    except ValueError:  # no numbers or classes
        return 1.0
    change = (_rows(other, examples) - rows).square().sum(1)
    by = (values.roll(1, 0) - values).square().sum(1).cpu()
    moved = by > 0
    if not bool(moved.any()) or bool((change[~moved] > 0).any()):
        return 1.0
    units = (change[moved] / by[moved]).sqrt()
    unit = float(units.mean())
    even = unit > 0 and bool(((units - unit).abs() <= ROUNDING * unit).all())
    return unit if even and abs(unit - 1) > ROUNDING else 1.0
