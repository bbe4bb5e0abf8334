"""The summands of a loss: tensors that are added up into it, and whether they are only added up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from lightning_cx.gradients.graph import REARRANGING, Node, output_shape, passed_on
from lightning_cx.gradients.places import Shape

# Nodes through which a sum over examples stays one; products and quotients if the other side is a number.
_ADDING = REARRANGING | {"AddBackward0", "CatBackward0", "ExpandBackward0", "NegBackward0", "StackBackward0"}
_ADDING |= {"AddBackward1", "SubBackward0", "SubBackward1", "RsubBackward1", "MulBackward1", "DivBackward1"}
_ADDING |= {"MeanBackward0", "MeanBackward1", "SumBackward0", "SumBackward1"}
_SCALING = frozenset({"MulBackward0", "DivBackward0"})
_LOSSES = ("NllLoss", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "SoftMarginLoss", "KlDiv")
_LOSSES += ("MultiMarginLoss", "MultilabelMarginLoss", "CtcLoss", "Dot")


@dataclass(frozen=True)
class Tail:
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
    def shape(self) -> Shape:
        return output_shape(self.node, self.output)


def tails_of(root: Node) -> Iterator[Tail]:
    """Tensors that are summed into the loss of this node."""
    waiting, seen = [(root, True)], {root}
    while waiting:
        node, added = waiting.pop()
        added = added and _adds(node)
        for edge in node.next_functions:
            child, output = passed_on(*edge)
            if child is None or hasattr(child, "variable"):
                continue
            if prod(output_shape(child, output)) > 1 and not _of_numbers(child):
                yield Tail(child, output, node, added)
            elif child not in seen:
                seen.add(child)
                waiting.append((child, added))


def _adds(node: Node) -> bool:
    name = node.name()
    if name in _SCALING:
        return any(child is None for child, _ in node.next_functions)
    return name in _ADDING or name.startswith(_LOSSES)


def _of_numbers(node: Node) -> bool:
    """Whether a node puts numbers together, as one that stacks the losses of several heads."""
    children = [(child, output) for child, output in node.next_functions if child is not None]
    alone = all(prod(output_shape(child, output)) == 1 for child, output in children)
    return node.name() in ("StackBackward0", "CatBackward0") and alone
