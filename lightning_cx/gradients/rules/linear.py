"""Rules of matrix products: linear layers and raw matrices."""

from __future__ import annotations

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Products, Rows


@rule("AddmmBackward0")
def _addmm(site: Site) -> Capture:
    node = site.node
    split = site.split(output_shape(node), 1)
    if site.operand.index == 0 and site.operand.shape == output_shape(node)[1:] and node._saved_beta == 1:
        return lambda gradient: Rows(split(gradient).sum(1))
    if site.operand.index == 2 and node._saved_alpha == 1:
        return lambda gradient: Products(split(node._saved_mat1), split(gradient))
    site.refuse("the parameter is not the weight or bias of a linear layer")


@rule("MmBackward0")
def _mm(site: Site) -> Capture:
    node = site.node
    if site.operand.index != 1:
        site.refuse("the parameter stands to the left of the product")
    split = site.split(output_shape(node), 1)
    return lambda gradient: Products(split(node._saved_self), split(gradient))
