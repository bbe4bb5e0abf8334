"""Batches of graphs: the nodes of all graphs lie along one axis, and a vector says to which graph each belongs.

PyTorch Geometric, chemprop and most code of users' own hold a batch of graphs so. Nothing but the tensors is looked at:
a membership vector is a sorted vector of whole numbers from 0 on, by the name that these libraries give it; a tensor of
node numbers [2, E] holds edges; everything else is one row for each node, each edge or each graph, by its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cx.batch.parts import children_of, is_graph_batch, map_batch

MEMBERSHIP = frozenset({"batch", "batch_index", "batch_idx", "graph_id", "graph_ids", "graph_index"})
REVERSED = ("rev_edge_index", "rev_index", "reverse_edge_index")  # for each edge, the number of the same edge backwards


@dataclass(frozen=True)
class Graphs:
    """How a container holds graphs.

    Attributes:
        member: Number of the graph of each node, [M].
        edges: Keys of tensors [2, E] of node numbers.
        edge_count: E; None where there are no edges.
        count: Number of graphs, as far as the nodes tell.
    """

    member: Tensor
    edges: tuple[Any, ...]
    edge_count: int | None
    count: int

    def kind(self, key: Any, value: Any, examples: int) -> str:
        """Say what the entries of a tensor are: nodes, edges, graphs, limits of graphs, or nothing of these."""
        if not isinstance(value, Tensor) or value.ndim == 0:
            return ""
        name = str(key).lower()
        if key in self.edges:
            return "edge index"
        if value is self.member:
            return "membership"
        if name == "ptr" and len(value) == examples + 1:
            return "limits"
        of_edges = self.edge_count is not None and len(value) == self.edge_count
        if of_edges and (len(value) != len(self.member) or "edge" in name):
            return "reversed" if name in REVERSED else "edges"
        if len(value) == len(self.member):
            return "nodes"
        return "graphs" if len(value) == examples else ""


def graphs_in(container: Any) -> Graphs | None:
    """Return how a mapping, dataclass or object holds graphs; None if it holds none."""
    children = dict(children_of(container)) if not isinstance(container, list | tuple | Tensor) else {}
    member = next((v for k, v in children.items() if str(k).lower() in MEMBERSHIP and _is_membership(v)), None)
    if member is None:
        return None
    edges = tuple(k for k, v in children.items() if _is_edge_index(k, v, len(member)))
    count = next((int(children[k].shape[1]) for k in edges), None)
    if not any(_has_axis(v) and v is not member and len(v) == len(member) for v in children.values()):
        return None  # nothing has a row for each node
    return Graphs(member, edges, count, int(member.max()) + 1)


def _has_axis(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and not value.is_nested


def _is_membership(value: Any) -> bool:
    if not (_has_axis(value) and value.ndim == 1 and len(value) > 0) or value.is_floating_point() or value.is_complex():
        return False
    return value.dtype != torch.bool and int(value[0]) >= 0 and bool((value[1:] >= value[:-1]).all())


def _is_edge_index(key: Any, value: Any, nodes: int) -> bool:
    pairs = _has_axis(value) and value.ndim == 2 and len(value) == 2 and not value.is_floating_point()
    return pairs and "index" in str(key).lower() and bool(((value >= 0) & (value < nodes)).all())


def choose_graphs(container: Any, chosen: Sequence[int], examples: int) -> Any:
    """Return a container of some of the graphs, in the given order.

    Args:
        container: In which `graphs_in` finds graphs.
        chosen: Their numbers.
        examples: Number of graphs in the batch.
    """
    if is_graph_batch(container):
        graphs = container.index_select(list(chosen))
        return type(container).from_data_list(graphs)
    held = graphs_in(container)
    assert held is not None
    member = held.member
    nodes = torch.cat([(member == number).nonzero()[:, 0] for number in chosen])
    place = torch.full((len(member),), -1, dtype=torch.long, device=member.device)
    place[nodes] = torch.arange(len(nodes), device=member.device)
    counts = torch.stack([(member == number).sum() for number in chosen])
    renumbered = torch.arange(len(chosen), device=member.device).repeat_interleave(counts)
    edges = _edges_of(container, held, chosen)
    edge_place = None
    if edges is not None and held.edge_count is not None:
        edge_place = torch.full((held.edge_count,), -1, dtype=torch.long, device=member.device)
        edge_place[edges] = torch.arange(len(edges), device=member.device)

    def cut(key: Any, value: Any) -> Any:
        kind = held.kind(key, value, examples)
        if kind == "membership":
            return renumbered.to(value.dtype)
        if kind == "limits":
            return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(value.dtype)
        if kind == "nodes":
            return value[nodes]
        if kind == "graphs":
            return value[list(chosen)]
        if edges is not None and kind == "edges":
            return value[edges]
        if edges is not None and kind == "edge index":
            return place[value[:, edges].long()].to(value.dtype)
        if edges is not None and edge_place is not None and kind == "reversed":
            return edge_place[value[edges].long()].to(value.dtype)
        return value

    return _changed(container, cut)


def _edges_of(container: Any, held: Graphs, chosen: Sequence[int]) -> Tensor | None:
    """Numbers of the edges of some graphs; those of one graph stay in their order."""
    if not held.edges:
        return None
    index = dict(children_of(container))[held.edges[0]]
    start, end = held.member[index.long()]
    kept = torch.isin(end, torch.tensor(list(chosen), device=end.device))  # graphs may be connected to each other
    return torch.cat([((start == number) & kept).nonzero()[:, 0] for number in chosen])


def join_graphs(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    """Put two containers of graphs of the same make together."""
    if is_graph_batch(one):
        graphs = [batch.get_example(i) for batch, size in zip((one, other), sizes, strict=True) for i in range(size)]
        return type(one).from_data_list(graphs)
    first, second = graphs_in(one), graphs_in(other)
    theirs = dict(children_of(other))
    if first is None or second is None:
        raise ValueError("two batches cannot be joined: one holds graphs, the other none")
    shift = {
        "membership": sizes[0],
        "edge index": len(first.member),
        "reversed": first.edge_count or 0,
        "nodes": 0,
        "edges": 0,
        "graphs": 0,
    }

    def joined(key: Any, value: Any) -> Any:
        kind = first.kind(key, value, sizes[0])
        if kind == "limits":
            return torch.cat([value, theirs[key][1:] + value[-1]])
        if kind not in shift:
            return value
        added = theirs[key] + shift[kind] if shift[kind] else theirs[key]
        return torch.cat([value, added], 1 if kind == "edge index" else 0)

    return _changed(one, joined)


def _changed(container: Any, function: Callable[[Any, Any], Any]) -> Any:
    """A copy of a container in which each child is what `function(key, child)` returns."""
    values = {key: function(key, value) for key, value in children_of(container)}
    children = iter(values.values())
    own = list(dict(children_of(container)).values())
    return map_batch(container, lambda _: next(children), lambda part: any(part is child for child in own))
