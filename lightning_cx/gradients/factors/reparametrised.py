"""Weights that are functions of parameters: from gradients of the weight to those of each parameter.

In general a backward of the nodes in between is run for each example (`Reparametrised`), a few examples at a time. Two
frequent ways are quicker:

- a stretch of rows, as attention cuts its projections out of one matrix (`Cut`): inner products are those of the cut;
- weight norm, w = g v / |v| row by row (`Deflated`). With u = v / |v|, an example's gradient h of w becomes <h, u> for
  g and (g / |v|) (h - <h, u> u) for v: each row loses what lies along it. That is done on a few rows of the weight at
  a time, and where the Gram matrix of w is cheap, that of v is taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lightning_cx._torch import output_shape, saved
from lightning_cx.gradients.factors.products import Products, Rows, Use, how_many, slabs, working
from lightning_cx.gradients.graph.nodes import Node, record_of, signed
from lightning_cx.gradients.graph.weights import Source
from lightning_cx.gradients.projections import Directions

BUFFER_BYTES = 64 << 20  # per block of rows; two are alive at a time


@dataclass(frozen=True)
class Reparametrised(Use):
    """g_i = A h_i, h_i the gradients on the tensor that nodes consumed, A the way down to the parameter."""

    base: Use
    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.shape[0], *self.source.leaf.variable.shape)

    @property
    def _step(self) -> int:
        widest = max(prod(self.shape[1:]), prod(self.base.shape[1:]))
        entry = max(4, self.source.leaf.variable.element_size())
        size = entry * widest
        return min(max(1, BUFFER_BYTES // size), how_many(size / 4))  # a few large blocks are quicker than many

    def of_examples(self, start: int, stop: int) -> Tensor:
        """Rows of some examples, [stop - start, *parameter]."""
        return self.source.send_on(self.base.of_examples(start, stop))

    def slab(self, start: int, stop: int) -> Tensor:
        shape = self.shape
        rows = torch.cat([rows for _, rows in self._in_turn(shape[0])]).view(shape)
        return rows[:, start:stop] if rows.dim() > 1 else rows

    def blocks(self) -> Iterator[Tensor]:
        yield self.rows().flatten(1) if len(self.shape) > 1 else self.rows().unsqueeze(1)

    def gram(self) -> Tensor:
        """Blocks of examples against each other; the first of each pair is made anew, so that memory is bounded."""
        n = self.shape[0]
        total: Tensor | None = None
        for stop, rows in self._in_turn(n):
            start = stop - len(rows)
            total = rows.new_empty(n, n) if total is None else total
            total[start:stop, start:stop] = rows @ rows.T
            for earlier, others in self._in_turn(start):
                block = others @ rows.T
                total[earlier - len(others) : earlier, start:stop] = block
                total[start:stop, earlier - len(others) : earlier] = block.T
        assert total is not None, "a batch has examples"
        return total

    def squared_norms(self) -> Tensor:
        return torch.cat([rows.square().sum(1) for _, rows in self._in_turn(self.shape[0])])

    def project(self, directions: Directions) -> Tensor:
        return torch.cat([directions.of_rows(rows) for _, rows in self._in_turn(self.shape[0])])

    def _in_turn(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield flat rows of the first `count` examples, a block at a time, with the number of rows so far."""
        for start in range(0, count, self._step):
            stop = min(start + self._step, count)
            yield stop, self.of_examples(start, stop).reshape(stop - start, -1)


@dataclass(frozen=True)
class Cut(Use):
    """`part` stands at rows `first` onwards of a parameter with `total` rows; the others have no gradient."""

    part: Use
    first: int
    total: int

    @property
    def shape(self) -> tuple[int, ...]:
        n, _, *rest = self.part.shape
        return (n, self.total, *rest)

    def slab(self, start: int, stop: int) -> Tensor:
        n, rows, *rest = self.part.shape
        inside = slice(max(start - self.first, 0), min(stop - self.first, rows))
        if inside.start >= inside.stop:
            return self.part.slab(0, 1).new_zeros(n, stop - start, *rest)
        found = self.part.slab(inside.start, inside.stop)
        before = self.first + inside.start - start
        whole = found.new_zeros(n, stop - start, *rest)
        whole[:, before : before + found.shape[1]] = found
        return whole

    def gram(self) -> Tensor:
        return self.part.gram()

    def squared_norms(self) -> Tensor:
        return self.part.squared_norms()

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or not isinstance(self.part, Products):
            return directions.of_rows(self.rows())
        rows = slice(self.first, self.first + self.part.shape[1])
        return self.part.project(Directions(directions.count, directions.core, directions.left[rows], directions.right))


def of_cut(source: Source, use: Use) -> Use | None:
    """Return the use on the parameter, if only a cut of its rows and transposes lie between them."""
    *turns, cut = source.nodes
    if not isinstance(use, Products) or not all(record_of(node).transposes for node in turns):
        return None
    output = turns[-1].next_functions[0][1] if turns else source.output
    total, start_of = output_shape(source.leaf)[0], record_of(cut).cut_start
    if start_of is None or signed(saved(cut, "dim")) % 2:
        return None
    first = start_of(cut, output, total)
    return None if first is None else Cut(use.transposed if len(turns) % 2 else use, first, total)


def through_weight_norm(source: Source, use: Use) -> Use | None:
    """Return the use of g or v, if a weight norm over rows (`dim=0`) is all that lies between them and the weight."""
    *turns, norm = source.nodes
    if saved(norm, "dim") != 0 or not all(record_of(node).transposes for node in turns):
        return None
    if turns and not isinstance(use, Products):
        return None
    if isinstance(use, Products) and len(turns) % 2:
        use = use.transposed
    if use.shape[1:] != tuple(saved(norm, "v").shape):
        return None
    unit, scale = _unit_rows(norm)
    if norm.next_functions[0][0] is source.leaf:
        return Deflated(use, unit, scale)
    return Rows(along_rows(use, unit).reshape(-1, *saved(norm, "g").shape))


def _unit_rows(norm: Node) -> tuple[Tensor, Tensor]:
    v, size = working(saved(norm, "v")), working(saved(norm, "result1"))
    return v / size, (working(saved(norm, "g")) / size).flatten()


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

    def _scaled(self, base: Products) -> Products:
        return Products(base.left * self.scale, base.right)
