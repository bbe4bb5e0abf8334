"""What one use of a parameter contributes to each example's gradient, without forming it: products of two factors.

A contraction rule turns an autograd node into a `Use`; a use answers four questions: its Gram matrix, its squared
norms, its projections and, for parameters that are used more than once, its rows a slab at a time.

What a contraction costs, for N examples, T positions and a matrix of a x b entries, in multiplications and in entries
written to work buffers:

- formed: N T a b to form the gradients, N^2 a b / 2 for their Gram matrix; N a b written, a bounded block at a time.
- ghost: (N T)^2 (a + b) / 2, twice (N T)^2 / 2 written; nothing is formed.
- T = 1: N^2 (a + b) / 2, and N^2 written.
- norms: N T a b formed, or N T^2 (a + b) as ghosts.

The cheaper by multiplications is taken, which `tests/gradients/test_routes.py` holds to measured times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_cx.gradients.projections import Directions

DEFAULT_BYTES = 16 << 20  # buffers of this size stay on the heap and near the last-level cache (measured)
CACHE_BYTES = 1 << 20  # what is written and read again at once stays in a core's own cache
_BYTES: ContextVar[int] = ContextVar("lightning_cx_buffer_bytes", default=DEFAULT_BYTES)
WIDE = 1 << 17  # entries of a matrix from which on half of its Gram matrix is quicker than all of it
GHOST_COST = 0.8  # a ghost contraction is two plain matrix products and costs less per flop (measured)


def working(tensor: Tensor) -> Tensor:
    """Return the tensor in the precision that contractions run in: float64 stays, all else becomes float32."""
    if tensor.is_complex():
        raise TypeError("complex tensors are not read")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Use(ABC):
    """Per-example gradients g_i of one operand, held as the factors that autograd has anyway."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of (examples, *operand)."""

    @abstractmethod
    def slab(self, start: int, stop: int) -> Tensor:
        """Rows [N, stop - start, ...] of the gradients, cut along the operand's first axis."""

    sparse: ClassVar[bool] = False  # whether only few entries of the gradients are not zero

    def add_to(self, total: Tensor, start: int, stop: int) -> None:
        """Add a slab to one that is there."""
        total += self.slab(start, stop)

    def blocks(self) -> Iterator[Tensor]:
        """Yield columns of the gradients in blocks [N, c] of bounded size; order is of no account."""
        yield from slabs(self)

    def gram(self) -> Tensor:
        """Inner products <g_i, g_j>, [N, N]."""
        return gram_of_blocks(self.blocks())

    def squared_norms(self) -> Tensor:
        """Squared norms |g_i|^2, [N]."""
        return norms_of_blocks(self.blocks())

    def rows(self) -> Tensor:
        """All of it, [N, *operand]; only for operands known to be small."""
        return self.slab(0, self.shape[1] if len(self.shape) > 1 else 1)

    def project(self, directions: Directions) -> Tensor:
        """Inner products of every g_i with fixed directions, [N, count]."""
        return directions.of_rows(self.rows())

    def of_examples(self, start: int, stop: int) -> Tensor:
        """The rows of some examples only."""
        return self.rows()[start:stop]

    def times(self, factor: float) -> Use | None:
        """The same gradients, larger by a factor; None where that is not known without forming them."""
        return self if factor == 1 else None


@dataclass(frozen=True)
class Rows(Use):
    """Gradients at hand: biases, scales and shifts, tables of positions. `values` is [N, *operand]."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def blocks(self) -> Iterator[Tensor]:
        yield self.values.reshape(self.values.shape[0], -1)

    def slab(self, start: int, stop: int) -> Tensor:
        return self.values[:, start:stop] if self.values.dim() > 1 else self.values

    def project(self, directions: Directions) -> Tensor:
        return directions.of_rows(self.values)

    def of_examples(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop]

    def times(self, factor: float) -> Rows:
        return self if factor == 1 else Rows(self.values * factor)


@dataclass(frozen=True)
class Products(Use):
    """Sums of outer products, g_i = sum_t left_it right_it^T: every linear layer. [N, T, a] and [N, T, b]."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.left.shape[2], self.right.shape[2])

    @property
    def transposed(self) -> Products:
        """The same gradients for the transposed operand."""
        return Products(self.right, self.left)

    def slab(self, start: int, stop: int) -> Tensor:
        return torch.bmm(self.left[:, :, start:stop].transpose(1, 2), self.right)

    def blocks(self) -> Iterator[Tensor]:
        n, first, width = self.shape
        step = how_many(4 * n * width)
        buffer = work_buffer(n * min(step, first) * width, self.left)
        for start in range(0, first, step):
            left = self.left[:, :, start : start + step].transpose(1, 2)
            block = buffer[: n * left.shape[1] * width].view(n, left.shape[1], width)
            yield torch.bmm(left, self.right, out=block).flatten(1)

    def gram(self) -> Tensor:
        n, t, a = self.left.shape
        b = self.right.shape[2]
        if t == 1:
            return inner_products(self.left[:, 0]).mul_(inner_products(self.right[:, 0]))
        formed = n * t * a * b + gram_flops(n, a * b)
        return ghost_gram(self.left, self.right) if ghost_flops(n, t, a + b) < formed else super().gram()

    def squared_norms(self) -> Tensor:
        _, t, a = self.left.shape
        if t == 1:
            return self.left[:, 0].square().sum(1) * self.right[:, 0].square().sum(1)
        b = self.right.shape[2]
        return ghost_norms(self.left, self.right) if t * (a + b) < a * b else super().squared_norms()

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or directions.right is None:
            return directions.of_rows(self.rows())
        return directions.of_cores((self.left @ directions.left).transpose(1, 2) @ (self.right @ directions.right))

    def of_examples(self, start: int, stop: int) -> Tensor:
        return Products(self.left[start:stop], self.right[start:stop]).rows()

    def times(self, factor: float) -> Products:
        return self if factor == 1 else Products(self.left * factor, self.right)


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


@dataclass(frozen=True)
class Summed(Use):
    """One parameter used several times: the gradients add up before anything is squared."""

    uses: Sequence[Use]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.uses[0].shape

    def slab(self, start: int, stop: int) -> Tensor:
        first, *others = sorted(self.uses, key=lambda use: use.sparse)
        total = first.slab(start, stop)
        total = total if isinstance(first, Products) else total.clone()  # others may hand out what they hold
        for use in others:
            use.add_to(total, start, stop)
        return total

    def project(self, directions: Directions) -> Tensor:
        return torch.stack([use.project(directions) for use in self.uses]).sum(0)

    def of_examples(self, start: int, stop: int) -> Tensor:
        return torch.stack([use.of_examples(start, stop) for use in self.uses]).sum(0)


def add_up(uses: Sequence[Use]) -> Use:
    """Combine all uses of one parameter into one."""
    if len(uses) == 1:
        return uses[0]
    products = [use for use in uses if isinstance(use, Products)]
    if len(products) == len(uses):
        return Products(torch.cat([use.left for use in products], 1), torch.cat([use.right for use in products], 1))
    if all(isinstance(use, Rows) for use in uses):
        return Rows(torch.stack([use.rows() for use in uses]).sum(0))
    return Summed(uses)


# Contractions


def slabs(use: Use) -> Iterator[Tensor]:
    """Cut a use along its operand's first axis into flat blocks of bounded size."""
    n, first, *rest = (*use.shape, 1) if len(use.shape) == 1 else use.shape
    step = how_many(4 * n * prod(rest))
    for start in range(0, first, step):
        yield use.slab(start, min(start + step, first)).flatten(1)


def gram_of_blocks(blocks: Iterator[Tensor]) -> Tensor:
    """Sum B B^T over column blocks B: the lower triangle in bands, then mirrored."""
    total: Tensor | None = None
    for block in blocks:
        total = block.new_zeros(len(block), len(block)) if total is None else total
        for some, upto in bands(len(block)):
            total[some, upto].addmm_(block[some], block[upto].T)
    assert total is not None, "a parameter without entries has no consumer"
    return mirrored(total)


def inner_products(rows: Tensor, shift: float = 0.0) -> Tensor:
    """B B^T + shift for one matrix [N, c]; in bands only where they are worth their overhead."""
    if rows.numel() < WIDE:
        return torch.addmm(rows.new_full((1,), shift), rows, rows.T) if shift else rows @ rows.T
    total = rows.new_full((len(rows), len(rows)), shift)
    for some, upto in bands(len(rows)):
        total[some, upto].addmm_(rows[some], rows[upto].T)
    return mirrored(total)


def bands(n: int) -> Iterator[tuple[slice, slice]]:
    """Rows of an N x N matrix with the columns that reach to their diagonal; few bands, since they have to be wide."""
    height = -(-n // (1 if n < 96 else 2 if n < 192 else 4))
    for start in range(0, n, height):
        stop = min(start + height, n)
        yield slice(start, stop), slice(0, stop)


def mirrored(lower: Tensor) -> Tensor:
    """Fill the upper triangle of a matrix of which the bands were computed."""
    for some, _ in bands(len(lower)):
        lower[: some.start, some] = lower[some, : some.start].T
    return lower


def gram_flops(n: int, entries: int) -> float:
    """Multiplications of `gram_of_blocks`: about half of n^2 entries where there are many examples."""
    return sum((some.stop - some.start) * upto.stop for some, upto in bands(n)) * entries


def norms_of_blocks(blocks: Iterator[Tensor]) -> Tensor:
    """Sum the squared rows of column blocks."""
    return torch.stack([torch.linalg.vector_norm(block, dim=1).square() for block in blocks]).sum(0)


def ghost_flops(n: int, t: int, widths: int) -> float:
    """Cost of `ghost_gram`, to be compared with forming the gradients."""
    return GHOST_COST * gram_flops(n, 1) * t**2 * widths


def ghost_gram(left: Tensor, right: Tensor) -> Tensor:
    """Gram matrix of sums of outer products as sum_ts (left_it . left_js)(right_it . right_js)."""
    n, t, _ = left.shape
    flat_left, flat_right = left.reshape(n * t, -1), right.reshape(n * t, -1)
    total = left.new_empty(n, n)
    for some, upto in bands(n):
        step = how_many(8 * upto.stop * t * t)
        for start in range(some.start, some.stop, step):
            stop = min(start + step, some.stop)
            few, all_before = slice(start * t, stop * t), slice(0, upto.stop * t)
            products = (flat_left[few] @ flat_left[all_before].T).mul_(flat_right[few] @ flat_right[all_before].T)
            total[start:stop, upto] = products.view(stop - start, t, upto.stop, t).sum((1, 3))
    return mirrored(total)


def ghost_norms(left: Tensor, right: Tensor) -> Tensor:
    """Diagonal of `ghost_gram`."""
    n, t, _ = left.shape
    step = how_many(8 * t * t)
    norms = []
    for start in range(0, n, step):
        a, b = left[start : start + step], right[start : start + step]
        norms.append((a @ a.transpose(1, 2)).mul_(b @ b.transpose(1, 2)).sum((1, 2)))
    return torch.cat(norms)


# Work buffers

Workspace = dict[tuple[torch.dtype, torch.device], Tensor]
_WORKSPACE: ContextVar[Workspace | None] = ContextVar("lightning_cx_workspace", default=None)


@contextmanager
def buffers_of(max_bytes: int, workspace: Workspace | None = None) -> Iterator[None]:
    """Bound the work buffers of contractions in this block and thread, and let them share one piece of memory.

    Buffers that come and go between the tensors of a backward leave holes that nothing fits into.
    """
    tokens = _BYTES.set(max_bytes), _WORKSPACE.set(workspace)
    try:
        yield
    finally:
        _BYTES.reset(tokens[0])
        _WORKSPACE.reset(tokens[1])


def work_buffer(entries: int, like: Tensor) -> Tensor:
    """A flat buffer with anything in it, good until the next call."""
    workspace, kind = _WORKSPACE.get(), (like.dtype, like.device)
    if workspace is None:
        return like.new_empty(entries)
    if kind not in workspace or workspace[kind].numel() < entries:
        workspace[kind] = like.new_empty(entries)
    return workspace[kind][:entries]


def how_many(bytes_each: float) -> int:
    """How many things of a size fit into one work buffer, at least one."""
    return max(1, int(_BYTES.get() // max(1, bytes_each)))
