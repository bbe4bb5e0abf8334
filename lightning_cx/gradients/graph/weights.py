"""Functions of parameters: where a graph consumes them, and the way from there back to each parameter.

A weight is often not a parameter but a function of parameters: slices and transposes, normalised, scaled or orthogonal
weights, whole tables. Examples enter where such a tensor meets data, so that is where their gradients are read; from
there each one is sent on to the parameter by the nodes in between.

Autograd does not tell data from constants: the batch of a first layer and the mask of a pruned weight are both inputs
without gradient. So a node belongs to the weight only if nothing without gradient enters it, or if the examples, as
they were followed down from the loss, do not lie in its output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_cx._torch import is_checkpointed, is_leaf, output_metadata, output_shape, saved, saved_names
from lightning_cx.gradients.graph.nodes import Node, is_native, record_of
from lightning_cx.gradients.graph.walk import Edge, input_edges, inputs, root_of, walk

# What a node saves of its own outputs, which autograd does not always mark as such.
_OWN_RESULTS = ("result", "LU", "pivots", "Q", "R", "U", "S", "V")


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
        by_name: All nodes by the name of their type.
        leaves: The accumulation node of each parameter that the loss reaches, by name.
        consumers: For each consuming node, its operands that are parameters or made of them.
        made: All nodes that no data enters, with the parameters behind them.
    """

    parents: dict[Node, list[tuple[Node, int, int]]] = field(default_factory=dict)
    by_name: dict[str, list[Node]] = field(default_factory=dict)
    leaves: dict[str, Node] = field(default_factory=dict)
    consumers: dict[Node, list[Operand]] = field(default_factory=dict)
    made: dict[Node, frozenset[str]] = field(default_factory=dict)


def read_graph(loss: Tensor, parameters: Mapping[str, Tensor], shared: Callable[[Node], bool]) -> Graph:
    """Walk the graph of `loss` and list where each of `parameters` is consumed.

    Args:
        loss: A tensor with a graph.
        parameters: Parameters by name.
        shared: Whether a node computes something that all examples share: such a node, as a weight norm or a table of
            positions, lies on the way from a parameter to where it meets the examples.
    """
    graph, root = Graph(), root_of(loss)
    names = {id(parameter): name for name, parameter in parameters.items()}
    edges: dict[Node, Sequence[Edge]] = {}  # asked for once a node, which is half the time of this function

    def onwards(node: Node) -> list[Node]:
        edges[node] = () if is_leaf(node) else input_edges(node)
        return [child for child, _ in edges[node] if child is not None]

    nodes = [] if root is None else list(walk(root, onwards, inputs_first=True))
    for node in reversed(nodes):  # so that what lies next to the loss comes first, and is named first if refused
        graph.by_name.setdefault(node.name(), []).append(node)
        for index, (child, output) in enumerate(edges[node]):
            if child is not None:
                graph.parents.setdefault(child, []).append((node, index, output))
                if is_leaf(child) and id(child.variable) in names:
                    graph.leaves.setdefault(names[id(child.variable)], child)
    graph.made = {leaf: frozenset([name]) for name, leaf in graph.leaves.items()}
    for node in nodes:
        children = {child for child, _ in edges[node] if child is not None}
        if children and graph.made.keys() >= children and _is_transformation(node, shared):
            graph.made[node] = frozenset().union(*(graph.made[child] for child in children))
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
    sources = {key: Source(name, leaf, *key, _way_down(graph.made, key[0], leaf, name), uses[key]) for key in uses}
    for node, (consumer, index, output) in meeting:
        operand = Operand(name, index, output_shape(node, output), sources[node, output])
        graph.consumers.setdefault(consumer, []).append(operand)


def _way_down(made: Mapping[Node, frozenset[str]], node: Node, leaf: Node, name: str) -> tuple[Node, ...]:
    """List the nodes from `node` down to a parameter's leaf, each behind all that use it."""
    if node is leaf:
        return ()
    if record_of(node).transposes and node.next_functions[0][0] is leaf:  # the weight of a linear layer
        return (node,)
    nodes = walk(node, lambda here: [child for child in inputs(here) if name in made[child]], inputs_first=True)
    return tuple(here for here in reversed(list(nodes)) if here is not leaf)


def _is_transformation(node: Node, shared: Callable[[Node], bool]) -> bool:
    """Whether a node all of whose inputs are made of parameters makes another such tensor."""
    record = record_of(node)
    if record.rearranges:
        return True
    if not is_native(node) or is_checkpointed(node):
        return False
    return shared(node) or not (record.repeats or _takes_in_more(node))


def is_of_parameters(node: Node) -> bool:
    """Return whether a node is made of parameters alone, as the inside of a penalty is, by the nodes themselves."""
    return all(is_leaf(here) or _is_transformation(here, lambda _: False) for here in walk(node))


def _takes_in_more(node: Node) -> bool:
    """Whether anything but its differentiable inputs and numbers goes into a node: data, perhaps."""
    absent = sum(child is None for child, _ in node.next_functions)
    if record_of(node).statistics_only:
        return node.next_functions[0][0] is None
    names = [name for name in saved_names(type(node)) if not name.startswith(_OWN_RESULTS)]
    try:
        tensors = [tensor for name in names for tensor in _tensors(saved(node, name))]
    except RuntimeError:  # changed in place since: the backward itself will say so
        return True
    constants = [tensor for tensor in tensors if not tensor.requires_grad]
    if any(tensor.dim() > 0 for tensor in constants):
        return True
    return absent > len(constants)  # a product saves the number that it multiplies by, a sum does not


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [entry for entry in values if isinstance(entry, Tensor)]


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor made of a parameter, as consuming nodes see it, and the way of a gradient from it to the parameter.

    Attributes:
        name: The parameter.
        leaf: Its accumulation node.
        node: The node whose output the tensor is: the leaf itself for the parameter as it stands.
        output: Which output.
        nodes: All nodes from that one down to the parameter, each behind everything that uses it.
        uses: How many inputs of consuming nodes the tensor serves as.
    """

    name: str
    leaf: Node
    node: Node
    output: int
    nodes: tuple[Node, ...]
    uses: int

    @cached_property
    def plain(self) -> bool:
        """Whether the tensor is the parameter up to transposition, a factor and precision."""
        return all(record_of(node).in_place for node in self.nodes) and self.scale is not None

    @cached_property
    def transposed(self) -> bool:
        """Whether it is transposed."""
        return sum(record_of(node).transposes for node in self.nodes) % 2 == 1

    @cached_property
    def scale(self) -> float | None:
        """The factor by which a chain of rearrangements and constant factors changes gradients; None if it does more.

        Inner products of gradients change by its square.
        """
        scale = 1.0
        for node in self.nodes:
            record = record_of(node)
            factor = 1.0 if record.rearranges else None if record.scale is None else record.scale(node)
            if factor is None:
                return None
            scale *= factor
        return scale

    def send_on(self, rows: Tensor) -> Tensor:
        """Turn per-example gradients of the tensor, [N, ...], into those of the parameter."""
        return torch.stack([self._send_on(row) for row in rows]).to(rows.dtype) if self.nodes else rows

    def _send_on(self, row: Tensor) -> Tensor:
        """What a backward through these nodes alone gives; no hooks of the user's run.

        An autograd node is a function of its output gradients; these nodes keep no state that a call uses up.
        """
        arrived: dict[tuple[Node, int], Tensor] = {
            (self.node, self.output): row.reshape(output_shape(self.node, self.output))
        }
        members = {self.leaf, *self.nodes}
        for node in self.nodes:
            outputs = output_metadata(node)
            gradients = [arrived.pop((node, i), None) for i in range(len(outputs))]
            results = node(*(None if g is None else g.to(m.dtype) for g, m in zip(gradients, outputs, strict=True)))
            results = results if isinstance(results, tuple) else (results,)
            for edge, result in zip(node.next_functions, results, strict=True):
                if edge[0] in members and result is not None:
                    # nodes that broadcast leave it to the engine to sum over what they spread
                    reduced = result.sum_to_size(output_shape(*edge))
                    arrived[edge] = arrived[edge] + reduced if edge in arrived else reduced
        found = arrived.get((self.leaf, 0))
        return torch.zeros_like(self.leaf.variable) if found is None else found
