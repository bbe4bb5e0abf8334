"""Normalisation layers, and which of them mix examples; weights that are normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cx._torch import has_saved, output_shape, saved
from lightning_cx.gradients.factors.products import CACHE_BYTES, Rows, Use, working
from lightning_cx.gradients.factors.reparametrised import through_weight_norm
from lightning_cx.gradients.graph.example_axis import AxisMove, Strides, first_input
from lightning_cx.gradients.graph.nodes import Capture, Joint, Node, NodeRecord, Site, register_node
from lightning_cx.gradients.rules.convolution import examples_lead


def _layer_norm(site: Site) -> Capture:
    site.refuse_as_data()
    node = site.node
    split = site.split(len(saved(node, "normalized_shape")))
    if site.operand.index == 2:
        return lambda gradient: Rows(split(gradient).sum(1))

    def capture(gradient: Tensor) -> Use:
        mean, inverse_deviation = working(saved(node, "result1")), working(saved(node, "result2"))
        normalised = (working(saved(node, "input")) - mean).mul_(inverse_deviation)
        return Rows(split(normalised.mul_(working(gradient))).sum(1))

    return capture


def _per_channel(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over positions of the gradient and of gradient times input, both [N, C]."""
    positions = (*gradient.shape[:2], -1)  # one position where the input is [N, C]
    gradient, inputs = working(gradient).reshape(positions), working(inputs).reshape(positions)
    few = max(1, CACHE_BYTES // max(1, 4 * gradient[0].numel()))  # examples whose products stay in cache
    products = [(g * x).sum(2) for g, x in zip(gradient.split(few), inputs.split(few), strict=True)]
    return gradient.sum(2), torch.cat(products)


def _group_norm(site: Site) -> Joint:
    site.refuse_as_data()
    node, frames = site.node, site.frames()
    if site.operand.index == 2:
        return Joint(_group_sums, lambda both: Rows(frames(both[0]).sum(1)))

    def use(both: tuple[Tensor, Tensor]) -> Use:
        n, channels, groups = saved(node, "N"), saved(node, "C"), saved(node, "group")
        mean = working(saved(node, "result1")).view(n, groups, 1)
        inverse_deviation = working(saved(node, "result2")).view(n, groups, 1)
        sums, products = (t.view(n, groups, -1) for t in both)
        return Rows(frames(((products - mean * sums) * inverse_deviation).view(n, channels)).sum(1))

    return Joint(_group_sums, use)


def _group_sums(node: Node, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    gradient = gradients[0]
    if gradient is None:
        raise ValueError("no gradient arrived")
    return _per_channel(gradient, saved(node, "input"))


def _batch_norm(site: Site) -> Capture:
    site.refuse_as_data()
    node, shape = site.node, output_shape(site.node)
    stacked = site.batch_size > 1 and shape[0] == 1
    if stacked and site.examples() != (1, shape[1] // site.batch_size):
        site.refuse(f"the channels of {shape} are not those of one example after the other")
    frames = None if stacked else site.frames()

    def capture(gradient: Tensor) -> Use:
        rows = _read(gradient)
        return Rows(_own_channels(rows, site.batch_size) if frames is None else frames(rows).sum(1))

    def _read(gradient: Tensor) -> Tensor:
        sums, products = _per_channel(gradient, saved(node, "input"))
        if site.operand.index == 2:
            return sums
        if saved(node, "training"):
            mean, inverse_deviation = working(saved(node, "result1")), working(saved(node, "result2"))
        else:
            epsilon = saved(node, "eps") if has_saved(node, "eps") else saved(node, "epsilon")
            mean = working(saved(node, "running_mean"))
            inverse_deviation = (working(saved(node, "running_var")) + epsilon).rsqrt()
        return (products - mean * sums) * inverse_deviation

    return capture


def _own_channels(sums: Tensor, n: int) -> Tensor:
    """InstanceNorm runs BatchNorm on [1, N C, ...]: each example's gradient lies on channels of its own, [N, N C]."""
    own = torch.eye(n, dtype=torch.bool, device=sums.device).unsqueeze(2)
    return sums.view(1, n, -1).where(own, 0).view(n, -1)


def _couples(node: Node) -> bool:
    return bool(saved(node, "training")) and output_shape(node)[0] > 1  # one example, or channels of each in a row


def _rms_norm(site: Site) -> Capture:
    site.refuse_as_data()
    node = site.node
    split = site.split(len(saved(node, "normalized_shape")))
    return lambda gradient: Rows(
        split(working(saved(node, "input")) * working(saved(node, "result1")) * working(gradient)).sum(1)
    )


def _over_last_axes(move: AxisMove) -> Strides:
    if move.axis >= len(move.shape) - len(saved(move.node, "normalized_shape")):
        raise move.refuse("normalises over it")
    return first_input(move)


def _over_all_but_channels(move: AxisMove) -> Strides:
    if move.axis > 1:
        raise move.refuse("normalises over it")
    return first_input(move)


register_node(
    NodeRecord(
        rule=_layer_norm,
        moves=_over_last_axes,
        saves=("input", "normalized_shape", "result1", "result2"),
        statistics_only=True,
    ),
    "NativeLayerNormBackward0",
)
register_node(
    NodeRecord(rule=_rms_norm, moves=_over_last_axes, saves=("input", "normalized_shape", "result1")),
    "FusedRmsNormBackward0",
)
register_node(
    NodeRecord(
        rule=_group_norm,
        moves=examples_lead,
        saves=("input", "N", "C", "group", "result1", "result2"),
        statistics_only=True,
    ),
    "NativeGroupNormBackward0",
)
_OF_BATCH_NORM = ("input", "training", "result1", "result2", "running_mean", "running_var")
register_node(
    NodeRecord(
        rule=_batch_norm,
        moves=_over_all_but_channels,
        saves=(*_OF_BATCH_NORM, "eps"),
        couples=_couples,
        statistics_only=True,
    ),
    "NativeBatchNormBackward0",
)
register_node(
    NodeRecord(rule=_batch_norm, moves=_over_all_but_channels, saves=(*_OF_BATCH_NORM, "epsilon"), couples=_couples),
    "CudnnBatchNormBackward0",
)
register_node(NodeRecord(moves=_over_all_but_channels), "MiopenBatchNormBackward0")
register_node(
    NodeRecord(shortcut=through_weight_norm, saves=("dim", "v", "g", "result1")), "WeightNormInterfaceBackward0"
)
