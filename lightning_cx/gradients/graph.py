"""Find, in the autograd graph of a loss, every node that consumes a parameter."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import SavedTensor
from torch.utils.checkpoint import _Holder

Node = Any  # torch.autograd.graph.Node; saved tensors are attributes that its type does not declare

# Nodes that only rearrange or pick entries of a parameter. The map back puts every entry of a gradient in a
# place of its own, so inner products of gradients are the same before and after it.
REARRANGING = frozenset(
    {
        "AliasBackward0",
        "CloneBackward0",
        "PermuteBackward0",
        "ReshapeAliasBackward0",
        "SelectBackward0",
        "SliceBackward0",
        "SplitBackward0",
        "SplitWithSizesBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "SqueezeBackward2",
        "TBackward0",
        "ToCopyBackward0",
        "TransposeBackward0",
        "UnbindBackward0",
        "UnsafeSplitBackward0",
        "UnsafeViewBackward0",
        "UnsqueezeBackward0",
        "ViewBackward0",
    }
)
VIEWS = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})


@dataclass(frozen=True)
class Step:
    """One node between a parameter and its consumer, with the output of it that is used."""

    node: Node
    output: int

    @property
    def isometric(self) -> bool:
        """Whether inner products of gradients survive the way back through this node."""
        if self.node.name() != "EmbeddingBackward0":
            return True
        indices = self.node._saved_indices
        return indices.unique().numel() == indices.numel()

    def lift(self, rows: Tensor) -> Tensor:
        """Turn per-example gradients of the node's output, [N, ...], into those of its input."""
        outputs = len(self.node._input_metadata)
        dtype = self.node._input_metadata[self.output].dtype
        lifted = []
        for row in rows:
            gradients = [torch.zeros(m.shape, dtype=m.dtype, device=row.device) for m in self.node._input_metadata]
            gradients[self.output] = row.to(dtype)
            # An autograd node is a function of its output gradients; these nodes keep no state that a call uses up.
            result = self.node(*gradients) if outputs > 1 else self.node(gradients[0])
            lifted.append(result[0] if isinstance(result, tuple) else result)
        return torch.stack(lifted).to(rows.dtype)


@dataclass(frozen=True)
class Operand:
    """One use of one parameter: input number `index` of a consuming node, reached by `path` from the parameter."""

    name: str
    index: int
    shape: tuple[int, ...]
    path: tuple[Step, ...]


@dataclass
class Graph:
    """The part of an autograd graph that concerns parameters.

    Attributes:
        parents: For each node, the nodes that use its outputs, with the input number and the output number.
        leaves: The accumulation node of each parameter that the loss reaches, by name.
        consumers: For each consuming node, its operands that are parameters.
    """

    parents: dict[Node, list[tuple[Node, int, int]]] = field(default_factory=dict)
    leaves: dict[str, Node] = field(default_factory=dict)
    consumers: dict[Node, list[Operand]] = field(default_factory=dict)


def output_shape(node: Node, output: int = 0) -> tuple[int, ...]:
    """Return the shape of one output of a node."""
    return tuple(node._input_metadata[output].shape)


def read_graph(loss: Tensor, parameters: Mapping[str, Tensor], batch_size: int) -> Graph:
    """Walk the graph of `loss` and list where each of `parameters` is consumed."""
    graph = Graph()
    names = {id(parameter): name for name, parameter in parameters.items()}
    root = loss.grad_fn
    waiting: list[Node] = [] if root is None else [root]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for index, (child, output) in enumerate(node.next_functions):
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
    for name, leaf in graph.leaves.items():
        _follow(graph, name, leaf, tuple(parameters[name].shape), (), batch_size)
    return graph


def _follow(
    graph: Graph, name: str, node: Node, shape: tuple[int, ...], path: tuple[Step, ...], batch_size: int
) -> None:
    for parent, index, output in graph.parents.get(node, []):
        steps = path if not path else (*path[:-1], Step(path[-1].node, output))
        here = shape if not path else output_shape(node, output)
        if parent.name() in REARRANGING or _is_table(graph, parent, batch_size):
            _follow(graph, name, parent, output_shape(parent), (*steps, Step(parent, 0)), batch_size)
        else:
            graph.consumers.setdefault(parent, []).append(Operand(name, index, here, steps))


def _is_table(graph: Graph, node: Node, batch_size: int) -> bool:
    """Whether an embedding is looked up once for the whole batch, like a table of positions."""
    if node.name() != "EmbeddingBackward0":
        return False
    shape = output_shape(node)
    if len(shape) < 2 or shape[0] != batch_size:
        time_first = len(shape) > 2 and shape[0] > 1 and shape[1] == batch_size
        return not time_first
    # One index per example and one per position look alike when both are N long: a table is broadcast.
    return any(
        len(output_shape(parent)) > len(shape) and parent.name() in ("AddBackward0", "MulBackward0")
        for parent, _, _ in graph.parents.get(node, [])
    )


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
    """Whether a node leads from one parameter to a summand of the loss without meeting data, like a weight penalty."""
    while node.name() in OF_ONE_TENSOR:
        inputs = {child for child, _ in node.next_functions}
        if len(inputs) != 1 or None in inputs:
            return False
        if output_shape(node) == ():
            return _is_summand(graph, node)
        parents = {parent for parent, _, _ in graph.parents.get(node, [])}
        if len(parents) != 1:
            return False
        node = parents.pop()
    return False


def _is_summand(graph: Graph, node: Node) -> bool:
    """Whether a number is only scaled and added on its way to the loss: one that scales data is no penalty."""
    waiting = [(node, False)]
    while waiting:
        node, joined = waiting.pop()  # once the data's loss has joined, only constant factors leave the sum a sum
        for parent, _, _ in graph.parents.get(node, []):
            children = [child for child, _ in parent.next_functions]
            single = len({child for child in children if child is not None}) == 1
            factor = parent.name() in ("MulBackward0", "DivBackward0") and single and (None in children or not joined)
            function = parent.name() in OF_ONE_TENSOR and single and not joined
            summed = parent.name() in ("AddBackward0", "SubBackward0", "NegBackward0")
            if output_shape(parent) != () or not (factor or function or summed):
                return False
            waiting.append((parent, joined or not single))
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
    names = {node.name() for node in (*graph.parents, *graph.consumers)}  # the loss itself is nobody's child
    found = next((advice for name, advice in HIDING.items() if name in names), None)
    if (
        found is None
        and not hasattr(SavedTensor, "data")
        and any(type(o) is _Holder for o in gc.get_referrers(_Holder))
    ):
        # Before torch had SavedTensor.data, nothing told whose it was: any checkpoint that is alive counts.
        found = "torch.utils.checkpoint without reentry"
    return found


def is_checkpointed(node: Node) -> bool:
    """Whether non-reentrant activation checkpointing holds the saved tensors of a node; they unpack only once."""
    packed = (getattr(node, name, None) for name in dir(node) if name.startswith("_raw_saved_"))
    return any(type(getattr(saved, "data", None)) is _Holder for saved in packed)
