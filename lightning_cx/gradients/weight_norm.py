"""Gradients of weights w = g v / |v|, row by row, from those of w: without a backward for each example.

With u = v / |v|, an example's gradient h of w becomes <h, u> for g and (g / |v|) (h - <h, u> u) for v: each row loses
what lies along it. Everything is done on a few rows of the weight at a time; only where the Gram matrix of w is cheap,
that of v is taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.sources import Node, Source
from lightning_cx.gradients.uses import Products, Rows, Use, slabs, working

_NODE = "WeightNormInterfaceBackward0"


def through_weight_norm(source: Source, use: Use) -> Use | None:
    """The use of g or v, if a weight norm over rows (`dim=0`) is all that lies between them and the weight."""
    *turns, norm = source.nodes
    if norm.name() != _NODE or norm._saved_dim != 0 or any(node.name() != "TBackward0" for node in turns):
        return None
    if turns and not isinstance(use, Products):
        return None
    if isinstance(use, Products) and len(turns) % 2:
        use = use.transposed
    if use.shape[1:] != tuple(norm._saved_v.shape):
        return None
    unit, scale = _unit_rows(norm)
    if norm.next_functions[0][0] is source.leaf:
        return Deflated(use, unit, scale)
    return Rows(along_rows(use, unit).reshape(-1, *norm._saved_g.shape))


def _unit_rows(norm: Node) -> tuple[Tensor, Tensor]:
    v, size = working(norm._saved_v), working(norm._saved_result1)
    return v / size, (working(norm._saved_g) / size).flatten()


def along_rows(use: Use, unit: Tensor) -> Tensor:
    """<h_i, u> for every row u of the weight, [N, rows]."""
    if isinstance(use, Products):
        return (use.left * (use.right @ unit.T)).sum(1)
    width = unit[0].numel()
    parts, start = [], 0
    for block in slabs(use):
        stop = start + block.shape[1] // width
        parts.append((block.unflatten(1, (-1, width)) * unit[start:stop].flatten(1)).sum(2))
        start = stop
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Deflated(Use):
    """scale (h_i - <h_i, u> u) for every row u: the gradients of v."""

    base: Use
    unit: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def slab(self, start: int, stop: int) -> Tensor:
        rows, unit = self.base.slab(start, stop).flatten(2), self.unit[start:stop].flatten(1)
        rows = rows - (rows * unit).sum(2, keepdim=True) * unit
        return (rows * self.scale[start:stop, None]).view(-1, stop - start, *self.shape[2:])

    def gram(self) -> Tensor:
        if not isinstance(self.base, Products):
            return super().gram()
        along = (along_rows(self.base, self.unit) * self.scale).double()
        return self._scaled(self.base).gram().double() - along @ along.T

    def squared_norms(self) -> Tensor:
        if not isinstance(self.base, Products):
            return super().squared_norms()
        along = (along_rows(self.base, self.unit) * self.scale).double()
        return self._scaled(self.base).squared_norms().double() - along.square().sum(1)

    def project(self, directions: Directions) -> Tensor:
        return directions.of_rows(self.rows())

    def _scaled(self, base: Products) -> Products:
        return Products(base.left * self.scale, base.right)
