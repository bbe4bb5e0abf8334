"""Remember the plan of a graph: training builds the same one step after step, and planning is most of an attachment.

Only graphs of nodes whose every detail that a plan depends on is compared are remembered: perceptrons, whose steps are
short enough for planning to matter. Anything else is planned afresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch._C._autograd import SavedTensor

from lightning_cx.gradients.graph import Node, is_checkpointed
from lightning_cx.gradients.planning import Plan, Work
from lightning_cx.gradients.uneven import divides_unevenly

_NO_DETAILS = ("Mm", "T", "Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "Elu", "LeakyRelu", "Softplus")
# For each kind of node, what of it a plan depends on beside names, shapes and edges.
_DETAILS: dict[str, tuple[str, ...]] = {
    **{f"{name}Backward0": () for name in (*_NO_DETAILS, "Mean", "Sum")},
    "AddmmBackward0": ("_saved_alpha", "_saved_beta"),
    "AddBackward0": ("_saved_alpha",),
    "SubBackward0": ("_saved_alpha",),
    "PowBackward0": ("_saved_exponent",),
    "MseLossBackward0": ("_saved_reduction",),
    "NllLossBackward0": ("_saved_reduction",),
    "LogSoftmaxBackward0": ("_saved_dim",),
    "MeanBackward1": ("_saved_dim", "_saved_keepdim"),
    "SumBackward1": ("_saved_dim", "_saved_keepdim"),
    "ViewBackward0": ("_saved_self_sym_sizes",),
}
_SEES_CHECKPOINTS = hasattr(SavedTensor, "data")  # older versions of torch do not tell what holds a saved tensor
_OF_PARAMETERS = frozenset({"AddmmBackward0", "MmBackward0", "TBackward0"})


class Reference:
    """Stands for a node in what is remembered, and for its successor in the next graph."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def __hash__(self) -> int:
        return hash(self.node)

    def __eq__(self, other: object) -> bool:
        return self.node == (other.node if isinstance(other, Reference) else other)


class Memory:
    """The last plan, for the next graph that is built alike."""

    def __init__(self) -> None:
        self._signature: list[Any] | None = None
        self._references: dict[int, Reference] = {}
        self._work: dict[int, Work] = {}
        self._leaves: dict[str, int] = {}
        self._rest = Plan()

    def plan_for(self, root: Node, make: Callable[[Callable[[Node], Node]], Plan]) -> Plan:
        """Return the plan of a graph: the last one with this graph's nodes, or what `make` makes.

        Args:
            root: The node of the loss.
            make: Makes a plan, given what its captures are to hold in place of a node.
        """
        nodes = _walk(root)
        signature = None if nodes is None else _signature(nodes)
        if nodes is None or signature is None:
            self.__init__()
            return make(lambda node: node)
        if signature != self._signature:
            self.__init__()
            made = make(lambda node: self._references.setdefault(nodes[node], Reference(node)))
            self._work = {nodes[node]: work for node, work in made.work.items()}
            self._leaves = {name: nodes[leaf] for name, leaf in made.leaves.items()}
            self._rest = replace(made, work={}, leaves={})
            self._signature = signature
        in_order = list(nodes)
        for place, reference in self._references.items():
            reference.node = in_order[place]
        work = {in_order[place]: work for place, work in self._work.items()}
        leaves = {name: in_order[place] for name, place in self._leaves.items()}
        rest = self._rest
        return Plan(work, rest.expected, leaves, rest.penalised, rest.status, rest.notes)

    def let_go(self) -> None:
        """Hold no graph any longer."""
        for reference in self._references.values():
            reference.node = None


def _walk(root: Node) -> dict[Node, int] | None:
    """All nodes of a graph with their numbers, None if it has nodes of a kind that is not remembered."""
    if not _SEES_CHECKPOINTS:
        return None
    nodes: dict[Node, int] = {root: 0}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        of_parameters = node.name() in _OF_PARAMETERS
        if node.name() not in _DETAILS or (of_parameters and is_checkpointed(node)):
            return None
        for child, _ in node.next_functions:
            if child is None or child in nodes:
                continue
            nodes[child] = len(nodes)
            if not hasattr(child, "variable"):
                waiting.append(child)
            elif not of_parameters:
                return None
    return nodes


def _signature(nodes: dict[Node, int]) -> list[Any] | None:
    """All that a plan depends on, None where that cannot be said."""
    signature: list[Any] = []
    for node in nodes:
        if hasattr(node, "variable"):
            signature.append((id(node.variable), tuple(node.variable.shape)))
            continue
        name = node.name()
        edges = [-1 if child is None else nodes[child] for child, _ in node.next_functions]
        details = [getattr(node, detail) for detail in _DETAILS[name]]
        shape = tuple(node._input_metadata[0].shape)
        uneven = name == "NllLossBackward0" and divides_unevenly(node)
        signature.append((name, shape, edges, details, uneven))
    return signature
