"""Gradients of an embedding table: few rows of it are touched, and each example touches its own.

What an example looked up more than once adds up first. A row of the table that many examples touch is then a column
block of a matrix product; one that few touch costs a product for each pair of them, which is far less than a column of
zeros for all the others: the Gram matrix of a large vocabulary is mostly empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_cx.gradients.factors.products import Use, gram_flops, gram_of_blocks, how_many
from lightning_cx.gradients.projections import Directions

FEW_FLOPS = 1e8  # what is done before anything has been sorted out
COMMON = 1 / 3  # share of the examples from which on a row is cheaper as a column block (measured)


@dataclass(frozen=True)
class Entries:
    """What each example adds to each row that it touches, sorted by row.

    Attributes:
        rows: Which row of the table, [E].
        examples: Which example, [E].
        values: The sum of what arrived there, [E, d].
        counts: How many examples touch the same row, [E].
    """

    rows: Tensor
    examples: Tensor
    values: Tensor
    counts: Tensor

    def only(self, which: Tensor) -> Entries:
        return Entries(self.rows[which], self.examples[which], self.values[which], self.counts[which])


@dataclass(frozen=True)
class Lookup(Use):
    """g_i has the row sum over {t : indices_it = v} of outputs_it at v. [N, T] indices, [N, T, d] outputs."""

    indices: Tensor
    outputs: Tensor
    entries: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs.shape[0], self.entries, self.outputs.shape[2])

    @cached_property
    def _entries(self) -> Entries:
        n, _, width = self.outputs.shape
        examples = torch.arange(n, device=self.indices.device).unsqueeze(1)
        keys, inverse = (self.indices * n + examples).flatten().unique(return_inverse=True)
        values = self.outputs.new_zeros(len(keys), width).index_add_(0, inverse, self.outputs.reshape(-1, width))
        rows = keys // n
        _, group, sizes = rows.unique_consecutive(return_inverse=True, return_counts=True)
        return Entries(rows, keys % n, values, sizes[group])

    sparse = True

    def slab(self, start: int, stop: int) -> Tensor:
        formed = self.outputs.new_zeros(self.outputs.shape[0], stop - start, self.outputs.shape[2])
        self.add_to(formed, start, stop)
        return formed

    def add_to(self, total: Tensor, start: int, stop: int) -> None:
        entries = self._entries
        if start > 0 or stop < self.entries:
            entries = entries.only((entries.rows >= start) & (entries.rows < stop))
        positions = entries.examples * total.shape[1] + (entries.rows - start)
        total.view(-1, total.shape[2]).index_add_(0, positions, entries.values)

    def blocks(self) -> Iterator[Tensor]:
        yield from self._columns(self._entries)

    def _columns(self, entries: Entries) -> Iterator[Tensor]:
        """Only the rows that are touched, some columns of them at a time."""
        n, _, width = self.outputs.shape
        touched, positions = entries.rows.unique_consecutive(return_inverse=True)
        step = how_many(4 * n * len(touched))
        for start in range(0, width, step):
            formed = self.outputs.new_zeros(n, len(touched), min(step, width - start))
            formed[entries.examples, positions] = entries.values[:, start : start + step]
            yield formed.flatten(1)

    def gram(self) -> Tensor:
        n, entries = self.outputs.shape[0], self._entries
        if gram_flops(n, self.entries * self.outputs.shape[2]) < FEW_FLOPS:
            return super().gram()
        common = entries.counts > COMMON * n
        total = self.outputs.new_zeros(n, n)
        if bool(common.any()):
            total += gram_of_blocks(self._columns(entries.only(common)))
        rare = entries.only(~common)
        total.diagonal().index_add_(0, rare.examples, rare.values.square().sum(1))
        pairs = self.outputs.new_zeros(n * n)
        for step in range(1, int(rare.counts.max()) if len(rare.rows) else 0):
            first = (rare.rows[step:] == rare.rows[:-step]).nonzero().squeeze(1)
            for some in first.split(how_many(8 * rare.values.shape[1])):
                products = (rare.values[some] * rare.values[some + step]).sum(1)
                pairs.index_add_(0, rare.examples[some] * n + rare.examples[some + step], products)
        return total + pairs.view(n, n) + pairs.view(n, n).T

    def squared_norms(self) -> Tensor:
        entries = self._entries
        norms = self.outputs.new_zeros(self.outputs.shape[0])
        return norms.index_add_(0, entries.examples, entries.values.square().sum(1))

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or directions.right is None:
            return directions.of_rows(self.slab(0, self.entries))
        rows = directions.left[self.indices]  # [N, T, rank]
        return directions.of_cores(rows.transpose(1, 2) @ (self.outputs @ directions.right))

    def of_examples(self, start: int, stop: int) -> Tensor:
        return replace(self, indices=self.indices[start:stop], outputs=self.outputs[start:stop]).rows()

    def times(self, factor: float) -> Lookup:
        return self if factor == 1 else replace(self, outputs=self.outputs * factor)
