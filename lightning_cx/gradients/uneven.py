"""Losses whose denominator is not the number of examples."""

from __future__ import annotations

from lightning_cx.gradients.graph import Graph, Node

_MEAN = 1  # as ATen numbers the reductions of a loss


def shares_are_uneven(graph: Graph) -> bool:
    """Whether a cross entropy divides by class weights, or by how many examples were not ignored, instead of by N."""
    for node in (*graph.by_name.get("NllLossBackward0", ()), *graph.by_name.get("NllLoss2DBackward0", ())):
        if divides_unevenly(node):
            return True
    return False


def divides_unevenly(node: Node) -> bool:
    """The same of one cross entropy."""
    if node._saved_reduction != _MEAN:
        return False
    return node._saved_weight is not None or float(node._saved_total_weight) != node._saved_target.numel()
