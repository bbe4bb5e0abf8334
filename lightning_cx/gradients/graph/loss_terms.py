"""The summands of a loss: tensors that are added up into it, what they are divided by, and penalties among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_cx._torch import is_leaf, output_shape, saved
from lightning_cx.gradients.graph.nodes import Node, record_of
from lightning_cx.gradients.graph.walk import input_edges, inputs, root_of, walk

if TYPE_CHECKING:
    from lightning_cx.gradients.graph.weights import Graph

ROUNDING = 1e-5  # of a quotient of counts


@dataclass(frozen=True)
class LossTerm:
    """One summand.

    Attributes:
        node: The node whose output it is.
        output: Which output.
        via: The node that sums it up.
        added: Whether nothing but sums, means and factors lie between it and the loss.
    """

    node: Node
    output: int
    via: Node
    added: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return output_shape(self.node, self.output)


def loss_terms(root: Node) -> Iterator[LossTerm]:
    """Yield the tensors that are summed into the loss of this node."""
    added = {root: True}
    for node in walk(root, lambda here: [child for child, _ in _edges(here) if child in added]):
        goes_on = added[node] and (record_of(node).is_loss or is_linear(node))
        for child, output in _edges(node):
            if prod(output_shape(child, output)) > 1 and not _of_numbers(child):
                yield LossTerm(child, output, node, goes_on)
            else:
                added.setdefault(child, goes_on)


def averaged_rows(loss: Tensor) -> int | None:
    """Return how many rows the largest summand of a loss has, which it sums or averages; None without a summand."""
    shapes = [term.shape for term in loss_terms(root_of(loss)) if term.shape]
    return max(shapes, key=prod)[0] if shapes else None


def is_linear(node: Node) -> bool:
    """Return whether a sum of examples stays one through a node."""
    record = record_of(node)
    return record.rearranges or (record.adds if isinstance(record.adds, bool) else record.adds(node))


def _edges(node: Node) -> list[tuple[Node, int]]:
    """Inputs that are no parameters."""
    return [edge for edge in input_edges(node) if edge[0] is not None and not is_leaf(edge[0])]


def _of_numbers(node: Node) -> bool:
    """Whether a node puts numbers together, as one that stacks the losses of several heads."""
    alone = all(prod(output_shape(*edge)) == 1 for edge in input_edges(node) if edge[0] is not None)
    return record_of(node).joins and alone


def divides_by_a_count(root: Node, examples: int) -> bool:
    """Return whether a sum over examples is divided by a count that differs from one to the next.

    As in `(loss * mask).sum() / mask.sum()`: a number that is no multiple of N, or the sum of what leaves some examples
    less than others. A number below N that Python has given is a constant: half a loss, or accumulated batches.
    """
    for term in loss_terms(root):
        sums = record_of(term.via).sums
        if sums is not None and sums(term.via):
            for number in _divisors(root, term.via):
                share, given = float(number) / examples, number.dtype in (torch.int64, torch.float64)
                whole = share > 1 - ROUNDING and min(share % 1, 1 - share % 1) < ROUNDING
                if (not whole and (share > 1 or not given)) or _adds_up_to(term, float(number), examples):
                    return True
    return False


def _divisors(root: Node, summing: Node) -> list[Tensor]:
    """Numbers without a gradient that lie between a sum and the loss as divisors."""
    numbers: dict[Node, list[Tensor]] = {root: []}
    for node in walk(root):
        if node is summing:
            return numbers[node]
        divisor = record_of(node).divisor
        number = None if divisor is None else divisor(node)
        for child in inputs(node):
            numbers.setdefault(child, numbers[node] if number is None else [*numbers[node], number])
    return []


def _adds_up_to(term: LossTerm, number: float, examples: int) -> bool:
    """Whether what is summed is a product with constants, [N, ...], that add up to a number, some examples to less."""
    node = term.node
    if not record_of(node).multiplies or term.shape[0] != examples:
        return False
    constants = [factor for factor in (saved(node, "self"), saved(node, "other")) if factor is not None]
    constants = [factor for factor in constants if not factor.requires_grad and tuple(factor.shape) == term.shape]
    sums = [factor.detach().reshape(examples, -1).double().sum(1) for factor in constants]
    return any(abs(float(own.sum()) - number) <= ROUNDING * number and bool((own != own[0]).any()) for own in sums)


def is_penalty(graph: Graph, node: Node) -> bool:
    """Return whether what a node consumes is a summand of the loss made of parameters alone, like a weight penalty."""
    if node in graph.made:
        return True
    scalar = output_shape(node) == () and all(operand.shape == () for operand in graph.consumers[node])
    if not scalar or record_of(node).adds is not True:
        return False
    # A number that data has joined is only scaled and added on its way to the loss.
    users = walk(node, lambda here: [parent for parent, _, _ in graph.parents.get(here, [])])
    return all(output_shape(user) == () and is_linear(user) for user in users)
