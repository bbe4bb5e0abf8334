"""Parameters that meet the data entry by entry, and normalisation layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

few = settings(max_examples=15, deadline=None, derandomize=True)


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape) + 0.3)


ENTRIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + p": lambda x, p: x + p,
    "x - p": lambda x, p: x - p,
    "p - x": lambda x, p: p - x,
    "a multiple is subtracted": lambda x, p: torch.sub(x, p, alpha=3),
    "rsub": lambda x, p: torch.rsub(x, p, alpha=3),
    "rsub of p": lambda x, p: torch.rsub(p, x, alpha=3),
    "1 - p": lambda x, p: x * (1 - p),
    "x p": lambda x, p: x * p,
    "x / p": lambda x, p: x / p,
    "p / x": lambda x, p: p / (x.abs() + 1),
    "x ** p": lambda x, p: (x.abs() + 0.1) ** p,
    "p ** x": lambda x, p: p**x,
    "2 ** p": lambda x, p: x * 2**p,
    "maximum": lambda x, p: torch.maximum(x, p),
    "minimum": lambda x, p: torch.minimum(p, x),
    "clamp": lambda x, p: torch.clamp(x, min=-p, max=p),
    "where": lambda x, p: torch.where(x > 0, x, p),
    "where the other way": lambda x, p: torch.where(x > 0, p, 2 * p),
    "masked_fill": lambda x, p: p.expand_as(x).masked_fill(x > 0, 0.5) * x,
    "lerp": lambda x, p: torch.lerp(x, x.sin(), p),
    "lerp to p": lambda x, p: torch.lerp(x, p, 0.3),
    "lerp from p": lambda x, p: torch.lerp(p, x, 0.3),
    "addcmul": lambda x, p: torch.addcmul(p, x, p, value=2),
    "addcdiv": lambda x, p: torch.addcdiv(x, x, p, value=2),
    "atan2": lambda x, p: torch.atan2(x, p),
    "hypot": lambda x, p: torch.hypot(x, p),
    "logaddexp": lambda x, p: torch.logaddexp(x, p),
    "a temperature": lambda x, p: x * p.mean().exp(),
    "expand": lambda x, p: p.expand_as(x) * x,
    "snake": lambda x, p: x + (p * x).sin().square() / p,
    "swish": lambda x, p: x * torch.sigmoid(p * x),
    "in place": lambda x, p: (x * 1).mul_(p).add_(p),
}
SHAPES = [
    ((5,), (5,)),
    ((4, 5), (5,)),
    ((4, 5), (4, 1)),
    ((4, 5), (1, 4, 5)),
    ((4, 5), ()),
    ((1,), ()),
    ((3, 1), (3, 2)),
]


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("case", ENTRIES)
def test_entry_by_entry(case: str, n: int) -> None:
    for shape, own in SHAPES:
        torch.manual_seed(n + 1)
        if case == "in place" and own == (3, 2):
            continue  # PyTorch itself refuses: the result would not fit
        if case in ("expand", "masked_fill") and own == (3, 2):
            continue
        assert_read(Computing(lambda m, x: ENTRIES[case](x, m.p), p=p(*own)), torch.randn(n, *shape))


def test_time_first() -> None:
    torch.manual_seed(0)
    module = Computing(lambda m, x: (x.transpose(0, 1) + m.p).mul(m.q).transpose(0, 1), p=p(4, 1, 5), q=p(5))
    assert_read(module, torch.randn(6, 4, 5))


@pytest.mark.parametrize("n", [1, 2, 6])
def test_copies_one_after_the_other(n: int) -> None:
    torch.manual_seed(n)
    rows = Computing(lambda m, x: torch.cat([m.p.repeat(len(x), 1, 1), x], 1) @ m.w, p=p(1, 2, 5), w=p(5, 5))
    assert_read(rows, torch.randn(n, 3, 5))
    channels = Computing(lambda m, x: x.view(1, -1).mul(m.p.repeat(len(x))).view_as(x), p=p(5))
    assert_read(channels, torch.randn(n, 5))
    tiled = Computing(lambda m, x: x * m.p.repeat(len(x), 2), p=p(5))
    assert_read(tiled, torch.randn(n, 10))


@few
@given(
    n=st.sampled_from([1, 2, 64]),
    rest=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    channels=st.integers(1, 5),
    shared=st.booleans(),
)
def test_prelu_of_any_shape(n: int, rest: list[int], channels: int, shared: bool) -> None:
    torch.manual_seed(channels)
    layer = nn.PReLU(1 if shared else channels)
    assert_read(nn.Sequential(nn.Identity(), layer), torch.randn(n, channels, *rest))


@pytest.mark.parametrize("t", [1, 3, 17, 257])
@pytest.mark.parametrize("n", [1, 2, 64])
def test_rms_norm(n: int, t: int) -> None:
    torch.manual_seed(n + t)
    assert_read(nn.RMSNorm(5), torch.randn(n, t, 5))


def test_rms_norm_in_a_model() -> None:
    torch.manual_seed(0)
    assert_read(nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.Tanh(), nn.RMSNorm((3, 4))), torch.randn(6, 3, 5))


@few
@given(
    axes=st.integers(1, 3),
    n=st.sampled_from([1, 2, 6, 64]),
    channels=st.integers(1, 4),
    size=st.integers(2, 4),
    tracked=st.booleans(),
)
def test_instance_norm_of_any_shape(axes: int, n: int, channels: int, size: int, tracked: bool) -> None:
    torch.manual_seed(channels + size)
    make = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1]
    layer = make(channels, affine=True, track_running_stats=tracked)
    nn.init.uniform_(layer.weight)
    x = torch.randn(n, channels, *[size] * axes)
    if tracked:
        layer(x)
        layer.eval()
    assert_read(layer, x)


def test_instance_norm_in_a_model_gives_exact_rows() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 3, 2))
    assert_read(module, torch.randn(6, 2, 6, 6))


def test_a_normalised_table_is_read_through_the_normalisation() -> None:
    torch.manual_seed(0)
    module = Computing(lambda m, x: x + m.f(m.p), p=p(4, 5), f=nn.LayerNorm(5))
    assert_read(module, torch.randn(6, 4, 5))
