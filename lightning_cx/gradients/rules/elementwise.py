"""Rules of parameters that meet the data entry by entry: shifts, scales, slopes, thresholds, temperatures."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working

Entries = Callable[[Tensor], Tensor]  # gradient of the output -> that of the operand, before sums over what it spans


def broadcast(site: Site, entries: Entries) -> Capture:
    """Read a parameter that is spread over the examples: sum up where each example's entries used it."""
    shape, target, n = output_shape(site.node), site.operand.shape, site.batch_size
    aligned = (1,) * (len(shape) - len(target)) + target
    if n == 1:
        return lambda gradient: Rows(working(entries(gradient)).sum_to_size(aligned).reshape(1, *target))
    axis, inner = site.examples()
    if aligned[axis] != 1:
        site.refuse(f"a parameter of shape {target} has an axis of its own for the examples of {shape}")
    summed = [other for other, size in enumerate(aligned) if size == 1 and other != axis and shape[other] != 1]

    def capture(gradient: Tensor) -> Use:
        values = working(entries(gradient)).expand(shape)
        values = values.sum(summed, keepdim=True) if summed else values
        values = values.unflatten(axis, (-1, n, inner)).sum((axis, axis + 2)).movedim(axis, 0)
        return Rows(values.reshape(n, *target))

    return capture


@rule("AddBackward0", "SubBackward0", "RsubBackward0")
def _shift(site: Site) -> Capture:
    sign = -1.0 if (site.node.name(), site.operand.index) in (("SubBackward0", 1), ("RsubBackward0", 0)) else 1.0
    scaled = (site.operand.index == 0) == (site.node.name() == "RsubBackward0")
    factor = sign * (site.node._saved_alpha if scaled else 1)
    return broadcast(site, lambda gradient: gradient if factor == 1 else working(gradient) * factor)


@rule("MulBackward0")
def _scale(site: Site) -> Capture:
    node, other = site.node, "_saved_other" if site.operand.index == 0 else "_saved_self"
    return broadcast(site, lambda gradient: working(gradient) * working(getattr(node, other)))


@rule("DivBackward0")
def _divide(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 0:
        return broadcast(site, lambda gradient: working(gradient) / working(node._saved_other))

    def entries(gradient: Tensor) -> Tensor:
        divisor = working(node._saved_other)
        return working(gradient) * -working(node._saved_self) / divisor.square()

    return broadcast(site, entries)


@rule("ExpandBackward0")
def _expand(site: Site) -> Capture:
    return broadcast(site, lambda gradient: gradient)


@rule("RepeatBackward0")
def _repeat(site: Site) -> Capture:
    """Copies one after the other on each axis; those on the axis of the examples belong to one example each."""
    shape, target, n = output_shape(site.node), site.operand.shape, site.batch_size
    aligned = (1,) * (len(shape) - len(target)) + target
    axis, inner = site.examples() if n > 1 else (0, shape[0])
    copies, rest = divmod(inner, aligned[axis])
    if rest:
        site.refuse(f"a parameter of shape {target} has an axis of its own for the examples of {shape}")

    def capture(gradient: Tensor) -> Use:
        values = working(gradient)
        for place in range(len(shape) - 1, -1, -1):
            if place == axis:
                values = values.unflatten(place, (-1, n, copies, aligned[place])).sum((place, place + 2))
            else:
                values = values.unflatten(place, (-1, aligned[place])).sum(place)
        return Rows(values.movedim(axis, 0).reshape(n, *target))

    return capture


@rule(
    "AddcdivBackward0",
    "AddcmulBackward0",
    "Atan2Backward0",
    "ClampBackward0",
    "ClampMaxBackward1",
    "ClampMinBackward1",
    "CopysignBackward0",
    "FmaxBackward0",
    "FminBackward0",
    "HypotBackward0",
    "LerpBackward0",
    "LerpBackward1",
    "Logaddexp2Backward0",
    "LogaddexpBackward0",
    "MaskedFillBackward0",
    "MaximumBackward0",
    "MinimumBackward0",
    "PowBackward1",
    "PreluKernelBackward0",
    "WhereBackward0",
    "XlogyBackward0",
)
def _entry_by_entry(site: Site) -> Capture:
    """What autograd itself computes for each entry; the engine sums over what was spread only afterwards."""
    node, index = site.node, site.operand.index

    def entries(gradient: Tensor) -> Tensor:
        results = node(gradient)
        return results[index] if isinstance(results, tuple) else results

    return broadcast(site, entries)
