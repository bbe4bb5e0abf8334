"""Gradients of an embedding table: few rows of it are touched, and each example touches its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.gradients.buffers import how_many
from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.uses import Use


@dataclass(frozen=True)
class Lookup(Use):
    """g_i has the row sum over {t : indices_it = v} of outputs_it at v. [N, T] indices, [N, T, d] outputs."""

    indices: Tensor
    outputs: Tensor
    entries: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs.shape[0], self.entries, self.outputs.shape[2])

    def _scatter(self, places: Tensor, count: int, outputs: Tensor) -> Tensor:
        n, width = outputs.shape[0], outputs.shape[2]
        target = torch.arange(n, device=places.device).unsqueeze(1) * count + places
        formed = outputs.new_zeros(n * count, width)
        return formed.index_add_(0, target.flatten(), outputs.reshape(-1, width)).view(n, count, width)

    def slab(self, start: int, stop: int) -> Tensor:
        inside = (self.indices >= start) & (self.indices < stop)
        places = torch.where(inside, self.indices - start, 0)
        return self._scatter(places, stop - start, self.outputs * inside.unsqueeze(2))

    def blocks(self) -> Iterator[Tensor]:
        """Only the rows that the batch touches, some columns of them at a time."""
        touched, places = self.indices.unique(return_inverse=True)
        step = how_many(4 * self.outputs.shape[0] * touched.numel())
        for start in range(0, self.outputs.shape[2], step):
            yield self._scatter(places, touched.numel(), self.outputs[:, :, start : start + step]).flatten(1)

    def squared_norms(self) -> Tensor:
        """By pairs of positions where a sequence is shorter than the set of its tokens, else from blocks."""
        if self.indices.shape[1] > 256:
            return super().squared_norms()
        norms, step = [], how_many(8 * self.indices.shape[1] ** 2)
        for indices, outputs in zip(self.indices.split(step), self.outputs.split(step), strict=True):
            same = indices.unsqueeze(1) == indices.unsqueeze(2)
            norms.append(torch.bmm(outputs, outputs.transpose(1, 2)).mul_(same).sum((1, 2)))
        return torch.cat(norms)

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or directions.right is None:
            return directions.of_rows(self.slab(0, self.entries))
        rows = directions.left[self.indices]  # [N, T, rank]
        return directions.of_cores(rows.transpose(1, 2) @ (self.outputs @ directions.right))
