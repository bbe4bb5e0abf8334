"""Convolutions, with any number of axes, grouped, dilated and transposed; pooling and resampling."""

from __future__ import annotations

from torch import Tensor

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.patches import Geometry, Patches
from lightning_cx.gradients.factors.products import Rows, Use, working
from lightning_cx.gradients.graph.example_axis import AxisMove, Strides, by_shape, first_input
from lightning_cx.gradients.graph.nodes import Capture, NodeRecord, Site, register_node


def _convolution(site: Site) -> Capture:
    site.refuse_as_data()
    node, shape = site.node, output_shape(site.node)
    frames = site.frames()
    if site.operand.index == 2:
        return lambda gradient: Rows(frames(working(gradient)).flatten(3).sum((1, 3)))
    axes = len(shape) - 2
    moves = Geometry(
        tuple(saved(node, "stride")[:axes]),
        tuple(saved(node, "padding")[:axes]),
        tuple(saved(node, "dilation")[:axes]),
        saved(node, "groups"),
    )

    def capture(gradient: Tensor) -> Use:
        inputs, outputs = frames(working(saved(node, "input"))), frames(working(gradient))
        if saved(node, "transposed"):
            inputs, outputs = outputs, inputs
        return of_frames(inputs, outputs, site.operand.shape, moves)

    return capture


def of_frames(inputs: Tensor, outputs: Tensor, kernel: tuple[int, ...], moves: Geometry) -> Patches:
    """The gradients of a kernel that was used on T frames of each example, [N, T, channels, ...] each."""
    if inputs.shape[1] == 1:
        return Patches(inputs[:, 0], outputs[:, 0], kernel, moves)
    # Frames are one more axis, over which the kernel is one entry long.
    geometry = Geometry((1, *moves.stride), (0, *moves.padding), (1, *moves.dilation), moves.groups)
    longer = (*kernel[:2], 1, *kernel[2:])
    return Patches(inputs.movedim(1, 2), outputs.movedim(1, 2), longer, geometry, kernel)


def examples_lead(move: AxisMove) -> Strides:
    """Layers that mix every axis but the first, where the examples lie."""
    if move.axis != 0:
        raise move.refuse("mixes every axis but the first")
    return first_input(move)


def _keeps_examples_and_channels(move: AxisMove) -> Strides:
    if move.axis > 1:
        raise move.refuse("acts along it")
    return by_shape(move)


register_node(
    NodeRecord(
        rule=_convolution,
        moves=examples_lead,
        saves=("input", "stride", "padding", "dilation", "groups", "transposed"),
        data_input=0,
    ),
    "ConvolutionBackward0",
)
register_node(
    NodeRecord(
        rule=_convolution,
        moves=examples_lead,
        saves=("input", "stride", "padding", "dilation", "groups", "transposed"),
    ),
    "ConvolutionOverrideableBackward0",
)
register_node(NodeRecord(moves=examples_lead), "MkldnnConvolutionBackward0")
register_node(NodeRecord(moves=_keeps_examples_and_channels, reduces=True), "MaxPool*")
register_node(
    NodeRecord(moves=_keeps_examples_and_channels),
    *("AvgPool*", "AdaptiveAvgPool*", "AdaptiveMaxPool*", "MkldnnAdaptive*", "MkldnnMaxPool*", "Upsample*"),
    *("ReflectionPad*", "ReplicationPad*", "GridSampler*", "Im2Col*", "Col2Im*"),
)
