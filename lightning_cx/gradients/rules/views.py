"""Nodes that rearrange, pick, cut or put together entries: views, transposes, slices, concatenations."""

from __future__ import annotations

from math import prod

from lightning_cx._torch import saved, saved_names
from lightning_cx.gradients.factors.reparametrised import of_cut
from lightning_cx.gradients.graph.example_axis import AxisMove, Strides, in_order, stride_at
from lightning_cx.gradients.graph.nodes import Node, NodeRecord, register_node, signed


def _turned(move: AxisMove) -> Strides:
    rank = len(move.shape)
    order = list(range(rank))
    if move.name == "PermuteBackward0":
        order = [signed(axis) % rank for axis in saved(move.node, "dims")]
    elif rank > 1:
        pair = (0, 1) if move.name == "TBackward0" else None
        a, b = pair or (move.saved_axis("dim0", rank), move.saved_axis("dim1", rank))
        order[a], order[b] = order[b], order[a]
    if move.axis < 0:
        return [f"{move.name} turns axes over which the examples are spread"]
    return [move.at(0, order[move.axis])]


def _selected(move: AxisMove) -> Strides:
    cut = move.saved_axis("dim", len(move.shape) + 1)
    return [move.at(0, move.axis + (move.axis >= cut))]


def _stacked(move: AxisMove) -> Strides:
    new = move.saved_axis("dim", len(move.shape))
    if move.axis == new:
        return move.everywhere("StackBackward0 joins examples that were processed one by one")
    return [move.at(i, move.axis - (move.axis > new)) for i in range(len(move.inputs))]


def _cut(move: AxisMove) -> Strides:
    axis, shape = move.saved_axis("dim", len(move.shape)), move.inputs[0]
    if move.axis == axis and shape is not None and shape != move.shape:
        start = _cut_start(move.node, move.output, shape[axis])
        if start is None or start % (move.inner * move.n):
            return [f"{move.name} picks or reorders rows"]
    return [move.at(0, move.axis)]


def _cut_start(node: Node, output: int, size: int) -> int | None:
    name = node.name()
    if name == "SliceBackward0":
        begin = signed(saved(node, "start"))
        return (begin + size if begin < 0 else begin) if saved(node, "step") == 1 else None
    if name == "SplitWithSizesBackward0":
        return sum(saved(node, "split_sizes")[:output])
    return output * saved(node, "split_size")


def _concatenated(move: AxisMove) -> Strides:
    if move.axis != move.saved_axis("dim", len(move.shape)):
        return [move.at(i, move.axis) for i in range(len(move.inputs))]
    unit = move.inner * move.n
    if any(shape is None or len(shape) <= move.axis or shape[move.axis] % unit for shape in move.inputs):
        return move.everywhere("CatBackward0 picks or reorders rows")
    return [move.at(i, move.axis) for i in range(len(move.inputs))]


def reordered(move: AxisMove) -> Strides:
    """Nodes that pick or reorder entries along axes that they saved, or in any way if they saved none."""
    node, rank = move.node, len(move.shape)
    name = next((name for name in ("dims", "dim") if name in saved_names(type(node))), None)
    moved = () if name is None else saved(node, name)
    moved = moved if isinstance(moved, tuple) else (moved,)
    if not moved or move.axis in {signed(axis) % rank for axis in moved}:
        return move.everywhere(f"{move.name} picks or reorders rows")
    return [move.at(i, move.axis) for i in range(len(move.inputs))]


def _strided(move: AxisMove) -> Strides:
    """In-place work on a view leaves one behind that keeps the order of memory."""
    node, shape = move.node, move.inputs[0]
    size, strides = tuple(saved(node, "size")), tuple(saved(node, "stride"))
    row_major = all(stride == stride_at(size, axis) for axis, stride in enumerate(strides) if size[axis] > 1)
    if shape is not None and prod(shape) == prod(size) and row_major and not saved(node, "storage_offset"):
        return [move.stride]
    return move.everywhere("AsStridedBackward0 picks or reorders rows")


def _padded(move: AxisMove) -> Strides:
    pads = saved(move.node, "pad")
    from_the_end = 2 * (len(move.shape) - 1 - move.axis)
    if move.axis < 0 or any(pads[from_the_end : from_the_end + 2]):
        return ["ConstantPadNdBackward0 picks or reorders rows"]
    return [move.at(0, move.axis)]


register_node(NodeRecord(moves=in_order, rearranges=True, in_place=True), "AliasBackward0", "ToCopyBackward0")
register_node(NodeRecord(moves=in_order, rearranges=True), "CloneBackward0")
register_node(NodeRecord(moves=in_order, rearranges=True), "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2")
register_node(NodeRecord(moves=in_order, rearranges=True), "UnsqueezeBackward0")
register_node(NodeRecord(moves=in_order, rearranges=True, reshapes=True, plan_key=("self_sym_sizes",)), "ViewBackward0")
register_node(
    NodeRecord(moves=in_order, rearranges=True, reshapes=True), "UnsafeViewBackward0", "ReshapeAliasBackward0"
)
register_node(NodeRecord(moves=_turned, rearranges=True, transposes=True, in_place=True, plan_key=()), "TBackward0")
register_node(
    NodeRecord(moves=_turned, saves=("dim0", "dim1"), rearranges=True), "TransposeBackward0", "TransposeBackward1"
)
register_node(NodeRecord(moves=_turned, saves=("dims",), rearranges=True), "PermuteBackward0")
register_node(NodeRecord(moves=_selected, saves=("dim",), rearranges=True), "SelectBackward0", "UnbindBackward0")
register_node(
    NodeRecord(moves=_cut, saves=("dim", "start", "step"), rearranges=True, cut_start=_cut_start, shortcut=of_cut),
    "SliceBackward0",
)
register_node(
    NodeRecord(moves=_cut, saves=("dim", "split_size"), rearranges=True, cut_start=_cut_start, shortcut=of_cut),
    "SplitBackward0",
    "UnsafeSplitBackward0",
)
register_node(
    NodeRecord(moves=_cut, saves=("dim", "split_sizes"), rearranges=True, cut_start=_cut_start, shortcut=of_cut),
    "SplitWithSizesBackward0",
)
register_node(NodeRecord(moves=_stacked, saves=("dim",), adds=True, joins=True), "StackBackward0")
register_node(NodeRecord(moves=_concatenated, saves=("dim",), adds=True, joins=True), "CatBackward0")
register_node(NodeRecord(moves=reordered, saves=("dims",), scale=lambda _: 1.0), "FlipBackward0", "RollBackward0")
register_node(NodeRecord(moves=reordered, saves=("dim",)), "GatherBackward0")
register_node(NodeRecord(moves=reordered), "MaskedSelectBackward0", "TakeBackward0", "IndexPutBackward0")
register_node(NodeRecord(moves=_strided, saves=("size", "stride", "storage_offset")), "AsStridedBackward0")
register_node(NodeRecord(moves=_padded, saves=("pad",)), "ConstantPadNdBackward0")
