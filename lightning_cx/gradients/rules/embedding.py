"""Tables that are looked up, by an embedding or by an index."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.lookup import Lookup
from lightning_cx.gradients.factors.products import Use, working
from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides
from lightning_cx.gradients.graph.nodes import Capture, Node, NodeRecord, Site, register_node, signed
from lightning_cx.gradients.rules.views import reordered

_SUM, _MEAN, _MAX = range(3)  # as ATen numbers the modes of bags


def _embedding(site: Site) -> Capture:
    node, entries = site.node, site.operand.shape[0]
    if saved(node, "scale_grad_by_freq"):
        site.refuse("scale_grad_by_freq divides by counts over the whole batch")
    lead = output_shape(node)[:-1]
    split = site.split_rows(lead)

    def capture(gradient: Tensor) -> Use:
        indices, outputs = split(saved(node, "indices").reshape(lead)), split(working(gradient))
        if saved(node, "padding_idx") >= 0:  # not a product: what arrives at padding may be infinite
            outputs = outputs.masked_fill((indices == saved(node, "padding_idx")).unsqueeze(2), 0)
        return Lookup(indices, outputs, entries)

    return capture


def _indexed(site: Site) -> Capture:
    """`table[indices]`, with tensors along the first axis only."""
    node, entries = site.node, site.operand.shape[0]
    if node.name() == "IndexSelectBackward0":
        first, others = (
            saved(node, "index"),
            [saved(node, "dim")] if signed(saved(node, "dim")) % len(site.operand.shape) else [],
        )
    else:
        first, others = saved(node, "indices")[0], [i for i in saved(node, "indices")[1:] if i is not None]
    if others or first is None or first.dtype in (torch.bool, torch.uint8):
        site.refuse("only rows of a table, picked by number, are read")
    split = site.split_rows(tuple(first.shape))

    def capture(gradient: Tensor) -> Use:
        indices = split(first)
        return Lookup(indices % entries, split(working(gradient)).reshape(*indices.shape, -1), entries)

    return capture


def _bag(site: Site) -> Capture:
    """Bags of rows, summed, averaged or compared; bags of any length are filled up with nothing."""
    node, entries, bags = site.node, site.operand.shape[0], output_shape(site.node)[0]
    if site.operand.index != 0:
        site.refuse("weights of single entries are read as data only")
    if saved(node, "scale_grad_by_freq"):
        site.refuse("scale_grad_by_freq divides by counts over the whole batch")
    split = site.split_rows((bags,))

    def capture(gradient: Tensor) -> Use:
        indices, weights = _filled_up(node, bags)
        if saved(node, "mode") == _MEAN:
            weights = weights.double() / weights.sum(1, keepdim=True).clamp_min(1)
        outputs = working(gradient).unsqueeze(1) * weights.to(working(gradient)).unsqueeze(2)
        if saved(node, "mode") == _MAX:
            outputs = outputs * (saved(node, "result3").unsqueeze(1) == indices.unsqueeze(2))
        return Lookup(split(indices).flatten(1), split(outputs).flatten(1, 2), entries)

    return capture


def _filled_up(node: Node, bags: int) -> tuple[Tensor, Tensor]:
    """The entries of each bag and how often each counts, both [bags, longest]."""
    indices, starts = saved(node, "indices"), saved(node, "offsets")[:bags]
    lengths = torch.diff(starts, append=starts.new_tensor([indices.numel()]))
    positions = torch.arange(max(1, int(lengths.max())), device=indices.device).expand(bags, -1)
    inside = positions < lengths.unsqueeze(1)
    where = (starts.unsqueeze(1) + positions).clamp_max(max(0, indices.numel() - 1))
    found = pad(indices, (0, int(indices.numel() == 0)))[where]
    counts = inside & (found != signed(saved(node, "padding_idx")))
    if saved(node, "mode") == _MAX:  # the row that wins does so once, however often it lies in the bag
        alike = (found.unsqueeze(1) == found.unsqueeze(2)) & counts.unsqueeze(1)
        counts = counts & ~alike.tril(-1).any(2)
    weights = saved(node, "per_sample_weights")
    return found, counts if weights is None or weights.numel() == 0 else counts * weights[where]


def _look_up(move: AxisMove) -> Strides:
    if move.axis == len(move.shape) - 1:
        raise move.refuse("looks up this axis in a table")
    return move.everywhere(SHARED)


def _picked(move: AxisMove) -> Strides:
    """`x[i]` with tensors: axes without one stay, and an axis indexed by 0 .. N-1 in order stays too."""
    shape, indices, n = move.inputs[0], saved(move.node, "indices"), move.n
    if shape is None or move.axis < 0:
        return [SHARED if shape is None else f"{move.name} follows after the examples were spread"]
    used = [axis for axis, index in enumerate(indices) if index is not None]
    adjacent = used == list(range(used[0], used[-1] + 1)) if used else True
    wide = max((indices[axis].dim() for axis in used), default=0)
    first = used[0] if adjacent and used else 0
    masks = any(indices[axis].dim() != wide or indices[axis].dtype.itemsize == 1 for axis in used)
    if masks or (move.inner != 1 and first <= move.axis < first + wide):
        return [f"{move.name} picks or reorders rows"]
    if first <= move.axis < first + wide:
        for axis in used:
            index = indices[axis]
            in_turn = index.dim() == 1 and len(index) == n and index.tolist() == list(range(n))
            if in_turn and shape[axis] == n:
                return [move.at(0, axis)]
        return [f"{move.name} picks or reorders rows"]
    kept = [axis for axis in range(len(shape)) if axis not in used]
    return [move.at(0, kept[move.axis - (wide if move.axis >= first + wide else 0)])]


def _scale_of_embedding(node: Node) -> float | None:
    """Each row at most once, so that inner products stay as they are."""
    indices = saved(node, "indices")
    return 1.0 if indices.unique().numel() == indices.numel() and saved(node, "padding_idx") < 0 else None


register_node(
    NodeRecord(
        rule=_embedding,
        moves=_look_up,
        saves=("indices", "padding_idx", "scale_grad_by_freq"),
        scale=_scale_of_embedding,
        indices="indices",
    ),
    "EmbeddingBackward0",
)
register_node(
    NodeRecord(
        rule=_bag,
        moves=_look_up,
        saves=(*("indices", "offsets", "padding_idx", "scale_grad_by_freq", "mode", "per_sample_weights", "result3"),),
    ),
    "EmbeddingBagBackward0",
)
register_node(NodeRecord(rule=_indexed, moves=_picked, saves=("indices",)), "IndexBackward0")
register_node(NodeRecord(rule=_indexed, moves=reordered, saves=("index", "dim")), "IndexSelectBackward0")
