"""One small rule per autograd node: how its parameters' per-example gradients follow from what autograd holds.

A rule runs twice removed from the user's backward. When a tap attaches, the rule checks that it can read the node
and returns a capture; when the backward reaches the node, the capture turns the gradient of the node's output into
a `Use`. To teach the tap a new node, write one rule and decorate it with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.graph import Node, Operand, output_shape
from lightning_cx.gradients.layout import Layout
from lightning_cx.gradients.lookup import Lookup
from lightning_cx.gradients.patches import Geometry, Patches
from lightning_cx.gradients.uses import Products, Rows, Use, working

Capture = Callable[[Tensor], Use]


@dataclass(frozen=True)
class Site:
    """A node that consumes a parameter, as a rule sees it."""

    node: Node
    operand: Operand
    layout: Layout

    @property
    def batch_size(self) -> int:
        return self.layout.batch_size

    def refuse(self, why: str) -> NoReturn:
        raise UnsupportedGradientError(f"{self.node.name()} of {self.operand.name}", why)

    def split(self, shape: tuple[int, ...], keep: int) -> Callable[[Tensor], Tensor]:
        """How to bring tensors of `shape`, whose last `keep` axes may differ, to [N, T, ...] in working precision."""
        lead = shape[: len(shape) - keep]
        if not lead:
            self.refuse(f"it spans every axis of {shape}, examples included")
        split = self.layout.split(lead, self.node, self.operand.name)
        return lambda tensor: split(working(tensor))

    def require_batch_first(self, shape: tuple[int, ...]) -> None:
        if shape[0] != self.batch_size:
            self.refuse(f"the first axis of {shape} is not the batch size {self.batch_size}")


Rule = Callable[[Site], Capture]
RULES: dict[str, Rule] = {}
COUPLING: dict[str, Callable[[Node], bool]] = {}  # nodes that mix examples, with the test for when they do


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the autograd nodes with these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def plan(site: Site) -> Capture:
    """Return the capture of one use of one parameter.

    Raises:
        UnsupportedGradientError: If no rule reads this node, or the rule declines; names node and parameter.
    """
    found = RULES.get(site.node.name())
    if found is None:
        site.refuse("no rule reads this node")
    return found(site)


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


def _broadcast(site: Site, factor: Callable[[], Tensor | float]) -> Capture:
    """A parameter that is spread over the examples and then shifts or scales them."""
    shape, target, n = output_shape(site.node), site.operand.shape, site.batch_size
    aligned: tuple[int, ...] = (1,) * (len(shape) - len(target)) + target
    lead = _leading(shape, aligned, n)
    if lead is None:
        site.refuse(f"a parameter of shape {target} has an axis of its own for the examples of {shape}")
    time_first = aligned[0] != 1
    split = None if time_first else site.layout.split(shape[:lead], site.node, site.operand.name)
    summed = [axis for axis, size in enumerate(aligned) if size == 1 and axis >= lead]

    def capture(gradient: Tensor) -> Use:
        scale = factor()
        values = working(gradient) * (working(scale) if isinstance(scale, Tensor) else scale)
        values = values.sum(summed, keepdim=True) if summed else values
        values = values.movedim(1, 0) if split is None else split(values).sum(1)
        return Rows(values.reshape(n, *target))

    return capture


def _leading(shape: tuple[int, ...], aligned: tuple[int, ...], n: int) -> int | None:
    """How many leading axes hold examples and positions; where a parameter has an axis of its own they do not."""
    if aligned[:1] != (1,):
        return 2 if shape[1:2] == (n,) and aligned[1] == 1 else None
    ones = next((axis for axis, size in enumerate(aligned) if size != 1), None)
    if ones is not None:
        return ones
    return 2 if len(shape) > 2 or (len(shape) == 2 and shape[1] == n != shape[0]) else 1  # a scalar


@rule("AddBackward0", "SubBackward0")
def _shift(site: Site) -> Capture:
    sign = -1.0 if site.node.name() == "SubBackward0" and site.operand.index == 1 else 1.0
    alpha = site.node._saved_alpha if site.operand.index == 1 else 1
    return _broadcast(site, lambda: sign * alpha)


@rule("MulBackward0")
def _scale(site: Site) -> Capture:
    node = site.node
    return _broadcast(site, lambda: node._saved_other if site.operand.index == 0 else node._saved_self)


@rule("DivBackward0")
def _divide(site: Site) -> Capture:
    node = site.node
    if site.operand.index == 0:
        site.refuse("the parameter stands over the fraction line")
    return _broadcast(site, lambda: -working(node._saved_self) / working(node._saved_other).square())


@rule("ExpandBackward0")
def _expand(site: Site) -> Capture:
    return _broadcast(site, lambda: 1.0)
