"""A few numbers in place of a whole gradient: random directions, fixed entries, a sketch of all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, isqrt, prod
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from lightning_cx.gradients.factors.products import Use

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


@dataclass(frozen=True)
class Entries:
    """Entries of one parameter that stand in a few of its rows, so that only a slab of each gradient is formed.

    Attributes:
        name: Name of the parameter.
        shape: Its shape.
        start: First row of the slab.
        stop: End of the slab.
        positions: Flat positions within the slab, [count].
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    positions: Tensor

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.positions)

    def of_use(self, use: Use) -> Tensor:
        """Pick the entries out of every example's gradient, [N, count]."""
        width = prod(self.shape[1:])
        if use.shape[1:] == self.shape and self.shape:
            slab = use.slab(self.start, self.stop)
        elif len(use.shape) == 2:  # the parameter as one long row
            slab = use.slab(self.start * width, self.stop * width)
        else:
            return self.of_rows(use.rows())
        return slab.flatten(1)[:, self.positions.to(slab.device)]

    def of_rows(self, rows: Tensor) -> Tensor:
        """Pick the entries out of whole gradients [N, ...]: [N, count]."""
        width = prod(self.shape[1:])
        return rows.reshape(len(rows), -1)[:, self.start * width + self.positions.to(rows.device)]


def spread(parameters: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Entries]:
    """Choose about `count` entries, as many of each parameter as its size says but one at least.

    Args:
        parameters: Parameters by name.
        count: Number of entries in all; 0 chooses none.
        seed: Seed of the choice; the same names and shapes give the same entries.
    """
    total = sum(p.numel() for p in parameters.values())
    if not count or not total:
        return {}
    chosen = {}
    for name, parameter in parameters.items():
        size = parameter.numel()
        if size:
            share = min(size, max(1, round(count * size / total)))
            chosen[name] = _choose(name, tuple(parameter.shape), share, seed)
    return chosen


def _choose(name: str, shape: tuple[int, ...], count: int, seed: int) -> Entries:
    # The generator reads only the low 32 bits of a seed, so name and seed are hashed into these.
    generator = Generator().manual_seed(crc32(f"{seed} {name} entries".encode()))
    rows, width = (shape[0] if shape else 1), prod(shape[1:])
    held = min(rows, ceil(count / width))
    start = int(torch.randint(rows - held + 1, (), generator=generator))
    positions = torch.randperm(held * width, generator=generator)[:count]
    return Entries(name, shape, start, start + held, positions)


DIRECTIONS = 64
"""A norm read off so many is right within 9% where a change is spread over many weights, within 28% where it is of rank
one in a single matrix (measured over 200 draws); the factor stays the same while the kind of change does. Gradients
that are projected on as many, with the same seed, meet the sketch."""


class ParameterSketch:
    """Inner products of all trainable parameters with fixed random directions: distances survive, memory does not grow.

    For parameters theta the sketch s has ``E |s|^2 = k |theta|^2``, and so have differences: how far two points of the
    trajectory lie apart can be read off their sketches. Large matrices are projected as ``left^T theta right`` with 16
    columns each, so a sketch costs 16 multiplications per parameter, in float64: what one step changes is small.

    Args:
        count: Number of directions k.
        seed: Seed of the directions; they depend on names and shapes besides.

    Raises:
        ValueError: If `count` is not positive.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> sketch = ParameterSketch(count=8)
        >>> before = sketch(net.named_parameters())
        >>> with torch.no_grad():
        ...     _ = net.weight.mul_(2.0)
        >>> change = sketch(net.named_parameters()) - before
        >>> change.shape, bool(change.abs().sum() > 0)
        (torch.Size([8]), True)
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"a sketch takes at least one direction, got count={count}.")
        self.count = count
        self.seed = seed
        self._directions: dict[tuple[str, torch.Size, torch.device], Directions] = {}

    @torch.no_grad()
    def __call__(self, named_parameters: Iterable[tuple[str, Tensor]]) -> Tensor:
        """Sketch the parameters as they are; nothing of them is changed.

        Args:
            named_parameters: Pairs as `module.named_parameters()` gives them; frozen and empty ones are skipped.

        Returns:
            ``[count]`` float64 on the device of the first parameter.

        Raises:
            ValueError: If there is no trainable parameter.
        """
        total: Tensor | None = None
        for name, parameter in named_parameters:
            if parameter.requires_grad and parameter.numel():
                values = parameter.detach().double()
                part = self._of(name, values).of_rows(values[None])[0]
                total = part if total is None else total + part.to(total.device)
        if total is None:
            raise ValueError("there is no trainable parameter to sketch.")
        return total

    def _of(self, name: str, values: Tensor) -> Directions:
        """Directions are kept: to draw them takes longer than to use them."""
        key = (name, values.shape, values.device)
        if key not in self._directions:
            self._directions[key] = Directions.draw(name, tuple(values.shape), self.count, self.seed, values)
        return self._directions[key]
