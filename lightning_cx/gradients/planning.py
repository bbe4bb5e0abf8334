"""What a tap will do at which node: everything that can be refused is refused here, before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_cx.gradients.accumulate import Request
from lightning_cx.gradients.affine import as_affine
from lightning_cx.gradients.errors import UnreachedError, UnsupportedGradientError
from lightning_cx.gradients.graph import (
    Graph,
    Node,
    Operand,
    hides_parameters,
    is_checkpointed,
    is_penalty,
    read_graph,
    root_of,
)
from lightning_cx.gradients.layout import Layout
from lightning_cx.gradients.rules import COUPLING, Capture, Joint, Site, plan
from lightning_cx.gradients.sample import CONTRIBUTION, EXACT
from lightning_cx.gradients.uneven import divides_by_a_count, shares_are_uneven

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
        batch_first: As in `Layout`.
        referred: What the captures are to hold in place of a node.

    Raises:
        UnsupportedGradientError: If a parameter is consumed in a way that no rule reads.
    """
    layout = Layout(root_of(loss), batch_size, batch_first)
    graph = read_graph(loss, parameters, layout.flow.shared)
    _refuse_what_cannot_be_seen(graph, parameters)
    made = Plan(leaves=graph.leaves)
    uses = Counter(operand.name for operands in graph.consumers.values() for operand in operands)
    penalised: set[str] = set()
    contrasted = layout.flow.interacts
    for node, operands in graph.consumers.items():
        if is_penalty(graph, node):
            penalised.update(operand.name for operand in operands)
            continue
        if is_checkpointed(node):
            where = f"{node.name()} of {operands[0].name}"
            raise UnsupportedGradientError(where, "activation checkpointing holds its saved tensors")
        work: Work = [(operand, plan(Site(referred(node), operand, layout))) for operand in operands]
        contrasted |= node in layout.guessed
        joint = as_affine(node, work, uses, batch_size) if request.joint else None
        if joint is not None:
            operand, members, capture = joint
            work = [(operand, capture)]
            made.expected.append((operand.name, node.name(), members))
        else:
            made.expected += [(operand.name, node.name(), ()) for operand in operands]
        made.work[node] = work
    made.penalised = frozenset(penalised)
    counted = batch_size > 1 and divides_by_a_count(root_of(loss), batch_size)
    _say_what_rows_mean(made, graph, parameters, contrasted, counted, batch_size)
    return made


def _refuse_what_cannot_be_seen(graph: Graph, parameters: Mapping[str, Tensor]) -> None:
    hidden = hides_parameters(graph)
    if hidden is not None:
        raise UnsupportedGradientError(hidden, "parameters inside it cannot be seen before the backward")
    for name in (name for name, parameter in parameters.items() if hasattr(parameter, "device_mesh")):
        # The loss depends on the whole parameter: the piece would be taken for one that is not used.
        raise UnsupportedGradientError(f"{name} is sharded: a piece of it lies in each process")
    for name in (name for name, parameter in parameters.items() if parameter.is_complex()):
        raise UnsupportedGradientError(f"{name} is complex", "only gradients of real parameters are read")
    for node, operands in graph.consumers.items():
        if node._input_metadata and node._input_metadata[0].dtype.is_complex:
            raise UnsupportedGradientError(f"{node.name()} of {operands[0].name}", "its output is complex")
    if not graph.leaves:
        raise UnreachedError("the loss reaches none of the parameters")


def _say_what_rows_mean(
    made: Plan, graph: Graph, parameters: Mapping[str, Tensor], contrasted: bool, counted: bool, batch_size: int
) -> None:
    several = batch_size > 1
    coupled = several and any(mixes(node) for name, mixes in COUPLING.items() for node in graph.by_name.get(name, []))
    uneven = several and shares_are_uneven(graph)
    made.status = CONTRIBUTION if coupled or contrasted or uneven or counted else EXACT
    notes = {
        "not used by this loss": [name for name in parameters if name not in graph.leaves],
        "penalty on parameters alone, left out": sorted(made.penalised),
        "rows are contributions, since BatchNorm in training mode couples the examples": [""] * coupled,
        "rows are contributions, since examples meet outside of BatchNorm": [""] * contrasted,
        "rows are contributions, since the loss divides by class weights or by what was not ignored": [""] * uneven,
        "rows are contributions, since the loss divides by a count that examples share unevenly": [""] * counted,
    }
    made.notes = tuple(f"{text}: {', '.join(names)}".rstrip(": ") for text, names in notes.items() if names)
