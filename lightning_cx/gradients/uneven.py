"""Losses whose denominator is not the number of examples."""

from __future__ import annotations

from lightning_cx.gradients.graph import Graph

_MEAN = 1  # as ATen numbers the reductions of a loss


def shares_are_uneven(graph: Graph, batch_size: int) -> bool:
    """Whether a cross entropy divides by class weights, or by how many examples were not ignored, instead of by N."""
    nodes = {parent for uses in graph.parents.values() for parent, _, _ in uses}
    for node in nodes:
        if node.name() in ("NllLossBackward0", "NllLoss2DBackward0") and node._saved_reduction == _MEAN:
            ignored = node._saved_target.numel() == batch_size != float(node._saved_total_weight)
            if node._saved_weight is not None or ignored:
                return True
    return False
