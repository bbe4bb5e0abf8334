"""Where a weight is made in a way that cannot be followed, that is said by name; what looks alike is still right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Computing, naive_rows
from _rule_checks import assert_read, cubes, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_cx.gradients import GradientTap, UnsupportedGradientError


class Round(torch.autograd.Function):
    """Rounds forward, passes gradients straight through."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) + 0.1)


def _written(m: Computing, x: Tensor) -> Tensor:
    weight = torch.zeros(4, 5, dtype=x.dtype)
    weight[:, :3] = m.a[:, :3]
    return F.linear(x, weight)


REFUSED: dict[str, tuple[Callable[[Computing, Tensor], Tensor], str]] = {
    "a custom function of the weight": (lambda m, x: F.linear(x, Round.apply(m.a)), "RoundBackward of a"),
    "a weight written into a buffer": (_written, "CopySlices of a"),
    "a weight made inside a checkpoint": (
        lambda m, x: F.linear(x, checkpoint(lambda: m.a.exp() * 2, use_reentrant=False)),
        "checkpoint",
    ),
    "a row for each example": (lambda m, x: x[:, :4] * m.b.exp(), "MulBackward0 of b .*axis of its own"),
    "a row for each example in a layer": (lambda m, x: F.linear(m.b.exp(), m.a[:, :4]) * x[:, :4], "of (a|b)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_with_the_backward_unharmed(case: str) -> None:
    torch.manual_seed(0)
    compute, message = REFUSED[case]
    module, x = Computing(compute, a=p(4, 5), b=p(6, 4)), torch.randn(6, 5)
    loss = cubes(module, x, x)
    plain = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    loss = cubes(module, x, x)
    with pytest.raises(UnsupportedGradientError, match=message):
        GradientTap(module.named_parameters(), 6).attach(loss)
    loss.backward()
    for parameter, gradient in zip(module.parameters(), plain, strict=True):
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_a_hook_on_a_made_weight_that_changes_its_gradient_is_noticed() -> None:
    torch.manual_seed(0)

    def compute(m: Computing, x: Tensor) -> Tensor:
        weight = m.a.exp()
        weight.register_hook(lambda gradient: gradient * 2)
        return F.linear(x, weight)

    module, x = Computing(compute, a=p(4, 5)), torch.randn(6, 5)
    loss = cubes(module, x, x)
    with pytest.raises(UnsupportedGradientError, match="sum check"), GradientTap(module.named_parameters(), 6)(loss):
        loss.backward()


def test_hooks_of_the_user_on_a_made_weight_run_once() -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []

    def compute(m: Computing, x: Tensor) -> Tensor:
        weight = m.a.exp()
        if weight.requires_grad:
            weight.register_hook(seen.append)
        return F.linear(x, weight)

    module, x = Computing(compute, a=p(4, 5)), torch.randn(6, 5)
    loss = cubes(module, x, x)
    with GradientTap(module.named_parameters(), 6)(loss):
        loss.backward()
    assert len(seen) == 1


@pytest.mark.parametrize("n", [1, 6])
def test_followed_nonetheless(n: int) -> None:
    torch.manual_seed(n)
    functions: list[Callable[[Computing, Tensor], Tensor]] = [
        lambda m, x: F.linear(x, torch.fft.irfft(torch.fft.rfft(m.a) * 2, 5)),
        lambda m, x: F.linear(x, torch.linalg.svd(m.a, full_matrices=False)[2]),
        lambda m, x: F.linear(x, torch.linalg.qr(m.a.T)[0].T),
        lambda m, x: F.linear(x, m.a.max(1, keepdim=True)[0] * m.a),
        lambda m, x: F.linear(
            x, torch.cholesky_inverse(torch.linalg.cholesky(m.a @ m.a.T + torch.eye(4)))[:, :1] * m.a
        ),
        lambda m, x: F.linear(x, torch.stack(torch.var_mean(m.a, 0))),
        lambda m, x: F.linear(x, m.a.sort(1)[0].cumsum(0)),
    ]
    for compute in functions:
        assert_read(Computing(compute, a=p(4, 5)), torch.randn(n, 5))


def test_a_recurrent_layer_under_a_weight_norm() -> None:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.LSTM(4, 3, batch_first=True).double(), "weight_hh_l0")
    module, x = Computing(lambda m, x: m.f(x)[0], f=layer), torch.randn(6, 5, 4, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    single = [torch.autograd.grad(cubes(module, x[i : i + 1], x), list(parameters.values())) for i in range(6)]
    rows = torch.stack([torch.cat([gradient.flatten() for gradient in gradients]) for gradients in single])
    tap = GradientTap(parameters.items(), 6)
    loss = cubes(module, x, x)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < 1e-10


def test_dropped_weights_are_read_as_they_were_dropped() -> None:
    module = Computing(lambda m, x: F.linear(x, F.dropout(m.a, 0.5)), a=p(4, 5)).double()
    x = torch.randn(6, 5, dtype=torch.float64)

    def seeded(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return cubes(module, x, y)

    rows = naive_rows(module, seeded, x, x)
    tap = GradientTap(module.named_parameters(), 6)
    loss = seeded(module, x, x)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < 1e-10
