"""Rules of normalisation layers, and which of them mix examples."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.gradients.graph import Node, output_shape
from lightning_cx.gradients.rules.registry import COUPLING, Capture, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working


@rule("NativeLayerNormBackward0")
def _layer_norm(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    split = site.split(shape, len(node._saved_normalized_shape))
    if site.operand.index == 2:
        return lambda gradient: Rows(split(gradient).sum(1))

    def capture(gradient: Tensor) -> Use:
        mean, inverse_deviation = working(node._saved_result1), working(node._saved_result2)
        normalised = (working(node._saved_input) - mean) * inverse_deviation
        return Rows(split(normalised * working(gradient)).sum(1))

    return capture


def _per_channel(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over positions of the gradient and of gradient times input, both [N, C]."""
    positions = (*gradient.shape[:2], -1)  # one position where the input is [N, C]
    gradient, inputs = working(gradient).reshape(positions), working(inputs).reshape(positions)
    return gradient.sum(2), (gradient * inputs).sum(2)


@rule("NativeGroupNormBackward0")
def _group_norm(site: Site) -> Capture:
    node = site.node
    site.require_batch_first(output_shape(node))
    if site.operand.index == 2:
        return lambda gradient: Rows(_per_channel(gradient, gradient)[0])

    def capture(gradient: Tensor) -> Use:
        n, channels, groups = site.batch_size, node._saved_C, node._saved_group
        mean = working(node._saved_result1).view(n, groups, 1)
        inverse_deviation = working(node._saved_result2).view(n, groups, 1)
        sums, products = (t.view(n, groups, -1) for t in _per_channel(gradient, node._saved_input))
        return Rows(((products - mean * sums) * inverse_deviation).view(n, channels))

    return capture


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0")
def _batch_norm(site: Site) -> Capture:
    node = site.node
    site.require_batch_first(output_shape(node))

    def capture(gradient: Tensor) -> Use:
        sums, products = _per_channel(gradient, node._saved_input)
        if site.operand.index == 2:
            return Rows(sums)
        if node._saved_training:
            mean, inverse_deviation = working(node._saved_result1), working(node._saved_result2)
        else:
            epsilon = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
            mean = working(node._saved_running_mean)
            inverse_deviation = (working(node._saved_running_var) + epsilon).rsqrt()
        return Rows((products - mean * sums) * inverse_deviation)

    return capture


def _mixes_examples(node: Node) -> bool:
    return bool(node._saved_training)


COUPLING.update({"NativeBatchNormBackward0": _mixes_examples, "CudnnBatchNormBackward0": _mixes_examples})
