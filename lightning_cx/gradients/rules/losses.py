"""Losses: sums or means over examples of something of their own."""

from __future__ import annotations

from torch import Tensor

from lightning_cx._torch import saved
from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides
from lightning_cx.gradients.graph.nodes import Node, NodeRecord, register_node, signed

_MEAN, _SUM = 1, 2  # as ATen numbers the reductions of a loss
_REDUCTION = ("reduction",)


def _is_sum(node: Node) -> bool:
    return saved(node, "reduction") == _SUM


def _divides_unevenly(node: Node) -> bool:
    """By class weights, or by how many examples were not ignored."""
    if saved(node, "reduction") != _MEAN:
        return False
    return saved(node, "weight") is not None or float(saved(node, "total_weight")) != saved(node, "target").numel()


def _counts(node: Node) -> Tensor:
    """What each target counts for: nothing if it is ignored, else the weight of its class."""
    target, weight = saved(node, "target"), saved(node, "weight")
    kept = target != signed(saved(node, "ignore_index"))
    return kept.double() if weight is None else kept * weight[target.clamp_min(0)].double()


def _chosen_class(move: AxisMove) -> Strides:
    """Losses that were not reduced: the class axis is gone."""
    shape = move.inputs[0]
    return [move.at(0, move.axis + (move.axis > 0 and shape is not None))]


def _transcribed(move: AxisMove) -> Strides:
    """Time leads in the scores, unless there is one sequence without an axis for it."""
    return [SHARED if shape is None else move.at(i, len(shape) - 2) for i, shape in enumerate(move.inputs)]


register_node(
    NodeRecord(
        moves=_chosen_class,
        saves=("reduction", "weight", "total_weight", "target", "ignore_index"),
        is_loss=True,
        sums=_is_sum,
        divides_unevenly=_divides_unevenly,
        counts=_counts,
        class_axis=1,
        plan_key=_REDUCTION,
    ),
    "NllLossBackward0",
    "NllLoss2DBackward0",
)
register_node(NodeRecord(saves=_REDUCTION, is_loss=True, sums=_is_sum, plan_key=_REDUCTION), "MseLossBackward0")
register_node(
    NodeRecord(saves=_REDUCTION, is_loss=True, sums=_is_sum),
    *("SmoothL1LossBackward0", "HuberLossBackward0", "SoftMarginLossBackward0"),
    *("BinaryCrossEntropyBackward0", "BinaryCrossEntropyWithLogitsBackward0"),
    *("MultiMarginLossBackward0", "MultilabelMarginLossBackward0"),
)
register_node(NodeRecord(moves=_transcribed, is_loss=True), "CtcLossBackward0")
register_node(NodeRecord(is_loss=True), "CtcLossBackward1", "DotBackward0")
