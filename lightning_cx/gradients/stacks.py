"""Gradients of stacks of matrices: many products side by side, and products of three factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.uses import Products, Use


@dataclass(frozen=True)
class Stacked(Use):
    """A parameter [B, a, b] that is B matrices, each used in products of its own."""

    parts: Sequence[Products]

    @property
    def shape(self) -> tuple[int, ...]:
        n, *matrix = self.parts[0].shape
        return (n, len(self.parts), *matrix)

    def slab(self, start: int, stop: int) -> Tensor:
        return torch.stack([part.rows() for part in self.parts[start:stop]], 1)

    def gram(self) -> Tensor:
        return torch.stack([part.gram() for part in self.parts]).sum(0)

    def squared_norms(self) -> Tensor:
        return torch.stack([part.squared_norms() for part in self.parts]).sum(0)

    def project(self, directions: Directions) -> Tensor:
        return directions.of_rows(self.rows())


@dataclass(frozen=True)
class Triples(Use):
    """Sums of products of three factors, g_i = sum_t a_it (x) b_it (x) c_it: bilinear layers. Each is [N, T, ...]."""

    a: Tensor
    b: Tensor
    c: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.a.shape[0], self.a.shape[2], self.b.shape[2], self.c.shape[2])

    def slab(self, start: int, stop: int) -> Tensor:
        outer = self.a[:, :, start:stop].unsqueeze(3) * self.b.unsqueeze(2)
        return (outer.flatten(2).transpose(1, 2) @ self.c).unflatten(1, outer.shape[2:])

    def gram(self) -> Tensor:
        if self.a.shape[1] > 1:
            return super().gram()
        factors = [factor[:, 0] @ factor[:, 0].T for factor in (self.a, self.b, self.c)]
        return factors[0] * factors[1] * factors[2]

    def squared_norms(self) -> Tensor:
        if self.a.shape[1] > 1:
            return super().squared_norms()
        return torch.stack([factor[:, 0].square().sum(1) for factor in (self.a, self.b, self.c)]).prod(0)

    def project(self, directions: Directions) -> Tensor:
        return directions.of_rows(self.rows())
