"""Rules of matrix products: linear layers and raw matrices, on either side."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.places import gather
from lightning_cx.gradients.rules.elementwise import broadcast
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.stacks import Stacked, Triples
from lightning_cx.gradients.uses import Products, Rows, Use, working

Split = Callable[[Tensor], Tensor]


def _along(site: Site, axis: int) -> Split:
    """How to bring tensors whose first axis is this axis of the node's output to [N, T, ...]."""
    size = output_shape(site.node)[axis]
    if site.batch_size == 1:
        return lambda tensor: working(tensor).unsqueeze(0)
    found, inner = site.examples()
    if found != axis:
        site.refuse("the parameter has an axis of its own for the examples")
    split = gather((size,), inner, site.batch_size)
    return lambda tensor: split(working(tensor))


def _on_the_right(site: Site, left: Callable[[], Tensor], alpha: float = 1) -> Capture:
    """`left @ parameter`: the examples are rows."""
    split = _along(site, 0)
    return lambda gradient: Products(split(left()), _times(split(gradient), alpha))


def _on_the_left(site: Site, right: Callable[[], Tensor], alpha: float = 1) -> Capture:
    """`parameter @ right`: the examples are columns."""
    split = _along(site, 1)
    return lambda gradient: Products(_times(split(gradient.T), alpha), split(right().T))


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor


@rule("MmBackward0")
def _mm(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 1:
        return _on_the_right(site, lambda: node._saved_self)
    return _on_the_left(site, lambda: node._saved_mat2)


@rule("AddmmBackward0")
def _addmm(site: Site) -> Capture:
    node, index = site.node, site.operand.index
    if index == 0:
        return _shift(site)
    if index == 2:
        return _on_the_right(site, lambda: node._saved_mat1, node._saved_alpha)
    return _on_the_left(site, lambda: node._saved_mat2, node._saved_alpha)


def _shift(site: Site) -> Capture:
    beta, shape = site.node._saved_beta, output_shape(site.node)
    if site.operand.shape == shape[1:] and len(shape) == 2:  # the bias of a linear layer
        split = site.split(shape, 1)
        return lambda gradient: Rows(_times(split(gradient).sum(1), beta))
    return broadcast(site, lambda gradient: _times(working(gradient), beta))


@rule("BmmBackward0", "BaddbmmBackward0")
def _bmm(site: Site) -> Capture:
    """Several products at once, as einsum makes them: the parameter is a stack of matrices."""
    node, shifted = site.node, site.node.name() == "BaddbmmBackward0"
    index = site.operand.index - shifted
    if index < 0:
        return _shift(site)
    alpha = node._saved_alpha if shifted else 1
    names = ("_saved_batch2", "_saved_batch1") if shifted else ("_saved_mat2", "_saved_self")
    split = _along(site, 2 - index)

    def capture(gradient: Tensor) -> Use:
        other, outputs = getattr(node, names[index]).unbind(), _times(gradient, alpha).unbind()
        if index == 1:
            parts = [Products(split(a), split(g)) for a, g in zip(other, outputs, strict=True)]
        else:
            parts = [Products(split(g.T), split(b.T)) for b, g in zip(other, outputs, strict=True)]
        return Stacked(parts)

    return capture


@rule("MvBackward0", "AddmvBackward0")
def _mv(site: Site) -> Capture:
    node, shifted = site.node, site.node.name() == "AddmvBackward0"
    index = site.operand.index - shifted
    if index < 0:
        return _shift(site)
    alpha = node._saved_alpha if shifted else 1
    if index == 0:
        if site.batch_size > 1:
            site.refuse("the parameter has an axis of its own for the examples")
        return lambda gradient: Rows(_times(working(gradient).outer(working(node._saved_vec)), alpha).unsqueeze(0))
    split = _along(site, 0)

    def capture(gradient: Tensor) -> Use:
        matrix = node._saved_mat if shifted else node._saved_self
        return Rows((split(matrix) * _times(split(gradient), alpha).unsqueeze(2)).sum(1))

    return capture


@rule("TrilinearBackward0")
def _bilinear(site: Site) -> Capture:
    """nn.Bilinear: x1^T W x2 for every output."""
    node = site.node
    usual = (node._saved_expand1, node._saved_expand2, node._saved_expand3) == ((1, 3), (0,), (1, 2))
    if site.operand.index != 1 or not usual:
        site.refuse("the parameter is not the weight of a bilinear layer")
    split = site.split(output_shape(node), 1)
    return lambda gradient: Triples(split(gradient), split(node._saved_i1), split(node._saved_i3))
