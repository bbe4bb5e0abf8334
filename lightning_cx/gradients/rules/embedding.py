"""Rules of tables that are looked up."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.lookup import Lookup
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Use, working


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
