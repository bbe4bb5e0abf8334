"""Rules of convolutions: any number of axes, grouped, dilated and transposed."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.gradients.graph import output_shape
from lightning_cx.gradients.patches import Geometry, Patches
from lightning_cx.gradients.rules.registry import Capture, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working


@rule("ConvolutionBackward0", "ConvolutionOverrideableBackward0")
def _convolution(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    frames = site.frames()
    if site.operand.index == 2:
        return lambda gradient: Rows(frames(working(gradient)).flatten(3).sum((1, 3)))
    axes = len(shape) - 2
    moves = Geometry(
        tuple(node._saved_stride[:axes]),
        tuple(node._saved_padding[:axes]),
        tuple(node._saved_dilation[:axes]),
        node._saved_groups,
    )

    def capture(gradient: Tensor) -> Use:
        inputs, outputs = frames(working(node._saved_input)), frames(working(gradient))
        if node._saved_transposed:
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
