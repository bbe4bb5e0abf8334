"""Convolutions of any number of axes and any geometry, transposed ones too, on every route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients.factors.patches import Geometry, Patches
from lightning_cx.gradients.factors.products import Products, gram_of_blocks, slabs

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
few = settings(max_examples=25, deadline=None, derandomize=True)
CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@few
@given(data=st.data())
def test_convolutions_of_any_geometry(data: st.DataObject) -> None:
    axes, n, groups = (
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([1, 2, 5])),
        data.draw(st.integers(1, 3)),
    )
    sides = st.lists(st.integers(1, 4), min_size=axes, max_size=axes)
    kernel, dilation = data.draw(sides), [1 + d // 3 for d in data.draw(sides)]
    mode = data.draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    same = data.draw(st.booleans())
    stride = [1] * axes if same else data.draw(sides)
    padding: Any = "same" if same else [data.draw(st.integers(0, 2)) for _ in range(axes)]
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]  # also when reflecting
    sizes = [side + data.draw(st.integers(0, 5)) + 2 for side in least]
    torch.manual_seed(sum(sizes))
    layer = CONVOLUTIONS[axes - 1](
        2 * groups,
        groups * data.draw(st.integers(1, 3)),
        tuple(kernel),
        stride=tuple(stride),
        padding=padding if same else tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=mode,
    )
    assert_read(layer, torch.randn(n, 2 * groups, *sizes))


@pytest.mark.parametrize("axes", [1, 2])
def test_kernels_larger_than_the_image_inside_its_border(axes: int) -> None:
    torch.manual_seed(0)
    make = CONVOLUTIONS[axes - 1]
    assert_read(make(2, 3, 5, padding=2), torch.randn(4, 2, *[2] * axes))
    assert_read(make(2, 3, 4, padding="same"), torch.randn(4, 2, *[3] * axes))


@few
@given(
    channels=st.integers(1, 4),
    out=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
)
def test_every_route_through_a_convolution_gives_the_same_gradients(
    channels: int,
    out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
) -> None:
    torch.manual_seed(channels + out)
    n = 3
    inputs = torch.randn(n, channels, *size, dtype=torch.float64)
    weight = torch.randn(out, channels, *kernel, dtype=torch.float64)
    outputs = torch.randn_like(F.conv2d(inputs, weight, None, stride, padding, dilation))
    use = Patches(inputs, outputs, (out, channels, *kernel), Geometry(stride, padding, dilation, 1))
    rows = torch.stack(
        [
            torch.autograd.grad(
                F.conv2d(inputs[i : i + 1], weight.requires_grad_(), None, stride, padding, dilation),
                weight,
                outputs[i : i + 1],
            )[0]
            for i in range(n)
        ]
    )
    truth = gram_of_blocks(iter([rows.flatten(1)]))
    torch.testing.assert_close(torch.cat(list(use._grouped()), 1), rows.flatten(1))
    torch.testing.assert_close(use.rows(), rows)
    torch.testing.assert_close(gram_of_blocks(use._by_offset()), truth)
    torch.testing.assert_close(gram_of_blocks(slabs(use)), truth)
    ghost = Products(use._unfolded(), outputs.flatten(2).transpose(1, 2))
    torch.testing.assert_close(gram_of_blocks(slabs(ghost)), truth)
    torch.testing.assert_close(use.gram(), truth)
    torch.testing.assert_close(use.squared_norms(), truth.diagonal())


@pytest.mark.parametrize("shape", [(3, 4, 20, 17), (3, 70, 16, 17), (2, 30, 2, 2)])  # grouped, by offset, ghost
def test_convolutions_of_every_size(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_read(nn.Conv2d(shape[1], 68 if shape[1] == 70 else 40, (3, 2), padding=1), torch.randn(shape))


@few
@given(data=st.data())
def test_transposed_convolutions_of_any_geometry(data: st.DataObject) -> None:
    axes, n = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 5]))
    groups = data.draw(st.integers(1, 2))
    side = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, stride, dilation = data.draw(side), data.draw(side), data.draw(side)
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    padding = [data.draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)]
    sizes = [data.draw(st.integers(3, 6)) + p for p in padding]
    torch.manual_seed(sum(sizes))
    layer = TRANSPOSED[axes - 1](
        2 * groups,
        groups * data.draw(st.integers(1, 3)),
        tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        output_padding=tuple(extra),
        dilation=tuple(dilation),
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    assert_read(layer, torch.randn(n, 2 * groups, *sizes))


def on_frames(m: Any, x: Tensor) -> Tensor:
    return m.layer(x.flatten(0, 1)).tanh().unflatten(0, x.shape[:2])


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv1d(2, 3, 3, padding=1),
        lambda: nn.Conv2d(2, 4, 3, 2, groups=2),
        lambda: nn.Conv3d(2, 3, 2, bias=False),
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)),
    ],
)
def test_several_frames_of_one_example_add_up(make: Callable[[], nn.Module], time_first: bool) -> None:
    torch.manual_seed(0)
    layer = make()
    first = layer[0] if isinstance(layer, nn.Sequential) else layer
    axes = first.weight.dim() - 2
    if time_first:
        model = Computing(lambda m, x: on_frames(m, x.transpose(0, 1)).transpose(0, 1), layer=layer)
    else:
        model = Computing(on_frames, layer=layer)
    assert_read(model, torch.randn(4, 3, 2, *[5] * axes))


def test_a_pair_of_convolutions_that_share_a_kernel() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(3, 3, 2))
    twice = Computing(lambda m, x: F.conv1d(F.conv1d(x, m.kernel).tanh(), m.kernel, dilation=2), kernel=kernel)
    assert_read(twice, torch.randn(5, 3, 9))
    autoencoder = Computing(
        lambda m, x: F.conv_transpose1d(F.conv1d(x, m.kernel, stride=2).tanh(), m.kernel, stride=2), kernel=kernel
    )
    assert_read(autoencoder, torch.randn(5, 3, 8))
