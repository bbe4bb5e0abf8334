"""Find, in the autograd graph of a loss, every node that consumes a parameter."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch._C._autograd import SavedTensor
from torch.utils.checkpoint import _Holder

from lightning_cx.gradients.sources import (
    REARRANGING,
    Node,
    Source,
    is_checkpointed,
    made_of_parameters,
    output_shape,
    way_down,
)

__all__ = [
    "HIDING",
    "OF_ONE_TENSOR",
    "REARRANGING",
    "VIEWS",
    "Graph",
    "Node",
    "Operand",
    "hides_parameters",
    "is_checkpointed",
    "is_penalty",
    "output_shape",
    "passed_on",
    "read_graph",
    "root_of",
]

VIEWS = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})


@dataclass(frozen=True)
class Operand:
    """One use of one parameter: input number `index` of a consuming node, a tensor of `shape` made of the parameter."""

    name: str
    index: int
    shape: tuple[int, ...]
    source: Source


@dataclass
class Graph:
    """The part of an autograd graph that concerns parameters.

    Attributes:
        parents: For each node, the nodes that use its outputs, with the input number and the output number.
        by_name: All nodes by the name of their kind.
        leaves: The accumulation node of each parameter that the loss reaches, by name.
        consumers: For each consuming node, its operands that are parameters or made of them.
        made: All nodes that no data enters, with the parameters behind them.
    """

    parents: dict[Node, list[tuple[Node, int, int]]] = field(default_factory=dict)
    by_name: dict[str, list[Node]] = field(default_factory=dict)
    leaves: dict[str, Node] = field(default_factory=dict)
    consumers: dict[Node, list[Operand]] = field(default_factory=dict)
    made: dict[Node, frozenset[str]] = field(default_factory=dict)


_SINK = "_DDPSinkBackward"


def root_of(loss: Tensor) -> Node | None:
    """The node that a loss came from; None for one without a graph."""
    return passed_on(loss.grad_fn, loss.output_nr)[0]


def passed_on(node: Node | None, output: int) -> tuple[Node | None, int]:
    """The node and output that DDP hands on under another name, where it looks for parameters that are not used.

    All tensors that a training step returns pass through that one node; each is as it was.
    """
    if node is None or node.name() != _SINK:
        return node, output
    wanted = node.needs_input_grad[1:]  # the first argument is DDP itself, and some of the others may be no tensors
    return [edge for edge in node.next_functions if edge[0] is not None][sum(wanted[:output])]


def read_graph(loss: Tensor, parameters: Mapping[str, Tensor], shared: Callable[[Node], bool]) -> Graph:
    """Walk the graph of `loss` and list where each of `parameters` is consumed.

    Args:
        loss: A tensor with a graph.
        parameters: Parameters by name.
        shared: Whether a node computes something that all examples share: such a node, as a weight norm or a table of
            positions, lies on the way from a parameter to where it meets the examples.
    """
    graph = Graph()
    names = {id(parameter): name for name, parameter in parameters.items()}
    root = root_of(loss)
    waiting: list[Node] = [] if root is None else [root]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        graph.by_name.setdefault(node.name(), []).append(node)
        for index, edge in enumerate(node.next_functions):
            child, output = passed_on(*edge)
            if child is None:
                continue
            graph.parents.setdefault(child, []).append((node, index, output))
            if child in seen:
                continue
            seen.add(child)
            waiting.append(child)
            variable = getattr(child, "variable", None)
            if variable is not None and id(variable) in names:
                graph.leaves[names[id(variable)]] = child
    graph.made = made_of_parameters(graph.parents, graph.leaves, shared)
    made_of: dict[str, list[Node]] = {name: [] for name in graph.leaves}
    for node, behind in graph.made.items():
        for name in behind:
            made_of[name].append(node)
    for name, leaf in graph.leaves.items():
        _list_consumers(graph, name, leaf, made_of[name])
    return graph


def _list_consumers(graph: Graph, name: str, leaf: Node, made: list[Node]) -> None:
    """Find where tensors made of one parameter meet data, or the end of the graph."""
    edges = [(node, edge) for node in made for edge in graph.parents.get(node, [])]
    meeting = [(node, edge) for node, edge in edges if edge[0] not in graph.made]
    # a loss of parameters alone meets no data
    meeting += [(node, edge) for node, edge in edges if edge[0] in graph.made and edge[0] not in graph.parents]
    uses = Counter((node, output) for node, (_, _, output) in meeting)
    sources = {key: Source(name, leaf, *key, way_down(graph.made, key[0], leaf, name), uses[key]) for key in uses}
    for node, (consumer, index, output) in meeting:
        operand = Operand(name, index, output_shape(node, output), sources[node, output])
        graph.consumers.setdefault(consumer, []).append(operand)


OF_ONE_TENSOR = frozenset(
    {
        "AbsBackward0",
        "LinalgVectorNormBackward0",
        "MeanBackward0",
        "MeanBackward1",
        "MulBackward0",
        "NormBackward0",
        "NormBackward1",
        "PowBackward0",
        "SqrtBackward0",
        "SumBackward0",
        "SumBackward1",
    }
)


def is_penalty(graph: Graph, node: Node) -> bool:
    """Whether what a node consumes is a summand of the loss made of parameters alone, like a weight penalty."""
    if node in graph.made:
        return True
    scalar = output_shape(node) == () and all(operand.shape == () for operand in graph.consumers[node])
    return scalar and node.name() in ("AddBackward0", "SubBackward0") and _is_summand(graph, node)


def _is_summand(graph: Graph, node: Node) -> bool:
    """Whether a number that data has joined is only scaled and added on its way to the loss."""
    waiting = [node]
    while waiting:
        for parent, _, _ in graph.parents.get(waiting.pop(), []):
            children = [child for child, _ in parent.next_functions]
            factor = parent.name() in ("MulBackward0", "DivBackward0") and children[1:] == [None]
            summed = parent.name() in ("AddBackward0", "SubBackward0", "NegBackward0")
            if output_shape(parent) != () or not (factor or summed):
                return False
            waiting.append(parent)
    return True


HIDING = {
    "CheckpointFunctionBackward": "CheckpointFunctionBackward of activation checkpointing; replay_gradients reads it",
    "CompiledFunctionBackward": (
        "CompiledFunctionBackward of a compiled forward; run that forward inside "
        'torch.compiler.set_stance("force_eager")'
    ),
}


def hides_parameters(graph: Graph) -> str | None:
    """Name of a node behind which parameters cannot be seen, if the graph has one, with what to do about it."""
    found = next((advice for name, advice in HIDING.items() if name in graph.by_name), None)
    if (
        found is None
        and not hasattr(SavedTensor, "data")
        and any(type(o) is _Holder for o in gc.get_referrers(_Holder))
    ):
        # Before torch had SavedTensor.data, nothing told whose it was: any checkpoint that is alive counts.
        found = "torch.utils.checkpoint without reentry"
    return found
