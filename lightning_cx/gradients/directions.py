"""Fixed random directions in the space of one parameter, cheap to project on."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from zlib import crc32

import torch
from torch import Tensor

MIN_RANK = 16  # two-sided low rank 16 x 16: 1.04 of a training step on the CNN of DESIGN, where sign-and-fold cost 27x


@dataclass(frozen=True)
class Directions:
    """`count` random directions R_k with E<g, R_k>^2 = |g|^2, for a parameter seen as a matrix [rows, columns].

    A large parameter gets R_k = left core_k right^T with Gaussian factors, so that a gradient which is a
    product of two thin matrices is projected without being formed; a small one gets Gaussian entries.
    """

    count: int
    core: Tensor  # [count, rank, rank], or [count, entries] for a small parameter
    left: Tensor | None = None  # [rows, rank]
    right: Tensor | None = None  # [columns, rank]

    @staticmethod
    def draw(name: str, shape: tuple[int, ...], count: int, seed: int, like: Tensor) -> Directions:
        """Draw the directions of one parameter: the same for the same name, shape, count and seed.

        Args:
            name: Name of the parameter.
            shape: Its shape.
            count: Number of directions.
            seed: Seed of the whole set.
            like: Tensor whose device and floating dtype the factors take.
        """
        # torch's CPU generator reads only the low 32 bits of a seed, so name and seed are hashed into these.
        generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))

        def gaussian(*size: int) -> Tensor:
            drawn = torch.randn(*size, generator=generator, dtype=torch.float64, device="cpu")
            return drawn.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))

        rank = max(MIN_RANK, isqrt(count - 1) + 1)
        rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (prod(shape), 1)
        if min(rows, columns) <= rank:
            return Directions(count, gaussian(count, rows * columns))
        scale = rank**-0.5
        return Directions(
            count, gaussian(count, rank, rank), gaussian(rows, rank) * scale, gaussian(columns, rank) * scale
        )

    def of_rows(self, rows: Tensor) -> Tensor:
        """Project explicit per-example gradients [N, ...] onto the directions: [N, count]."""
        flat = rows.reshape(rows.shape[0], -1)
        if self.left is None or self.right is None:
            return flat @ self.core.T
        matrices = flat.view(rows.shape[0], self.left.shape[0], -1)
        return self.of_cores(self.left.T @ (matrices @ self.right))

    def of_cores(self, cores: Tensor) -> Tensor:
        """Project gradients that were already reduced to left^T g right, [N, rank, rank]: [N, count]."""
        return cores.flatten(1) @ self.core.flatten(1).T
