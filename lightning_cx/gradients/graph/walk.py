"""The one walk over the graph of a loss."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from lightning_cx.gradients.graph.nodes import Node

Step = TypeVar("Step", bound=Hashable)
Edge = tuple["Node | None", int]  # the node that made an input, and which of its outputs it is
_DDP_SINK = "_DDPSinkBackward"


def walk(
    start: Step, onwards: Callable[[Step], Iterable[Step]] | None = None, inputs_first: bool = False
) -> Iterator[Step]:
    """Yield what can be reached from `start`, each once.

    Args:
        start: A node, or whatever `onwards` understands: a node with a number, or with what was found on the way.
        onwards: Where to go on from a step; nothing stops the walk there. None goes to the inputs of a node. It is
            called after the step was yielded, so the caller may make it depend on what it found there.
        inputs_first: Whether each comes after everything that can be reached from it, instead of before.
    """
    go_on: Callable[[Step], Iterable[Step]] = inputs if onwards is None else onwards
    seen: set[Step] = set()
    waiting = [start]
    entered: list[Step] = []  # those that wait for what is above them in `waiting`
    while waiting:
        step = waiting.pop()
        if step not in seen:
            seen.add(step)
            if inputs_first:
                entered.append(step)
                waiting.append(step)
            else:
                yield step
            waiting += go_on(step)
        elif entered and entered[-1] is step:
            yield entered.pop()


def inputs(node: Node) -> list[Node]:
    """Return the nodes that made a node's differentiable inputs, parameters among them."""
    return [child for child, _ in input_edges(node) if child is not None]


def input_edges(node: Node) -> Sequence[Edge]:
    """Return, for each input, the node that made it and which of its outputs it is; None for data and constants."""
    edges = node.next_functions
    for child, _ in edges:
        if child is not None and child.name() == _DDP_SINK:
            return [passed_on(*edge) for edge in edges]
    return edges


def root_of(loss: Tensor) -> Node | None:
    """Return the node that a loss came from; None for one without a graph."""
    return passed_on(loss.grad_fn, loss.output_nr)[0]


def passed_on(node: Node | None, output: int) -> tuple[Node | None, int]:
    """Return the node and output that DDP hands on under another name, where it looks for unused parameters.

    All tensors that a training step returns pass through that one node; each is as it was.
    """
    if node is None or node.name() != _DDP_SINK:
        return node, output
    wanted = node.needs_input_grad[1:]  # the first argument is DDP itself, and some of the others may be no tensors
    return [edge for edge in node.next_functions if edge[0] is not None][sum(wanted[:output])]
