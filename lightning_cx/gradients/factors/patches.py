"""Gradients of a convolution kernel, by whichever route is cheapest for the shape.

With N examples, L positions, O output channels, fan-in F = C / groups x kernel size and P = O F entries:

- forming the gradients takes N L P multiplications and their Gram matrix N^2 P / 2 more;
- the ghost route takes (N L)^2 (F + O) / 2, without forming any: it wins where few positions meet a large kernel;
- gradients are formed by one grouped convolution, a group per example (slow on small pictures), or one offset of the
  kernel at a time, as matrix products with shifted inputs (which copies N L F entries), or, where channels are so few
  that these products are thin, from unfolded patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cx.gradients.factors.products import (
    CACHE_BYTES,
    Use,
    ghost_flops,
    ghost_gram,
    ghost_norms,
    gram_flops,
    how_many,
)
from lightning_cx.gradients.projections import Directions

FULL_POSITIONS = 200  # from which on a grouped convolution is as quick as matrix products (measured on oneDNN)
COPY_FLOPS = 12  # multiplications in the time that it takes to copy one entry of a shifted input
THIN, MANY = 4, 16  # with fewer channels than this before, and more behind, patches are unfolded
NATIVE_AXES = 3

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves: each tuple has one entry per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Patches(Use):
    """g_i = correlation of inputs [N, C, *size] with gradients of outputs [N, O, *positions]; kernel [O, C/groups, *k].

    A transposed convolution is the same with inputs and outputs exchanged.

    Attributes:
        inputs: What slides under the kernel.
        outputs: What is weighted by it, one for each position of the kernel.
        kernel: Shape of the kernel; the axes of the inputs beyond its own are frames, which add up.
        geometry: How the kernel moves over the inputs.
        operand: Shape of the parameter, where the kernel has axes of length 1 more.
    """

    inputs: Tensor
    outputs: Tensor
    kernel: tuple[int, ...]
    geometry: Geometry
    operand: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs.shape[0], *(self.operand or self.kernel))

    @property
    def _positions(self) -> int:
        return prod(self.outputs.shape[2:])

    @property
    def _fan_in(self) -> int:
        return prod(self.kernel[1:])

    def slab(self, start: int, stop: int) -> Tensor:
        n, entries, outputs = self.shape[0], self.shape[2:], self.outputs
        if self.geometry.groups == 1:  # channels of outputs know nothing of each other
            outputs, start, stop = outputs[:, start:stop], 0, stop - start
        part = replace(self, outputs=outputs, kernel=(outputs.shape[1], *self.kernel[1:]))
        offsets = [block.view(n, len(outputs[0]), -1)[:, start:stop] for block in part._by_offset(len(outputs[0]))]
        return torch.stack(offsets, -1).view(n, stop - start, *entries)

    def blocks(self) -> Iterator[Tensor]:
        if self.geometry.groups == 1 and self.kernel[1] < THIN and self.kernel[0] >= MANY:
            yield from self._from_patches()
        else:
            yield from self._grouped() if self.grouped_is_cheaper() else self._by_offset()

    def gram(self) -> Tensor:
        n, positions = self.shape[0], self._positions
        entries = self._fan_in * self.kernel[0]
        formed = n * positions * entries + gram_flops(n, entries)
        if self.geometry.groups == 1 and ghost_flops(n, positions, self._fan_in + self.kernel[0]) < formed:
            return ghost_gram(self._unfolded(), self.outputs.flatten(2).transpose(1, 2))
        return super().gram()

    def squared_norms(self) -> Tensor:
        ghost = self._positions * (self._fan_in + self.kernel[0]) < self._fan_in * self.kernel[0]
        if self.geometry.groups == 1 and ghost:
            return ghost_norms(self._unfolded(), self.outputs.flatten(2).transpose(1, 2))
        return super().squared_norms()

    def project(self, directions: Directions) -> Tensor:
        axes, g = len(self.geometry.stride), self.geometry
        if directions.left is None or directions.right is None or g.groups > 1 or axes > NATIVE_AXES:
            return directions.of_rows(self.rows())
        # A convolution with the directions as kernels projects every patch without unfolding any.
        kernels = directions.right.T.reshape(-1, *self.kernel[1:])
        patches = _CONVOLUTIONS[axes](self.inputs, kernels, None, g.stride, g.padding, g.dilation)
        corner = patches[(..., *(slice(size) for size in self.outputs.shape[2:]))].flatten(2)
        return directions.of_cores((directions.left.T @ self.outputs.flatten(2)) @ corner.transpose(1, 2))

    def of_examples(self, start: int, stop: int) -> Tensor:
        return replace(self, inputs=self.inputs[start:stop], outputs=self.outputs[start:stop]).rows()

    def times(self, factor: float) -> Patches:
        return self if factor == 1 else replace(self, outputs=self.outputs * factor)

    def grouped_is_cheaper(self) -> bool:
        """Whether forming gradients by one grouped convolution beats going offset by offset (see the module)."""
        if len(self.geometry.stride) > NATIVE_AXES or not self._fills_inputs():
            return False
        slowness = max(1.0, FULL_POSITIONS / self._positions)
        return self.geometry.groups > 1 or slowness < 1 + COPY_FLOPS / self.kernel[0]

    def _fills_inputs(self) -> bool:
        """Whether the kernel's positions fill the input, as the native convolution demands."""
        g = self.geometry
        return all(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 == positions
            for size, positions, kernel, stride, pad, dilation in zip(
                self.inputs.shape[2:], self.outputs.shape[2:], self.kernel[2:], g.stride, g.padding, g.dilation,
                strict=True,
            )
        )  # fmt: skip

    def _padded(self, inputs: Tensor) -> Tensor:
        padding = [amount for pad in reversed(self.geometry.padding) for amount in (pad, pad)]
        return F.pad(inputs, padding) if any(padding) else inputs

    def _shifted(self, offset: tuple[int, ...]) -> tuple[slice, ...]:
        """The entries of the padded input that meet one entry of the kernel."""
        g = self.geometry
        moves = zip(offset, g.dilation, g.stride, self.outputs.shape[2:], strict=True)
        return tuple(
            slice(at * dilation, at * dilation + stride * (positions - 1) + 1, stride)
            for at, dilation, stride, positions in moves
        )

    def _unfolded(self) -> Tensor:
        """Every patch of the input, [N, positions, C k]: a view of the input that overlaps itself, copied once."""
        padded, g = self._padded(self.inputs), self.geometry
        example, channel, *steps = padded.stride()
        offsets = [step * dilation for step, dilation in zip(steps, g.dilation, strict=True)]
        moves = [step * stride for step, stride in zip(steps, g.stride, strict=True)]
        size = (*padded.shape[:2], *self.kernel[2:], *self.outputs.shape[2:])
        view = padded.as_strided(size, (example, channel, *offsets, *moves))
        return view.reshape(self.shape[0], self._fan_in, self._positions).transpose(1, 2)

    def _from_patches(self) -> Iterator[Tensor]:
        """All patches of a few examples at a time."""
        n, fan_in = self.shape[0], self._fan_in
        few = max(1, CACHE_BYTES // (4 * fan_in * self._positions))
        step = how_many(4 * n * fan_in)
        for start in range(0, self.kernel[0], step):
            outputs = self.outputs[:, start : start + step].flatten(2)
            block = outputs.new_empty(n, outputs.shape[1], fan_in)
            for first in range(0, n, few):
                some = slice(first, first + few)
                part = replace(self, inputs=self.inputs[some], outputs=self.outputs[some])
                torch.bmm(outputs[some], part._unfolded(), out=block[some])
            yield block.flatten(1)

    def _grouped(self) -> Iterator[Tensor]:
        """One convolution with a group for each example, as autograd computes a kernel's gradient."""
        n, g = self.shape[0], self.geometry
        per_group = self.kernel[0] // g.groups
        step = how_many(4 * n * self._fan_in * (per_group if g.groups > 1 else 1))
        for start in range(0, g.groups if g.groups > 1 else self.kernel[0], step):
            inputs, outputs, groups = self.inputs, self.outputs[:, start : start + step], 1
            if g.groups > 1:  # cut between groups, which have channels of their own
                groups = min(step, g.groups - start)
                inputs = inputs.unflatten(1, (g.groups, -1))[:, start : start + groups]
                outputs = self.outputs.unflatten(1, (g.groups, -1))[:, start : start + groups]
            outputs = outputs.reshape(1, -1, *self.outputs.shape[2:])
            kernel = inputs.new_empty(1).expand(outputs.shape[1], *self.kernel[1:])  # only its shape is read
            gradient = torch.ops.aten.convolution_backward(
                outputs, inputs.reshape(1, -1, *self.inputs.shape[2:]), kernel, None, g.stride, g.padding, g.dilation,
                False, [0] * len(g.stride), n * groups, [False, True, False],
            )[1]  # fmt: skip
            yield gradient.reshape(n, -1)

    def _by_offset(self, step: int | None = None) -> Iterator[Tensor]:
        """One offset of the kernel at a time; the block that is handed out is overwritten by the next."""
        n, groups = self.shape[0], self.geometry.groups
        padded, outputs = self._padded(self.inputs), self.outputs.flatten(2).unflatten(1, (groups, -1))
        rows, columns = outputs.shape[2], self.kernel[1]
        step = step or how_many(4 * n * groups * columns)
        few = max(1, CACHE_BYTES // (4 * groups * columns * self._positions))
        for offset in product(*(range(size) for size in self.kernel[2:])):
            shifted = padded[(..., *self._shifted(offset))].unflatten(1, (groups, -1))
            for start in range(0, rows, step):
                block = padded.new_empty(n, groups, min(step, rows - start), columns)
                for first in range(0, n, few):
                    some = slice(first, first + few)
                    here = shifted[some].reshape(-1, columns, self._positions)
                    weights = outputs[some, :, start : start + step].reshape(len(here), -1, self._positions)
                    torch.bmm(weights, here.transpose(1, 2), out=block[some].view(len(here), -1, columns))
                yield block.flatten(1)
