"""Nodes that act entry by entry: parameters that meet the data so, and activations.

Shifts, scales, slopes, thresholds and temperatures are parameters that are spread over the examples.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.products import Rows, Use, working
from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides, first_input
from lightning_cx.gradients.graph.nodes import Capture, Node, NodeRecord, Site, register_node

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


def _shift(site: Site) -> Capture:
    sign = -1.0 if (site.node.name(), site.operand.index) in (("SubBackward0", 1), ("RsubBackward0", 0)) else 1.0
    scaled = (site.operand.index == 0) == (site.node.name() == "RsubBackward0")
    factor = sign * (saved(site.node, "alpha") if scaled else 1)
    return broadcast(site, lambda gradient: gradient if factor == 1 else working(gradient) * factor)


def _scale(site: Site) -> Capture:
    node, other = site.node, "other" if site.operand.index == 0 else "self"
    return broadcast(site, lambda gradient: working(gradient) * working(saved(node, other)))


def _divide(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 0:
        return broadcast(site, lambda gradient: working(gradient) / working(saved(node, "other")))

    def entries(gradient: Tensor) -> Tensor:
        divisor = working(saved(node, "other"))
        return working(gradient) * -working(saved(node, "self")) / divisor.square()

    return broadcast(site, entries)


def _expand(site: Site) -> Capture:
    return broadcast(site, lambda gradient: gradient)


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
        for other in range(len(shape) - 1, -1, -1):
            if other == axis:
                values = values.unflatten(other, (-1, n, copies, aligned[other])).sum((other, other + 2))
            else:
                values = values.unflatten(other, (-1, aligned[other])).sum(other)
        return Rows(values.movedim(axis, 0).reshape(n, *target))

    return capture


def _entry_by_entry(site: Site) -> Capture:
    """What autograd itself computes for each entry; the engine sums over what was spread only afterwards."""
    node, index = site.node, site.operand.index

    def entries(gradient: Tensor) -> Tensor:
        results = node(gradient)
        return results[index] if isinstance(results, tuple) else results

    return broadcast(site, entries)


def _repeated(move: AxisMove) -> Strides:
    shape = move.inputs[0]
    axis = move.axis - (len(move.shape) - len(shape or ()))
    if move.axis < 0:
        return ["" if shape is None else f"{move.name} spreads what examples share an axis with"]
    return [SHARED if shape is None or axis < 0 or shape[axis] == 1 else move.at(0, axis)]


def _only_first_differentiable(node: Node) -> bool:
    return [child for child, _ in node.next_functions][1:] == [None]


def _has_constant(node: Node) -> bool:
    return any(child is None for child, _ in node.next_functions)


def _scale_of_shift(node: Node) -> float | None:
    kept = output_shape(*node.next_functions[0]) == output_shape(node) if _only_first_differentiable(node) else False
    return 1.0 if kept else None


def _constant_number(node: Node) -> Tensor | None:
    """The number that a product or quotient is taken with, if its other input is a constant without axes."""
    other = saved(node, "other") if _only_first_differentiable(node) else None
    return other if other is not None and other.dim() == 0 else None


def _scale_of_product(node: Node) -> float | None:
    factor = _constant_number(node)
    return None if factor is None else float(factor)


def _scale_of_quotient(node: Node) -> float | None:
    divisor = _constant_number(node)
    return None if divisor is None else 1 / float(divisor)


register_node(
    NodeRecord(rule=_shift, saves=("alpha",), adds=True, elementwise=True, scale=_scale_of_shift, plan_key=("alpha",)),
    "AddBackward0",
    "SubBackward0",
)
register_node(NodeRecord(rule=_shift, saves=("alpha",)), "RsubBackward0")
# With a plain number as the other operand.
register_node(NodeRecord(adds=True), *(f"{name}Backward1" for name in ("Add", "Sub", "Rsub", "Mul", "Div")))
register_node(NodeRecord(adds=True, in_place=True, scale=lambda _: -1.0), "NegBackward0")
register_node(
    NodeRecord(
        rule=_scale,
        saves=("self", "other"),
        adds=_has_constant,
        elementwise=True,
        multiplies=True,
        in_place=True,
        scale=_scale_of_product,
        plan_key=("self", "other"),
    ),
    "MulBackward0",
)
register_node(
    NodeRecord(
        rule=_divide,
        saves=("self", "other"),
        adds=_only_first_differentiable,
        elementwise=True,
        in_place=True,
        scale=_scale_of_quotient,
        divisor=_constant_number,
        plan_key=("self", "other"),
    ),
    "DivBackward0",
)
register_node(NodeRecord(rule=_expand, moves=_repeated, repeats=True, adds=True), "ExpandBackward0")
register_node(NodeRecord(rule=_repeat, moves=_repeated, repeats=True), "RepeatBackward0")
register_node(
    NodeRecord(rule=_entry_by_entry),
    *("AddcdivBackward0", "AddcmulBackward0", "Atan2Backward0", "ClampBackward0", "ClampMaxBackward1"),
    *("ClampMinBackward1", "CopysignBackward0", "FmaxBackward0", "FminBackward0", "HypotBackward0"),
    *("LerpBackward0", "LerpBackward1", "Logaddexp2Backward0", "LogaddexpBackward0", "MaskedFillBackward0"),
    *("MaximumBackward0", "MinimumBackward0", "PowBackward1", "WhereBackward0", "XlogyBackward0"),
)
register_node(NodeRecord(rule=_entry_by_entry, moves=first_input), "PreluKernelBackward0")
register_node(
    NodeRecord(plan_key=()),
    *("ReluBackward0", "TanhBackward0", "SigmoidBackward0", "GeluBackward0", "SiluBackward0", "EluBackward0"),
    *("LeakyReluBackward0", "SoftplusBackward0"),
)
register_node(NodeRecord(saves=("exponent",), plan_key=("exponent",)), "PowBackward0")
