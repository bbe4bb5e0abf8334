"""Weight and bias of a linear layer together, where each example passes it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.graph import Node, Operand, output_shape
from lightning_cx.gradients.rules.registry import Capture, Joint
from lightning_cx.gradients.uses import Products, Use, inner_products


@dataclass(frozen=True)
class Affine(Use):
    """g_i = (a_i b_i^T, b_i): the Gram matrix (A A^T + 1) * (B B^T) costs no more than the weight's alone.

    Attributes:
        inputs: What the weight multiplied, [N, a].
        outputs: The gradients behind it, [N, b].
    """

    inputs: Tensor
    outputs: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.inputs), self.inputs.shape[1] + 1, self.outputs.shape[1])

    def slab(self, start: int, stop: int) -> Tensor:
        extended = self.inputs.new_ones(self.shape[:2])
        extended[:, :-1] = self.inputs
        return extended[:, start:stop].unsqueeze(2) * self.outputs.unsqueeze(1)

    def gram(self) -> Tensor:
        return inner_products(self.inputs, shift=1.0).mul_(inner_products(self.outputs))

    def squared_norms(self) -> Tensor:
        return (self.inputs.square().sum(1) + 1) * self.outputs.square().sum(1)

    def project(self, directions: Directions) -> Tensor:
        raise NotImplementedError("directions belong to one parameter each")


def as_affine(
    node: Node, work: Sequence[tuple[Operand, Capture | Joint]], uses: Counter[str], batch_size: int
) -> tuple[Operand, tuple[str, str], Capture] | None:
    """Return one operand for weight and bias, their names and a capture, if each example passes a linear layer once.

    Args:
        node: A node that consumes parameters.
        work: Its operands, with their captures.
        uses: How often each parameter is used.
        batch_size: Number of examples N.
    """
    if node.name() != "AddmmBackward0" or len(work) != 2 or output_shape(node)[0] != batch_size:
        return None
    (bias, _), (weight, capture) = sorted(work, key=lambda item: item[0].index)
    once = uses[bias.name] == 1 == uses[weight.name] and bias.name != weight.name
    plain = bias.source.scale == 1 == weight.source.scale
    as_it_stands = node._saved_alpha == 1 == node._saved_beta and bias.shape == output_shape(node)[1:]
    if (bias.index, weight.index) != (0, 2) or not (once and plain and as_it_stands) or isinstance(capture, Joint):
        return None

    def joint(gradient: Tensor) -> Use:
        products = capture(gradient)
        if not isinstance(products, Products):
            raise TypeError(f"the rule of a linear layer gave {type(products).__name__}")
        return Affine(products.left[:, 0], products.right[:, 0])

    name = f"{weight.name} and {bias.name}"
    return replace(weight, name=name, source=replace(weight.source, name=name)), (weight.name, bias.name), joint
