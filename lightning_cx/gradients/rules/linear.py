"""Matrix products: linear and bilinear layers and raw matrices, on either side; attention and distances.

Rows of the left factor become rows of the product, columns of the right one its columns, so examples that lie along
the rows are in the left factor and the right one is shared, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.products import Products, Rows, Stacked, Triples, Use, working
from lightning_cx.gradients.graph.example_axis import SHARED, AxisMove, Strides, aligned, gather
from lightning_cx.gradients.graph.nodes import Capture, NodeRecord, Site, register_node
from lightning_cx.gradients.rules.elementwise import broadcast

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


def _matrix_product(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 1:
        return _on_the_right(site, lambda: saved(node, "self"))
    return _on_the_left(site, lambda: saved(node, "mat2"))


def _linear_layer(site: Site) -> Capture:
    node, index = site.node, site.operand.index
    if index == 0:
        return _shift(site)
    if index == 2:
        return _on_the_right(site, lambda: saved(node, "mat1"), saved(node, "alpha"))
    return _on_the_left(site, lambda: saved(node, "mat2"), saved(node, "alpha"))


def _shift(site: Site) -> Capture:
    beta, shape = saved(site.node, "beta"), output_shape(site.node)
    if site.operand.shape == shape[1:] and len(shape) == 2:  # the bias of a linear layer
        split = site.split(keep=1)
        return lambda gradient: Rows(_times(split(gradient).sum(1), beta))
    return broadcast(site, lambda gradient: _times(working(gradient), beta))


def _stack_of_products(site: Site) -> Capture:
    """Several products at once, as einsum makes them: the parameter is a stack of matrices."""
    node, shifted = site.node, site.node.name() == "BaddbmmBackward0"
    index = site.operand.index - shifted
    if index < 0:
        return _shift(site)
    alpha = saved(node, "alpha") if shifted else 1
    names = ("batch2", "batch1") if shifted else ("mat2", "self")
    split = _along(site, 2 - index)

    def capture(gradient: Tensor) -> Use:
        other, outputs = saved(node, names[index]).unbind(), _times(gradient, alpha).unbind()
        if index == 1:
            parts = [Products(split(a), split(g)) for a, g in zip(other, outputs, strict=True)]
        else:
            parts = [Products(split(g.T), split(b.T)) for b, g in zip(other, outputs, strict=True)]
        return Stacked(parts)

    return capture


def _matrix_times_vector(site: Site) -> Capture:
    node, shifted = site.node, site.node.name() == "AddmvBackward0"
    index = site.operand.index - shifted
    if index < 0:
        return _shift(site)
    alpha = saved(node, "alpha") if shifted else 1
    if index == 0:
        if site.batch_size > 1:
            site.refuse("the parameter has an axis of its own for the examples")
        return lambda gradient: Rows(_times(working(gradient).outer(working(saved(node, "vec"))), alpha).unsqueeze(0))
    split = _along(site, 0)

    def capture(gradient: Tensor) -> Use:
        matrix = saved(node, "mat") if shifted else saved(node, "self")
        return Rows((split(matrix) * _times(split(gradient), alpha).unsqueeze(2)).sum(1))

    return capture


def _bilinear(site: Site) -> Capture:
    """nn.Bilinear: x1^T W x2 for every output."""
    node = site.node
    usual = (saved(node, "expand1"), saved(node, "expand2"), saved(node, "expand3")) == ((1, 3), (0,), (1, 2))
    if site.operand.index != 1 or not usual:
        site.refuse("the parameter is not the weight of a bilinear layer")
    split = site.split(keep=1)
    return lambda gradient: Triples(split(gradient), split(saved(node, "i1")), split(saved(node, "i3")))


def _product(move: AxisMove) -> Strides:
    """Rows of the left factor become rows, columns of the right one columns; a batch of products leads in both."""
    batched, shifted = "bmm" in move.name.lower(), move.name.startswith(("Add", "Badd"))
    left, right = (1, 2) if shifted else (0, 1)
    strides: Strides = move.everywhere(SHARED)
    if move.axis < 0:
        return move.everywhere(f"{move.name} follows after the examples were spread over several axes")
    if shifted:
        strides[0] = aligned(move, 0)
    if batched and move.axis == 0:
        strides[left], strides[right] = move.at(left, 0), move.at(right, 0)
    elif move.axis == int(batched):
        strides[left] = move.at(left, move.axis)
    else:
        strides[right] = move.at(right, move.axis)
    return strides


def _bilinear_form(move: AxisMove) -> Strides:
    """As `nn.Bilinear` calls it: two inputs, and the weight in between, which meets no axis but the last."""
    if move.axis == len(move.shape) - 1 and move.axis > 0:
        raise move.refuse("sums over it")
    return [SHARED if i == 1 else move.at(i, move.axis) for i in range(len(move.inputs))]


def _attention(move: AxisMove) -> Strides:
    if move.axis >= len(move.shape) - 2:
        raise move.refuse("attends along it")
    strides = [move.at(i, move.axis) for i in range(min(3, len(move.inputs)))]
    masks = [move.at(i, move.axis) if shape and shape[move.axis] > 1 else SHARED for i, shape in enumerate(move.inputs)]
    return strides + masks[3:]


def _distances(move: AxisMove) -> Strides:
    rank = len(move.shape)
    if move.axis < rank - 2:
        return [move.at(i, move.axis) for i in range(2)]
    return [move.at(0, move.axis), SHARED] if move.axis == rank - 2 else [SHARED, move.at(1, rank - 2)]


register_node(
    NodeRecord(
        rule=_matrix_product, moves=_product, saves=("self", "mat2"), matrices=(0, 1), data_input=0, plan_key=()
    ),
    "MmBackward0",
)
register_node(
    NodeRecord(
        rule=_linear_layer,
        moves=_product,
        saves=("mat1", "mat2", "alpha", "beta"),
        matrices=(1, 2),
        data_input=1,
        plan_key=("alpha", "beta"),
    ),
    "AddmmBackward0",
)
register_node(NodeRecord(rule=_stack_of_products, moves=_product, saves=("self", "mat2"), data_input=0), "BmmBackward0")
register_node(
    NodeRecord(rule=_stack_of_products, moves=_product, saves=("batch1", "batch2", "alpha", "beta")),
    "BaddbmmBackward0",
)
register_node(NodeRecord(rule=_matrix_times_vector, moves=_product, saves=("self", "vec")), "MvBackward0")
register_node(
    NodeRecord(rule=_matrix_times_vector, moves=_product, saves=("mat", "vec", "alpha", "beta")), "AddmvBackward0"
)
register_node(
    NodeRecord(rule=_bilinear, moves=_bilinear_form, saves=("i1", "i3", "expand1", "expand2", "expand3")),
    "TrilinearBackward0",
)
register_node(
    NodeRecord(moves=_attention),
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
    "ScaledDotProductFusedAttentionOverrideableBackward0",
)
register_node(NodeRecord(moves=_distances), "CdistBackward0", "EuclideanDistBackward0")
