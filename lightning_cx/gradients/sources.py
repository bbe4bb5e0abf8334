"""Tensors made of parameters alone: slices and transposes, normalised, scaled or orthogonal weights, whole tables.

A weight is often not a parameter but a function of parameters. Examples enter where such a tensor meets data, so that
is where their gradients are read; from there each one is sent on to the parameter by the nodes in between.

Autograd does not tell data from constants: the batch of a first layer and the mask of a pruned weight are both inputs
without gradient. So a node belongs to the weight only if nothing without gradient enters it, or if the examples, as
they were followed down from the loss, do not lie in its output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import _Holder

Node = Any  # torch.autograd.graph.Node; saved tensors are attributes that its type does not declare
Parents = Mapping[Node, list[tuple[Node, int, int]]]

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
_PLAIN = frozenset({"AliasBackward0", "DivBackward0", "MulBackward0", "NegBackward0", "TBackward0", "ToCopyBackward0"})
SPREADING = frozenset({"ExpandBackward0", "RepeatBackward0"})  # perhaps over the examples
_NORMALISING = frozenset({"NativeBatchNormBackward0", "NativeGroupNormBackward0", "NativeLayerNormBackward0"})
# What a node saves of its own outputs, which autograd does not always mark as such.
_OWN_RESULTS = (
    "_saved_result",
    "_saved_LU",
    "_saved_pivots",
    "_saved_Q",
    "_saved_R",
    "_saved_U",
    "_saved_S",
    "_saved_V",
)
_ATEN = re.compile(r"[A-Z]\w*Backward\d+")  # a custom Function has no number; what it does with data is not known


def output_shape(node: Node, output: int = 0) -> tuple[int, ...]:
    """Return the shape of one output of a node, or of a parameter."""
    return tuple(node.variable.shape if hasattr(node, "variable") else node._input_metadata[output].shape)


def made_of_parameters(
    parents: Parents, leaves: Mapping[str, Node], shared: Callable[[Node], bool]
) -> dict[Node, frozenset[str]]:
    """Find all nodes that are made of parameters (`leaves`) and constants alone, with the names of the parameters.

    Args:
        parents: For each node, the nodes that use its outputs.
        leaves: The accumulation node of each parameter.
        shared: Whether the output of a node is known to be the same tensor for all examples.
    """
    made = {leaf: frozenset([name]) for name, leaf in leaves.items()}
    waiting = list(made)
    while waiting:
        for parent, _, _ in parents.get(waiting.pop(), []):
            children = {child for child, _ in parent.next_functions if child is not None}
            if parent not in made and made.keys() >= children and _is_transformation(parent, shared):
                made[parent] = frozenset().union(*(made[child] for child in children))
                waiting.append(parent)
    return made


def _is_transformation(node: Node, shared: Callable[[Node], bool]) -> bool:
    """Whether a node all of whose inputs are made of parameters makes another such tensor."""
    name = node.name()
    if name in REARRANGING:
        return True
    return (
        is_native(node)
        and not is_checkpointed(node)
        and (shared(node) or not (name in SPREADING or _takes_in_more(node)))
    )


def is_native(node: Node) -> bool:
    """Whether a node is one of PyTorch's own, a function of its output gradients that may be called again."""
    return _ATEN.fullmatch(node.name()) is not None


def _takes_in_more(node: Node) -> bool:
    """Whether anything but its differentiable inputs and numbers goes into a node: data, perhaps."""
    if node.name() in _NORMALISING:  # besides the input there are only weights and statistics
        return node.next_functions[0][0] is None
    saved = [name for name in _fields(type(node), "_saved_") if not name.startswith(_OWN_RESULTS)]
    try:
        tensors = [tensor for name in saved for tensor in _tensors(getattr(node, name))]
    except RuntimeError:  # changed in place since: the backward itself will say so
        return True
    constants = [tensor for tensor in tensors if not tensor.requires_grad]
    if any(tensor.dim() > 0 for tensor in constants):
        return True
    absent = sum(child is None for child, _ in node.next_functions)
    return absent > len(constants)  # a product saves the number that it multiplies by, a sum does not


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [entry for entry in values if isinstance(entry, Tensor)]


@cache
def _fields(kind: type, prefix: str) -> tuple[str, ...]:
    """Names of what a kind of node has saved."""
    return tuple(name for name in dir(kind) if name.startswith(prefix))


def is_checkpointed(node: Node) -> bool:
    """Whether non-reentrant activation checkpointing holds the saved tensors of a node; they unpack only once."""
    packed = (getattr(node, name, None) for name in _fields(type(node), "_raw_saved_"))
    return any(type(getattr(saved, "data", None)) is _Holder for saved in packed)


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
        return _PLAIN.issuperset(node.name() for node in self.nodes) and self.scale is not None

    @cached_property
    def turned(self) -> bool:
        """Whether it is transposed."""
        return sum(node.name() == "TBackward0" for node in self.nodes) % 2 == 1

    @cached_property
    def scale(self) -> float | None:
        """The factor by which a chain of rearrangements and constant factors changes gradients; None if it does more.

        Inner products of gradients change by its square.
        """
        scale = 1.0
        for node in self.nodes:
            factor = 1.0 if node.name() in REARRANGING else _factor(node)
            if factor is None:
                return None
            scale *= factor
        return scale

    def lift(self, rows: Tensor) -> Tensor:
        """Turn per-example gradients of the tensor, [N, ...], into those of the parameter."""
        return torch.stack([self._lift(row) for row in rows]).to(rows.dtype) if self.nodes else rows

    def _lift(self, row: Tensor) -> Tensor:
        """What a backward through these nodes alone gives; no hooks of the user's run.

        An autograd node is a function of its output gradients; these nodes keep no state that a call uses up.
        """
        arrived: dict[tuple[Node, int], Tensor] = {
            (self.node, self.output): row.reshape(output_shape(self.node, self.output))
        }
        members = {self.leaf, *self.nodes}
        for node in self.nodes:
            outputs = node._input_metadata
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


def _factor(node: Node) -> float | None:
    """The number that a node multiplies its only input by, None if it does anything else."""
    name, others = node.name(), [child for child, _ in node.next_functions]
    if name == "NegBackward0":
        return -1.0
    if name in ("AddBackward0", "SubBackward0") and others[1:] == [None] and _keeps_shape(node):
        return 1.0
    if name in ("MulBackward0", "DivBackward0") and others[1:] == [None] and node._saved_other.dim() == 0:
        factor = float(node._saved_other)
        return factor if name == "MulBackward0" else 1 / factor
    if name == "EmbeddingBackward0":
        indices = node._saved_indices
        return 1.0 if indices.unique().numel() == indices.numel() and node._saved_padding_idx < 0 else None
    return 1.0 if name in ("FlipBackward0", "RollBackward0") else None


def _keeps_shape(node: Node) -> bool:
    return output_shape(*node.next_functions[0]) == output_shape(node)


def way_down(made: Mapping[Node, frozenset[str]], node: Node, leaf: Node, name: str) -> tuple[Node, ...]:
    """List the nodes from `node` down to a parameter's leaf, each behind all that use it."""
    if node is leaf:
        return ()
    if node.name() == "TBackward0" and node.next_functions[0][0] is leaf:  # the weight of a linear layer
        return (node,)
    children: dict[Node, set[Node]] = {}
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here is leaf or here in children:
            continue
        below = {child for child, _ in here.next_functions if child is not None}
        children[here] = {child for child in below if name in made[child]}
        waiting += children[here]
    return tuple(here for here in reversed(list(TopologicalSorter(children).static_order())) if here is not leaf)
