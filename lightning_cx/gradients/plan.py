"""What a tap will do at which node: everything that can be refused is refused here, before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_cx._torch import (
    SEES_CHECKPOINTS,
    any_checkpoint_alive,
    is_checkpointed,
    is_leaf,
    output_metadata,
    output_shape,
    saved,
)
from lightning_cx.gradients import rules  # noqa: F401  (fills the registry of nodes)
from lightning_cx.gradients.accumulate import Request
from lightning_cx.gradients.errors import UnreachedError, UnsupportedGradientError
from lightning_cx.gradients.factors.products import Affine, Products, Use
from lightning_cx.gradients.graph.example_axis import ExampleAxis
from lightning_cx.gradients.graph.loss_terms import divides_by_a_count, is_penalty
from lightning_cx.gradients.graph.nodes import Capture, Joint, Node, Site, capture_of, record_of
from lightning_cx.gradients.graph.walk import Edge, input_edges, root_of, walk
from lightning_cx.gradients.graph.weights import Graph, Operand, read_graph
from lightning_cx.gradients.sample import CONTRIBUTION, COUNT_UNEVENLY, EXACT

Work = list[tuple[Operand, Capture | Joint]]


@dataclass
class Plan:
    """Which captures run at which node, and what the rows will mean.

    Attributes:
        work: For each consuming node, its operands with their captures.
        expected: Name, node and members of each use, as `Accumulator.expect` takes them.
        leaves: The accumulation node of each parameter that the loss reaches.
        penalised: Parameters with a penalty in the loss, which the sum check leaves out.
        status: What the rows mean.
        notes: What a reader should know.
    """

    work: dict[Node, Work] = field(default_factory=dict)
    expected: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    leaves: dict[str, Node] = field(default_factory=dict)
    penalised: frozenset[str] = frozenset()
    status: str = EXACT
    notes: tuple[str, ...] = ()


def make_plan(
    loss: Tensor,
    parameters: Mapping[str, Tensor],
    request: Request,
    batch_size: int,
    batch_first: bool | None,
    referred: Callable[[Node], Node] = lambda node: node,
) -> Plan:
    """Read the graph of a loss and decide what to do at each node that consumes a parameter.

    Args:
        loss: A tensor with a graph.
        parameters: Trainable parameters by name.
        request: What is asked for.
        batch_size: Number of examples N.
        batch_first: As in `ExampleAxis`.
        referred: What the captures are to hold in place of a node.

    Raises:
        UnsupportedGradientError: If a parameter is consumed in a way that no rule reads.
    """
    axis = ExampleAxis(root_of(loss), batch_size, batch_first, {id(p) for p in parameters.values()})
    graph = read_graph(loss, parameters, axis.shared)
    _refuse_what_cannot_be_seen(graph, parameters)
    made = Plan(leaves=graph.leaves)
    uses = Counter(operand.name for operands in graph.consumers.values() for operand in operands)
    penalised: set[str] = set()
    contrasted = axis.interacts
    for node, operands in graph.consumers.items():
        if is_penalty(graph, node):
            penalised.update(operand.name for operand in operands)
            continue
        if is_checkpointed(node):
            where = f"{node.name()} of {operands[0].name}"
            raise UnsupportedGradientError(where, "activation checkpointing holds its saved tensors")
        work: Work = [(operand, capture_of(Site(referred(node), operand, axis))) for operand in operands]
        contrasted |= node in axis.guessed
        joint = _as_affine(node, work, uses, batch_size) if request.joint else None
        if joint is not None:
            operand, members, capture = joint
            work = [(operand, capture)]
            made.expected.append((operand.name, node.name(), members))
        else:
            made.expected += [(operand.name, node.name(), ()) for operand in operands]
        made.work[node] = work
    made.penalised = frozenset(penalised)
    counted = batch_size > 1 and divides_by_a_count(root_of(loss), batch_size)
    counted |= batch_size > 1 and any(
        record.counts is not None and not axis.counts_evenly(node, record.counts(node))
        for nodes in graph.by_name.values()
        for record in [record_of(nodes[0])]
        for node in nodes
        if record.divides_unevenly is not None and record.divides_unevenly(node)
    )
    _say_what_rows_mean(made, graph, parameters, contrasted, counted, batch_size)
    return made


def _refuse_what_cannot_be_seen(graph: Graph, parameters: Mapping[str, Tensor]) -> None:
    hidden = _hiding(graph)
    if hidden is not None:
        raise UnsupportedGradientError(hidden, "parameters inside it cannot be seen before the backward")
    for name in (name for name, parameter in parameters.items() if hasattr(parameter, "device_mesh")):
        # The loss depends on the whole parameter: the piece would be taken for one that is not used.
        raise UnsupportedGradientError(f"{name} is sharded: each process holds a piece of it")
    for name in (name for name, parameter in parameters.items() if parameter.is_complex()):
        raise UnsupportedGradientError(f"{name} is complex", "only gradients of real parameters are read")
    for node, operands in graph.consumers.items():
        outputs = output_metadata(node)
        if outputs and outputs[0].dtype.is_complex:
            raise UnsupportedGradientError(f"{node.name()} of {operands[0].name}", "its output is complex")
    if not graph.leaves:
        raise UnreachedError("the loss reaches none of the parameters")


def _say_what_rows_mean(
    made: Plan, graph: Graph, parameters: Mapping[str, Tensor], contrasted: bool, counted: bool, batch_size: int
) -> None:
    several = batch_size > 1
    coupled = several and any(
        record.couples(node)
        for nodes in graph.by_name.values()
        for record in [record_of(nodes[0])]
        if record.couples is not None
        for node in nodes
    )
    made.status = CONTRIBUTION if coupled or contrasted or counted else EXACT
    notes = {
        "not used by this loss": [name for name in parameters if name not in graph.leaves],
        "penalty on parameters alone, left out": sorted(made.penalised),
        "rows are contributions, since BatchNorm in training mode couples the examples": [""] * coupled,
        "rows are contributions, since examples interact outside of BatchNorm": [""] * contrasted,
        f"rows are contributions, since {COUNT_UNEVENLY}": [""] * counted,
    }
    made.notes = tuple(f"{text}: {', '.join(names)}".rstrip(": ") for text, names in notes.items() if names)


def _hiding(graph: Graph) -> str | None:
    """A node behind which parameters cannot be seen, if the graph has one, with what to do about it."""
    for name, (node, *_) in graph.by_name.items():
        advice = record_of(node).hides
        if advice:
            return f"{name} {advice}"
    # Where nothing tells whose a saved tensor is, any checkpoint that is alive counts.
    return "torch.utils.checkpoint without reentry" if not SEES_CHECKPOINTS and any_checkpoint_alive() else None


def _as_affine(
    node: Node, work: Sequence[tuple[Operand, Capture | Joint]], uses: Counter[str], batch_size: int
) -> tuple[Operand, tuple[str, str], Capture] | None:
    """Return one operand for weight and bias, their names and a capture, if each example passes a linear layer once.

    Args:
        node: A node that consumes parameters.
        work: Its operands, with their captures.
        uses: How often each parameter is used.
        batch_size: Number of examples N.
    """
    if record_of(node).matrices != (1, 2) or len(work) != 2 or output_shape(node)[0] != batch_size:
        return None
    (bias, _), (weight, capture) = sorted(work, key=lambda item: item[0].index)
    once = uses[bias.name] == 1 == uses[weight.name] and bias.name != weight.name
    plain = bias.source.scale == 1 == weight.source.scale
    as_it_stands = saved(node, "alpha") == 1 == saved(node, "beta") and bias.shape == output_shape(node)[1:]
    if (bias.index, weight.index) != (0, 2) or not (once and plain and as_it_stands) or isinstance(capture, Joint):
        return None

    def joint(gradient: Tensor) -> Use:
        products = capture(gradient)
        if not isinstance(products, Products):
            raise TypeError(f"the rule of a linear layer gave {type(products).__name__}")
        return Affine(products.left[:, 0], products.right[:, 0])

    name = f"{weight.name} and {bias.name}"
    return replace(weight, name=name, source=replace(weight.source, name=name)), (weight.name, bias.name), joint


class Reference:
    """Stands for a node in a plan that is remembered, and for its successor in the next graph."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def __hash__(self) -> int:
        return hash(self.node)

    def __eq__(self, other: object) -> bool:
        return self.node == (other.node if isinstance(other, Reference) else other)


class PlanCache:
    """The last plan, for the next graph that is built alike.

    Training builds the same graph step after step, and planning is most of an attachment. Only graphs of nodes whose
    every detail that a plan depends on is compared are remembered: perceptrons, whose steps are short enough for
    planning to matter. Anything else is planned afresh.
    """

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
        edges = _edges_of_all(root)
        if edges is None:
            self.__init__()
            return make(lambda node: node)
        in_order = list(edges)
        nodes = {node: number for number, node in enumerate(in_order)}
        signature = [_details(node, edges[node], nodes) for node in in_order]
        if signature != self._signature:
            self.__init__()
            made = make(lambda node: self._references.setdefault(nodes[node], Reference(node)))
            self._work = {nodes[node]: work for node, work in made.work.items()}
            self._leaves = {name: nodes[leaf] for name, leaf in made.leaves.items()}
            self._rest = replace(made, work={}, leaves={})
            self._signature = signature
        for number, reference in self._references.items():
            reference.node = in_order[number]
        work = {in_order[number]: work for number, work in self._work.items()}
        leaves = {name: in_order[number] for name, number in self._leaves.items()}
        rest = self._rest
        return Plan(work, rest.expected, leaves, rest.penalised, rest.status, rest.notes)

    def let_go(self) -> None:
        """Hold no graph any longer."""
        for reference in self._references.values():
            reference.node = None


def _edges_of_all(root: Node) -> dict[Node, Sequence[Edge]] | None:
    """Return all nodes of a graph with the edges to their inputs; None if it has nodes of a kind that is not cached."""
    edges: dict[Node, Sequence[Edge]] = {}

    def onwards(node: Node) -> list[Node]:
        return [child for child, _ in edges[node] if child is not None]

    for node in walk(root, onwards) if SEES_CHECKPOINTS else ():
        leaf = is_leaf(node)
        edges[node] = () if leaf else input_edges(node)  # once a node: most of the time goes into these
        if leaf:
            continue
        record = record_of(node)
        consumes = record.matrices is not None or record.transposes
        if record.plan_key is None or (consumes and is_checkpointed(node)):
            return None
        if not all(_is_number(saved(node, name)) for name in record.plan_key):
            return None
        if not consumes and any(child is not None and is_leaf(child) for child, _ in edges[node]):
            return None
    return edges or None


def _is_number(value: Any) -> bool:
    """Return whether two of a kind can be compared at no cost: no tensor, or a number that is held on the host."""
    return not isinstance(value, Tensor) or (value.dim() == 0 and value.device.type == "cpu")


def _details(node: Node, edges: Sequence[Edge], nodes: Mapping[Node, int]) -> tuple[Any, ...]:
    """All of a node that a plan depends on."""
    if is_leaf(node):
        return id(node.variable), tuple(node.variable.shape)
    record = record_of(node)
    children = [-1 if child is None else nodes[child] for child, _ in edges]
    key = [saved(node, name) for name in record.plan_key or ()]
    details = [value.item() if isinstance(value, Tensor) else value for value in key]
    uneven = None
    if record.divides_unevenly is not None and record.divides_unevenly(node) and record.counts is not None:
        uneven = hash(record.counts(node).cpu().numpy().tobytes())
    return node.name(), output_shape(node), children, details, uneven
