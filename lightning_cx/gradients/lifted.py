"""Gradients of a parameter that were read on a tensor made of it: sent on example by example, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lightning_cx.gradients.buffers import how_many
from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.lookup import Lookup
from lightning_cx.gradients.patches import Patches
from lightning_cx.gradients.sources import Source
from lightning_cx.gradients.uses import Products, Rows, Summed, Use

BUFFER_BYTES = 64 << 20  # per block of rows; two are alive at a time


@dataclass(frozen=True)
class Lifted(Use):
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

    def examples(self, start: int, stop: int) -> Tensor:
        """Rows of some examples, [stop - start, *parameter]."""
        return self.source.lift(rows_of(self.base, start, stop))

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
            yield stop, self.examples(start, stop).reshape(stop - start, -1)


def rows_of(use: Use, start: int, stop: int) -> Tensor:
    """The rows of some examples only."""
    if isinstance(use, Summed):
        return torch.stack([rows_of(part, start, stop) for part in use.uses]).sum(0)
    some = slice(start, stop)
    if isinstance(use, Rows):
        return use.values[some]
    if isinstance(use, Products):
        return Products(use.left[some], use.right[some]).rows()
    if isinstance(use, Lookup):
        return replace(use, indices=use.indices[some], outputs=use.outputs[some]).rows()
    if isinstance(use, Patches):
        return replace(use, inputs=use.inputs[some], outputs=use.outputs[some]).rows()
    return use.rows()[some]


def scaled(use: Use, factor: float) -> Use | None:
    """The same gradients, larger by a factor; None where the use does not say how."""
    if factor == 1:
        return use
    if isinstance(use, Rows):
        return Rows(use.values * factor)
    if isinstance(use, Products):
        return Products(use.left * factor, use.right)
    if isinstance(use, (Lookup, Patches)):
        return replace(use, outputs=use.outputs * factor)
    return None
