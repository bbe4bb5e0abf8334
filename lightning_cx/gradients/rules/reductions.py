"""Nodes that run along an axis: sums and means, softmaxes, cumulative sums, sorting and scattering.

Those that reduce axes need no `moves` of their own: `by_shape` reads the axes that they saved.
"""

from __future__ import annotations

from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides
from lightning_cx.gradients.graph.nodes import NodeRecord, register_node


def _along_one_axis(move: AxisMove) -> Strides:
    name = "dimension" if move.name == "UnfoldBackward0" else "dim"
    rank = len(move.inputs[0] or move.shape)
    if move.axis == move.saved_axis(name, rank):
        raise move.refuse("runs along it")
    return [move.at(i, move.axis) if shape else SHARED for i, shape in enumerate(move.inputs)]


_AXES = ("dim", "keepdim")
register_node(NodeRecord(adds=True, reduces=True, plan_key=()), "MeanBackward0")
register_node(NodeRecord(saves=_AXES, adds=True, reduces=True, plan_key=_AXES), "MeanBackward1")
register_node(NodeRecord(adds=True, reduces=True, sums=lambda _: True, plan_key=()), "SumBackward0")
register_node(NodeRecord(saves=_AXES, adds=True, reduces=True, sums=lambda _: True, plan_key=_AXES), "SumBackward1")
register_node(NodeRecord(reduces=True), "Amax*", "Logsumexp*", "MaxBackward*", "Std*", "Var*")

register_node(NodeRecord(moves=_along_one_axis, saves=("dim",), plan_key=("dim",)), "LogSoftmaxBackward0")
register_node(
    NodeRecord(moves=_along_one_axis, saves=("dim",)),
    *("SoftmaxBackward0", "CumsumBackward0", "CumprodBackward0", "LogcumsumexpBackward0", "GluBackward0"),
    *("SortBackward0", "TopkBackward0", "CummaxBackward0", "CumminBackward0", "RenormBackward0"),
    *("ScatterBackward0", "ScatterAddBackward0", "IndexAddBackward0", "IndexCopyBackward0"),
)
register_node(NodeRecord(moves=_along_one_axis, saves=("dimension",)), "UnfoldBackward0")
