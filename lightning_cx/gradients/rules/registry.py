"""The registry of rules: one for each autograd node that can consume a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.graph import Node, Operand, output_shape
from lightning_cx.gradients.layout import Layout
from lightning_cx.gradients.places import gather
from lightning_cx.gradients.sources import is_native
from lightning_cx.gradients.uses import Rows, Use, working

Capture = Callable[[Tensor], Use]


@dataclass(frozen=True)
class Joint:
    """A capture whose node has several outputs and whose operands share costly work, as recurrent layers do.

    Attributes:
        prepare: What all operands of the node need, from the node and the gradients of all its outputs (None: zero);
            run once a backward.
        use: The use of the operand at hand, from what was prepared.
    """

    prepare: Callable[[Node, Sequence[Tensor | None]], Any]
    use: Callable[[Any], Use]


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

    def examples(self) -> tuple[int, int]:
        """The axis of the node's output that holds the examples, and the length of each of them there."""
        return self.layout.axis(self.node, self.operand.name)

    def frames(self) -> Callable[[Tensor], Tensor]:
        """How to bring [examples and frames, ...] to [N, frames, ...], where the examples lie on the first axis."""
        shape, n = output_shape(self.node), self.batch_size
        if n == 1:
            return lambda tensor: tensor.unsqueeze(0)
        axis, inner = self.examples()
        if axis != 0:
            self.refuse(f"the first axis of {shape} does not hold the {n} examples")
        return gather(shape[:1], inner, n)


Rule = Callable[[Site], Capture | Joint]
RULES: dict[str, Rule] = {}
COUPLING: dict[str, Callable[[Node], bool]] = {}  # nodes that mix examples, with the test for when they do
# Nodes whose first input is the layer's input, and not a parameter.
LAYERS = frozenset(
    {
        "ConvolutionBackward0",
        "CudnnBatchNormBackward0",
        "FusedRmsNormBackward0",
        "NativeBatchNormBackward0",
        "NativeGroupNormBackward0",
        "NativeLayerNormBackward0",
    }
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the autograd nodes with these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def plan(site: Site) -> Capture | Joint:
    """Return the capture of one use of one parameter.

    Raises:
        UnsupportedGradientError: If no rule reads this node, or the rule declines; names node and parameter.
    """
    name = site.node.name()
    if name in LAYERS and site.operand.index == 0:
        site.refuse("the input of the layer is made of parameters, and so is not one for each example")
    found = RULES.get(name)
    if found is not None:
        return found(site)
    if site.batch_size == 1 and is_native(site.node) and len(site.node._input_metadata) == 1:
        return _whole(site)
    site.refuse("no rule reads this node")


def _whole(site: Site) -> Capture:
    """The gradient of a single example is that of the batch, which any node of PyTorch's own computes."""
    node, index, shape = site.node, site.operand.index, site.operand.shape

    def capture(gradient: Tensor) -> Use:
        results = node(gradient)
        result = results[index] if isinstance(results, tuple) else results
        return Rows(working(result).sum_to_size(shape).unsqueeze(0))

    return capture
