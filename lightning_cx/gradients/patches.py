"""Gradients of a convolution kernel, by whichever route is cheapest for the shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cx.gradients.directions import Directions
from lightning_cx.gradients.uses import CHUNK_BYTES, Use, ghost_flops, ghost_gram, ghost_norms

# One grouped convolution beats matrix products where the image is large and the kernel small (measured on oneDNN).
GROUPED_MIN_POSITIONS = 256
GROUPED_MAX_CHANNELS = 4608  # product of input and output channels


@dataclass(frozen=True)
class Geometry:
    """How a two-dimensional convolution moves: each field has one entry per spatial axis."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Patches(Use):
    """g_i = correlation of inputs [N, C, H, W] with gradients of outputs [N, O, h, w]; kernel [O, C/groups, a, b]."""

    inputs: Tensor
    outputs: Tensor
    kernel: tuple[int, int, int, int]
    geometry: Geometry
    axes: int = 2  # 1: a convolution over one axis, held as two of which the first is 1 long

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs.shape[0], *self.kernel[:2], *self.kernel[4 - self.axes :])

    @property
    def _positions(self) -> int:
        return prod(self.outputs.shape[2:])

    def slab(self, start: int, stop: int) -> Tensor:
        if self.geometry.groups > 1:
            return self._grouped()[:, start:stop].reshape(-1, stop - start, *self.shape[2:])
        flat = self.outputs[:, start:stop].flatten(2)
        return torch.bmm(flat, self._unfolded()).view(len(flat), stop - start, *self.shape[2:])

    def blocks(self) -> Iterator[Tensor]:
        small = self.kernel[0] * self.kernel[1] <= GROUPED_MAX_CHANNELS
        if self.geometry.groups > 1 or (self._positions >= GROUPED_MIN_POSITIONS and small):
            yield self._grouped().flatten(1)
        else:
            yield from self._by_offset()

    def gram(self) -> Tensor:
        n, places, fan_in = self.inputs.shape[0], self._positions, prod(self.kernel[1:])
        entries = fan_in * self.kernel[0]
        formed = n * places * entries + n * n * entries
        if self.geometry.groups == 1 and ghost_flops(n, places, fan_in + self.kernel[0]) < formed:
            return ghost_gram(self._unfolded(), self.outputs.flatten(2).transpose(1, 2))
        return super().gram()

    def squared_norms(self) -> Tensor:
        fan_in = prod(self.kernel[1:])
        ghost = self._positions * (fan_in + self.kernel[0]) < fan_in * self.kernel[0]
        if self.geometry.groups == 1 and ghost:
            return ghost_norms(self._unfolded(), self.outputs.flatten(2).transpose(1, 2))
        return super().squared_norms()

    def project(self, directions: Directions) -> Tensor:
        if directions.left is None or directions.right is None or self.geometry.groups > 1:
            return directions.of_rows(self._grouped())
        # A convolution with the directions as kernels projects every patch without unfolding any.
        kernels = directions.right.T.reshape(-1, *self.kernel[1:])
        g = self.geometry
        patches = F.conv2d(self.inputs, kernels, None, g.stride, g.padding, g.dilation).flatten(2)
        return directions.of_cores((directions.left.T @ self.outputs.flatten(2)) @ patches.transpose(1, 2))

    def _unfolded(self) -> Tensor:
        """Every patch of the input, [N, positions, C a b]."""
        g = self.geometry
        return F.unfold(self.inputs, self.kernel[2:], g.dilation, g.padding, g.stride).transpose(1, 2)

    def _grouped(self) -> Tensor:
        """All gradients at once, [N, *kernel]: autograd's own kernel gradient with one group per example."""
        n, g = self.inputs.shape[0], self.geometry
        inputs = self.inputs.reshape(1, -1, *self.inputs.shape[2:])
        outputs = self.outputs.reshape(1, -1, *self.outputs.shape[2:])
        kernel = inputs.new_empty(1).expand(n * self.kernel[0], *self.kernel[1:])  # only its shape is read
        gradient = torch.ops.aten.convolution_backward(
            outputs,
            inputs,
            kernel,
            None,
            g.stride,
            g.padding,
            g.dilation,
            False,
            [0, 0],
            n * g.groups,
            [False, True, False],
        )[1]
        return gradient.view(n, *self.kernel)

    def _by_offset(self) -> Iterator[Tensor]:
        """One offset of the kernel at a time: the shifted input is a plain slice, and nothing is unfolded."""
        g, (height, width) = self.geometry, self.outputs.shape[2:]
        n, channels = self.inputs.shape[:2]
        padded = F.pad(self.inputs, (g.padding[1], g.padding[1], g.padding[0], g.padding[0]))
        outputs = self.outputs.flatten(2)
        step = max(1, CHUNK_BYTES // (4 * n * channels))
        for row in range(self.kernel[2]):
            for column in range(self.kernel[3]):
                top, left = row * g.dilation[0], column * g.dilation[1]
                down = slice(top, top + g.stride[0] * (height - 1) + 1, g.stride[0])
                right = slice(left, left + g.stride[1] * (width - 1) + 1, g.stride[1])
                shifted = padded[:, :, down, right].reshape(n, channels, -1).transpose(1, 2)
                for start in range(0, self.kernel[0], step):
                    yield torch.bmm(outputs[:, start : start + step], shifted).flatten(1)
