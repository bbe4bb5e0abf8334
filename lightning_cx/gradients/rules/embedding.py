"""Rules of tables that are looked up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_cx.gradients.graph import Node, output_shape
from lightning_cx.gradients.lookup import Lookup
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.transfer import signed
from lightning_cx.gradients.uses import Use, working

_SUM, _MEAN, _MAX = range(3)  # as ATen numbers the modes of bags


@rule("EmbeddingBackward0")
def _embedding(site: Site) -> Capture:
    node, entries = site.node, site.operand.shape[0]
    if node._saved_scale_grad_by_freq:
        site.refuse("scale_grad_by_freq divides by counts over the whole batch")
    lead = output_shape(node)[:-1]
    split = site.layout.split(lead, node, site.operand.name)

    def capture(gradient: Tensor) -> Use:
        indices, outputs = split(node._saved_indices.reshape(lead)), split(working(gradient))
        if node._saved_padding_idx >= 0:  # not a product: what arrives at padding may be infinite
            outputs = outputs.masked_fill((indices == node._saved_padding_idx).unsqueeze(2), 0)
        return Lookup(indices, outputs, entries)

    return capture


@rule("IndexBackward0", "IndexSelectBackward0")
def _index(site: Site) -> Capture:
    """`table[indices]`, with tensors along the first axis only."""
    node, entries = site.node, site.operand.shape[0]
    if node.name() == "IndexSelectBackward0":
        first, others = (
            node._saved_index,
            [node._saved_dim] if signed(node._saved_dim) % len(site.operand.shape) else [],
        )
    else:
        first, others = node._saved_indices[0], [i for i in node._saved_indices[1:] if i is not None]
    if others or first is None or first.dtype in (torch.bool, torch.uint8):
        site.refuse("only rows of a table, picked by number, are read")
    split = site.layout.split(tuple(first.shape), node, site.operand.name)

    def capture(gradient: Tensor) -> Use:
        indices = split(first)
        return Lookup(indices % entries, split(working(gradient)).reshape(*indices.shape, -1), entries)

    return capture


@rule("EmbeddingBagBackward0")
def _bag(site: Site) -> Capture:
    """Bags of rows, summed, averaged or compared; bags of any length are filled up with nothing."""
    node, entries, bags = site.node, site.operand.shape[0], output_shape(site.node)[0]
    if site.operand.index != 0:
        site.refuse("weights of single entries are read as data only")
    if node._saved_scale_grad_by_freq:
        site.refuse("scale_grad_by_freq divides by counts over the whole batch")
    split = site.layout.split((bags,), node, site.operand.name)

    def capture(gradient: Tensor) -> Use:
        indices, weights = _filled_up(node, bags)
        if node._saved_mode == _MEAN:
            weights = weights.double() / weights.sum(1, keepdim=True).clamp_min(1)
        outputs = working(gradient).unsqueeze(1) * weights.to(working(gradient)).unsqueeze(2)
        if node._saved_mode == _MAX:
            outputs = outputs * (node._saved_result3.unsqueeze(1) == indices.unsqueeze(2))
        return Lookup(split(indices).flatten(1), split(outputs).flatten(1, 2), entries)

    return capture


def _filled_up(node: Node, bags: int) -> tuple[Tensor, Tensor]:
    """The entries of each bag and how often each counts, both [bags, longest]."""
    indices, starts = node._saved_indices, node._saved_offsets[:bags]
    lengths = torch.diff(starts, append=starts.new_tensor([indices.numel()]))
    places = torch.arange(max(1, int(lengths.max())), device=indices.device).expand(bags, -1)
    inside = places < lengths.unsqueeze(1)
    where = (starts.unsqueeze(1) + places).clamp_max(max(0, indices.numel() - 1))
    found = pad(indices, (0, int(indices.numel() == 0)))[where]
    counts = inside & (found != signed(node._saved_padding_idx))
    if node._saved_mode == _MAX:  # the row that wins does so once, however often it lies in the bag
        alike = (found.unsqueeze(1) == found.unsqueeze(2)) & counts.unsqueeze(1)
        counts = counts & ~alike.tril(-1).any(2)
    weights = node._saved_per_sample_weights
    return found, counts if weights is None or weights.numel() == 0 else counts * weights[where]
