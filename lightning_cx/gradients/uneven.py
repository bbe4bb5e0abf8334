"""Losses whose denominator is not the number of examples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.gradients.graph import Graph, Node
from lightning_cx.gradients.tails import Tail, tails_of

_MEAN, _SUM = 1, 2  # as ATen numbers the reductions of a loss
_SUMMING = frozenset({"SumBackward0", "SumBackward1"})
ROUNDING = 1e-5  # of a quotient of counts


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


def divides_by_a_count(root: Node, examples: int) -> bool:
    """Whether a sum over examples is divided by a count that differs from one to the next.

    As in `(loss * mask).sum() / mask.sum()`: a number that is no multiple of N, or the sum of what leaves some examples
    less than others. A number below N that Python has given is a constant: half a loss, or accumulated batches.
    """
    for tail in tails_of(root):
        if tail.via.name() in _SUMMING or getattr(tail.via, "_saved_reduction", None) == _SUM:
            for number in _divisors(root, tail.via):
                share, given = float(number) / examples, number.dtype in (torch.int64, torch.float64)
                whole = share > 1 - ROUNDING and min(share % 1, 1 - share % 1) < ROUNDING
                if (not whole and (share > 1 or not given)) or _adds_up_to(tail, float(number), examples):
                    return True
    return False


def _divisors(root: Node, summing: Node) -> list[Tensor]:
    """Numbers without a gradient that lie between a sum and the loss as divisors."""
    ways: list[tuple[Node, list[Tensor]]] = [(root, [])]
    seen = {root}
    while ways:
        node, numbers = ways.pop()
        if node is summing:
            return numbers
        if node.name() == "DivBackward0" and node.next_functions[1][0] is None and node._saved_other.dim() == 0:
            numbers = [*numbers, node._saved_other]
        fresh = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= fresh
        ways += [(child, numbers) for child in fresh]
    return []


def _adds_up_to(tail: Tail, number: float, examples: int) -> bool:
    """Whether what is summed is a product with constants, [N, ...], that add up to a number, some examples to less."""
    node = tail.node
    if node.name() != "MulBackward0" or tail.shape[0] != examples:
        return False
    constants = [saved for saved in (node._saved_self, node._saved_other) if saved is not None]
    constants = [saved for saved in constants if not saved.requires_grad and tuple(saved.shape) == tail.shape]
    sums = [saved.detach().reshape(examples, -1).double().sum(1) for saved in constants]
    return any(abs(float(own.sum()) - number) <= ROUNDING * number and bool((own != own[0]).any()) for own in sums)
