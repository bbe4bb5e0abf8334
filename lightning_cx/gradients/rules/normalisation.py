"""Rules of normalisation layers, and which of them mix examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cx.gradients.buffers import CACHE_BYTES
from lightning_cx.gradients.graph import Node, output_shape
from lightning_cx.gradients.rules.registry import COUPLING, Capture, Joint, Site, rule
from lightning_cx.gradients.uses import Rows, Use, working


@rule("NativeLayerNormBackward0")
def _layer_norm(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    split = site.split(shape, len(node._saved_normalized_shape))
    if site.operand.index == 2:
        return lambda gradient: Rows(split(gradient).sum(1))

    def capture(gradient: Tensor) -> Use:
        mean, inverse_deviation = working(node._saved_result1), working(node._saved_result2)
        normalised = (working(node._saved_input) - mean).mul_(inverse_deviation)
        return Rows(split(normalised.mul_(working(gradient))).sum(1))

    return capture


def _per_channel(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over positions of the gradient and of gradient times input, both [N, C]."""
    positions = (*gradient.shape[:2], -1)  # one position where the input is [N, C]
    gradient, inputs = working(gradient).reshape(positions), working(inputs).reshape(positions)
    few = max(1, CACHE_BYTES // max(1, 4 * gradient[0].numel()))  # examples whose products stay in cache
    products = [(g * x).sum(2) for g, x in zip(gradient.split(few), inputs.split(few), strict=True)]
    return gradient.sum(2), torch.cat(products)


@rule("NativeGroupNormBackward0")
def _group_norm(site: Site) -> Joint:
    node = site.node
    frames = site.frames()
    if site.operand.index == 2:
        return Joint(_group_sums, lambda both: Rows(frames(both[0]).sum(1)))

    def use(both: tuple[Tensor, Tensor]) -> Use:
        n, channels, groups = node._saved_N, node._saved_C, node._saved_group
        mean = working(node._saved_result1).view(n, groups, 1)
        inverse_deviation = working(node._saved_result2).view(n, groups, 1)
        sums, products = (t.view(n, groups, -1) for t in both)
        return Rows(frames(((products - mean * sums) * inverse_deviation).view(n, channels)).sum(1))

    return Joint(_group_sums, use)


def _group_sums(node: Node, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    gradient = gradients[0]
    if gradient is None:
        raise ValueError("no gradient arrived")
    return _per_channel(gradient, node._saved_input)


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0")
def _batch_norm(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    stacked = site.batch_size > 1 and shape[0] == 1
    if stacked and site.examples() != (1, shape[1] // site.batch_size):
        site.refuse(f"the channels of {shape} are not those of one example after the other")
    frames = None if stacked else site.frames()

    def capture(gradient: Tensor) -> Use:
        rows = _read(gradient)
        return Rows(_own_channels(rows, site.batch_size) if frames is None else frames(rows).sum(1))

    def _read(gradient: Tensor) -> Tensor:
        sums, products = _per_channel(gradient, node._saved_input)
        if site.operand.index == 2:
            return sums
        if node._saved_training:
            mean, inverse_deviation = working(node._saved_result1), working(node._saved_result2)
        else:
            epsilon = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
            mean = working(node._saved_running_mean)
            inverse_deviation = (working(node._saved_running_var) + epsilon).rsqrt()
        return (products - mean * sums) * inverse_deviation

    return capture


def _own_channels(sums: Tensor, n: int) -> Tensor:
    """InstanceNorm runs BatchNorm on [1, N C, ...]: each example's gradient lies on channels of its own, [N, N C]."""
    own = torch.eye(n, dtype=torch.bool, device=sums.device).unsqueeze(2)
    return sums.view(1, n, -1).where(own, 0).view(n, -1)


def _mixes_examples(node: Node) -> bool:
    return bool(node._saved_training) and output_shape(node)[0] > 1  # one example, or channels of each in a row


@rule("FusedRmsNormBackward0")
def _rms_norm(site: Site) -> Capture:
    node, shape = site.node, output_shape(site.node)
    split = site.split(shape, len(node._saved_normalized_shape))
    return lambda gradient: Rows(
        split(working(node._saved_input) * working(node._saved_result1) * working(gradient)).sum(1)
    )


COUPLING.update({"NativeBatchNormBackward0": _mixes_examples, "CudnnBatchNormBackward0": _mixes_examples})
