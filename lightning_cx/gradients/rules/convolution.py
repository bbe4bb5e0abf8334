"""Rules of convolutions."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.patches import Geometry, Patches
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working


@rule("ConvolutionBackward0")
def _convolution(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    site.require_batch_first(shape)
    if site.operand.index == 2:
        return lambda gradient: Rows(working(gradient).flatten(2).sum(2))
    axes = len(shape) - 2
    if node._saved_transposed or axes not in (1, 2):
        site.refuse("only plain convolutions over one or two axes are read")

    def pair(values: tuple[int, ...], absent: int) -> tuple[int, int]:
        return (absent, values[0]) if axes == 1 else (values[0], values[1])

    kernel = site.operand.shape if axes == 2 else (*site.operand.shape[:2], 1, *site.operand.shape[2:])
    geometry = Geometry(
        pair(node._saved_stride, 1),
        pair(node._saved_padding, 0),
        pair(node._saved_dilation, 1),
        node._saved_groups,
    )

    def capture(gradient: Tensor) -> Use:
        inputs, outputs = working(node._saved_input), working(gradient)
        if axes == 1:
            inputs, outputs = inputs.unsqueeze(2), outputs.unsqueeze(2)
        return Patches(inputs, outputs, (kernel[0], kernel[1], kernel[2], kernel[3]), geometry, axes)

    return capture
