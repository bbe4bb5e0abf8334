"""Any shape and option: convolutions on every route, linear layers, embeddings, norms and free parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _models import Computing, naive_rows, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import AmbiguousLayoutError, GradientTap
from lightning_cx.gradients.factors.products import Rows
from lightning_cx.gradients.projections import Directions

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
few = settings(max_examples=25, deadline=None, derandomize=True)


def cubes(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Neither even nor linear, so that no gradient vanishes by symmetry."""
    out = module(x).flatten(1)
    return (out.pow(3) + out).mean(1).mean()


def assert_tap_equals_loop(module: nn.Module, x: Tensor, **options: Any) -> None:
    module, x = module.double(), x.double() if x.is_floating_point() else x
    rows = naive_rows(module, cubes, x, torch.zeros(len(x)))
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    tap = GradientTap(parameters, len(x), projections=3, **options)
    norms = GradientTap(parameters, len(x), gram=False, **options)
    loss = cubes(module, x, x)
    with tap(loss):
        loss.backward(retain_graph=True)
    with norms(loss):
        loss.backward()
    assert tap.sample is not None
    assert norms.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < 1e-10
    assert relative_error(norms.sample.squared_norms, rows.square().sum(1)) < 1e-10
    projected = torch.zeros(len(x), 3, dtype=torch.float64)
    start = 0
    for name, p in parameters:
        directions = Directions.draw(name, tuple(p.shape), 3, 0, p)
        projected += directions.of_rows(rows[:, start : start + p.numel()].reshape(len(x), *p.shape))
        start += p.numel()
    torch.testing.assert_close(tap.sample.projections, projected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("t", [1, 3, 17, 257])
def test_linear_layers_on_sequences_of_any_length(n: int, t: int) -> None:
    torch.manual_seed(n + t)
    layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    assert_tap_equals_loop(layers, torch.randn(n, t, 5))
    assert_tap_equals_loop(layers, torch.randn(n, 5, t).transpose(1, 2))


@few
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    contiguous=st.booleans(),
    bias=st.booleans(),
    d=st.integers(1, 20),
)
def test_linear_layers_on_any_number_of_axes(shape: list[int], contiguous: bool, bias: bool, d: int) -> None:
    torch.manual_seed(d)
    x = torch.randn(*shape, d) if contiguous else torch.randn(d, *reversed(shape)).permute(*range(len(shape), -1, -1))
    try:
        assert_tap_equals_loop(nn.Linear(d, 18, bias=bias), x, batch_first=None)
    except AmbiguousLayoutError:
        assert shape.count(shape[0]) > 1
        assert_tap_equals_loop(nn.Linear(d, 18, bias=bias), x, batch_first=True)


@few
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    n=st.sampled_from([1, 2, 5]),
    padding=st.sampled_from([None, 0, -1]),
    entries=st.sampled_from([1, 3, 40]),
    width=st.sampled_from([1, 18]),
)
def test_embeddings_of_any_shape_with_repeated_tokens(
    shape: list[int], n: int, padding: int | None, entries: int, width: int
) -> None:
    torch.manual_seed(entries + width)
    table = nn.Embedding(entries, width, padding_idx=padding)
    ids = torch.randint(entries, (n, *shape))
    if torch.equal(
        ids.flatten() == ids.new_tensor(table.padding_idx if table.padding_idx is not None else -1), ids.flatten() >= 0
    ):
        return  # nothing but padding: no gradient at all
    assert_tap_equals_loop(table, ids, batch_first=True)


def test_embeddings_that_are_renormalised_on_the_way() -> None:
    torch.manual_seed(0)
    assert_tap_equals_loop(nn.Embedding(9, 5, max_norm=1.0), torch.randint(9, (6, 4)))


def test_one_hot_tokens_through_a_table_that_is_also_looked_up() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(9, 5)
    module = Computing(
        lambda m, ids: m.table(ids).tanh() + F.one_hot(ids, 9).to(m.table.weight) @ m.table.weight, table=table
    )
    assert_tap_equals_loop(module, torch.randint(9, (6, 4)))


NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "LayerNorm without bias": (nn.LayerNorm(5, bias=False), (6, 3, 5)),
    "LayerNorm of single features": (nn.LayerNorm(5), (6, 5)),
    "LayerNorm with nothing to train": (
        nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4, elementwise_affine=False)),
        (6, 3, 5),
    ),
    "GroupNorm on [N, C]": (nn.GroupNorm(2, 4), (6, 4)),
    "GroupNorm on [N, C, L]": (nn.GroupNorm(1, 4), (6, 4, 5)),
    "GroupNorm on [N, C, D, H, W]": (nn.GroupNorm(4, 4), (6, 4, 2, 3, 2)),
    "GroupNorm without affine": (nn.Sequential(nn.Conv1d(4, 4, 2), nn.GroupNorm(2, 4, affine=False)), (6, 4, 5)),
    "BatchNorm1d on [N, C]": (nn.BatchNorm1d(4), (6, 4)),
    "BatchNorm1d on [N, C, L]": (nn.BatchNorm1d(4, momentum=None), (6, 4, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(4), (6, 4, 3, 2)),
    "BatchNorm2d of one example": (nn.BatchNorm2d(4), (1, 4, 3, 2)),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_on_every_number_of_axes(case: str) -> None:
    torch.manual_seed(len(case))
    module, shape = NORMS[case]
    for p in module.parameters():
        nn.init.normal_(p)
    for name, b in module.named_buffers():
        if name.startswith("running"):
            b.uniform_(0.5, 2)
    assert_tap_equals_loop(module.eval(), torch.randn(shape))


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) + 3)


FREE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "scale and shift of one number": (Computing(lambda m, x: (x * m.a + m.b).tanh(), a=p(), b=p()), (6, 4, 5)),
    "a temperature below the line": (Computing(lambda m, x: x / m.a, a=p()), (6, 4, 5)),
    "a scale below the line": (Computing(lambda m, x: x / m.a, a=p(5)), (6, 4, 5)),
    "a parameter minus the data": (Computing(lambda m, x: m.a - x, a=p(5)), (6, 5)),
    "the data minus three parameters": (Computing(lambda m, x: torch.sub(x, m.a, alpha=3), a=p(4, 5)), (6, 4, 5)),
    "a broadcast over axes apart": (Computing(lambda m, x: x * m.a, a=p(3, 1, 5)), (6, 3, 4, 5)),
    "a parameter with new axes": (
        Computing(lambda m, x: x * m.a[:, None] + m.a[None, :, None], a=p(3)),
        (6, 3, 4),
    ),
    "a table cut to length": (Computing(lambda m, x: x + m.a[:, : x.shape[1]], a=p(1, 9, 5)), (6, 4, 5)),
    "a token for every example": (
        Computing(lambda m, x: m.f(torch.cat([m.a.expand(len(x), -1, -1), x], 1)), a=p(1, 1, 5), f=nn.Linear(5, 3)),
        (6, 4, 5),
    ),
    "a matrix for every example": (
        Computing(lambda m, x: torch.bmm(x, m.a.expand(len(x), 5, 3)), a=p(5, 3)),
        (6, 4, 5),
    ),
    "one matrix in two roles": (Computing(lambda m, x: F.linear(x, m.a) * m.a[0] + m.a[1], a=p(5, 5)), (6, 5)),
    "a matrix there and back": (Computing(lambda m, x: F.linear(x, m.a).tanh() @ m.a, a=p(4, 5)), (6, 7, 5)),
    "slices of a weight and a bias": (
        Computing(lambda m, x: F.linear(x, m.a[:2], m.b[1:3]) + F.linear(x, m.a[3:], m.b[:2]), a=p(5, 5), b=p(3)),
        (6, 5),
    ),
    "columns of a weight": (
        Computing(lambda m, x: F.linear(x[:, :2], m.a[:, :2]) + F.linear(x, m.a), a=p(5, 5)),
        (6, 5),
    ),
    "alternate kernels": (
        Computing(lambda m, x: F.conv1d(x, m.a[::2]) * F.conv1d(x, m.a[1::2]), a=p(4, 5, 2)),
        (6, 5, 9),
    ),
    "a kernel as a scale": (
        Computing(lambda m, x: F.conv1d(x, m.a, padding=1) * m.a[0, :, :1], a=p(3, 3, 3)),
        (6, 3, 9),
    ),
    "a grouped kernel twice": (
        Computing(lambda m, x: m.f(m.f(x).tanh()), f=nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        (6, 4, 5, 5),
    ),
    "an activation in place": (
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Hardtanh(inplace=True)),
        (6, 5),
    ),
    "a scale in place": (Computing(lambda m, x: m.f(x).mul_(m.a).add_(m.a), a=p(4), f=nn.Linear(5, 4)), (6, 5)),
    "a branch that is detached": (Computing(lambda m, x: m.f(m.f(x).detach() + m.f(x)), f=nn.Linear(5, 5)), (6, 5)),
}


@pytest.mark.parametrize("case", FREE)
def test_free_parameters_with_the_data(case: str) -> None:
    torch.manual_seed(len(case))
    module, shape = FREE[case]
    assert_tap_equals_loop(module, torch.randn(shape))


def test_uses_of_one_parameter_add_up_before_they_are_squared() -> None:
    one, other = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(Rows(one + other).gram(), (one + other) @ (one + other).T)
