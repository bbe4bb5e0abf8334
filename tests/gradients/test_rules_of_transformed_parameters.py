"""Weights that are functions of parameters: normalised, scaled, put together, looked up, constrained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from lightning_cx.gradients import GradientTap
from lightning_cx.gradients.factors import reparametrised

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) + 0.1)


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]  # a model, and the shape of one example
REPARAMETRISED: dict[str, Case] = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), (5,)),
    "weight_norm on sequences": (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), (7, 5)),
    "weight_norm of the whole": (lambda: parametrizations.weight_norm(nn.Linear(5, 4), dim=None), (5,)),
    "weight_norm of columns": (lambda: parametrizations.weight_norm(nn.Linear(5, 4), dim=1), (5,)),
    "weight_norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 2)), (3, 5, 4)),
    "weight_norm of an embedding": (lambda: parametrizations.weight_norm(nn.Embedding(9, 4)), (-9, 5)),
    "weight_norm as it was": (lambda: _without_weight(torch.nn.utils.weight_norm(nn.Linear(5, 4))), (5,)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)).eval(), (3, 5)),
    "spectral_norm of a convolution": (lambda: parametrizations.spectral_norm(nn.Conv1d(3, 4, 2)).eval(), (3, 6)),
    "spectral_norm as it was": (lambda: torch.nn.utils.spectral_norm(nn.Linear(5, 4)).eval(), (5,)),
    "orthogonal by Householder": (lambda: parametrizations.orthogonal(nn.Linear(5, 4)), (5,)),
    "orthogonal by Cayley": (
        lambda: parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map="cayley", use_trivialization=False),
        (5,),
    ),
    "orthogonal by an exponential": (
        lambda: parametrizations.orthogonal(nn.Linear(5, 4), orthogonal_map="matrix_exp"),
        (5,),
    ),
}


def _without_weight(layer: nn.Module) -> nn.Module:
    del layer.weight  # computed again by each forward; a tensor with a graph cannot be copied
    return layer


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Positive(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(w)


def _register(layer: nn.Module, name: str, function: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, name, function)
    return layer


REPARAMETRISED |= {
    "symmetric": (lambda: _register(nn.Linear(5, 5), "weight", Symmetric()), (5,)),
    "positive scale of a LayerNorm": (lambda: _register(nn.LayerNorm(5), "weight", Positive()), (3, 5)),
    "symmetric, cached and used twice": (
        lambda: Computing(_twice, f=_register(nn.Linear(5, 5), "weight", Symmetric())),
        (5,),
    ),
}


def _twice(module: Computing, x: Tensor) -> Tensor:
    with parametrize.cached():
        return module.f(module.f(x).tanh())


MASK = torch.tensor([[1.0, 0, 1, 1, 0]] * 4)
FUNCTIONS: dict[str, Callable[[Computing, Tensor], Tensor]] = {
    "a constant factor": lambda m, x: F.linear(x, m.a * 0.1),
    "a constant factor and its opposite": lambda m, x: F.linear(x, -m.a / 3),
    "a scaled transpose": lambda m, x: x @ (2 * m.a).T,
    "exp": lambda m, x: F.linear(x, m.a.exp()),
    "one over it": lambda m, x: F.linear(x, 1 / (m.a.square() + 1)),
    "softmax": lambda m, x: F.linear(x, m.a.softmax(1)),
    "clamped": lambda m, x: F.linear(x, m.a.clamp(-0.5, 0.5)),
    "unit length": lambda m, x: F.linear(x, m.a / m.a.norm()),
    "unit rows": lambda m, x: F.linear(x, F.normalize(m.a, dim=1)),
    "standardised": lambda m, x: F.linear(x, (m.a - m.a.mean(1, keepdim=True)) / m.a.std(1, keepdim=True)),
    "pruned": lambda m, x: F.linear(x, m.a * m.mask),
    "masked": lambda m, x: F.linear(x, m.a.masked_fill(m.mask == 0, 0.0)),
    "chosen": lambda m, x: F.linear(x, torch.where(m.mask > 0, m.a, m.c)),
    "put together": lambda m, x: F.linear(x, torch.cat([m.a, m.c])),
    "stacked": lambda m, x: F.linear(x, torch.stack([m.b, m.b * 2])),
    "repeated": lambda m, x: F.linear(x, m.b.repeat(3, 1)),
    "spread": lambda m, x: F.linear(x, m.b.expand(3, 5)),
    "picked rows": lambda m, x: F.linear(x, m.a[torch.tensor([2, 0, 2])]),
    "a product of two": lambda m, x: F.linear(x, m.a @ m.s),
    "low rank beside a frozen weight": lambda m, x: F.linear(x, m.mask + m.a[:, :2] @ m.s[:2]),
    "an outer product": lambda m, x: F.linear(x, torch.outer(m.b[:4], m.b)),
    "a Kronecker product": lambda m, x: F.linear(x, torch.kron(m.b[:2].view(2, 1), m.b.view(1, 5))),
    "circulant": lambda m, x: F.linear(x, torch.stack([m.b.roll(i) for i in range(4)])),
    "a matrix exponential": lambda m, x: F.linear(x, torch.matrix_exp(m.s - m.s.T)),
    "an inverse": lambda m, x: F.linear(x, torch.linalg.inv(m.s @ m.s.T + torch.eye(5))),
    "many ways": lambda m, x: F.linear(x, m.s @ m.s @ m.s.T / m.s.square().sum() + m.s.tanh()),
    "two functions of one weight": lambda m, x: F.linear(F.linear(x, m.s.exp()).tanh(), m.s * 3),
    "plain and transformed": lambda m, x: F.linear(F.linear(x, m.s).tanh(), m.s.tanh()),
    "two slices": lambda m, x: F.linear(F.linear(x, m.s[:3]).tanh(), m.s[3:, :3]),
    "a convolution's standardised kernel": lambda m, x: F.conv1d(
        x.unsqueeze(1), F.batch_norm(m.a.view(1, 4, 5), None, None, training=True).view(4, 1, 5)
    ),
    "a table through a layer": lambda m, x: x + F.linear(m.s, m.s.tanh())[:2].mean(0),
    "a temperature": lambda m, x: F.linear(x, m.a) * m.t.exp(),
    "a scale of the sum of squares": lambda m, x: x * m.a.square().sum(),
    "an interpolated table": lambda m, x: (
        x.unsqueeze(2) * F.interpolate(m.a.unsqueeze(0), size=7, mode="linear").sum((0, 1))
    ),
}


def _model(case: str) -> Computing:
    return Computing(FUNCTIONS[case], a=p(4, 5), b=p(5), c=p(4, 5), s=p(5, 5), t=p(), mask=MASK.clone())


def _batch(shape: tuple[int, ...], n: int) -> Tensor:
    return torch.randint(-shape[0], (n, *shape[1:])) if shape[0] < 0 else torch.randn(n, *shape)


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("case", REPARAMETRISED)
def test_reparametrised_layers(case: str, n: int) -> None:
    torch.manual_seed(n)
    make, shape = REPARAMETRISED[case]
    assert_read(make(), _batch(shape, n))


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_of_parameters(case: str, n: int) -> None:
    torch.manual_seed(n)
    assert_read(_model(case), torch.randn(n, 5))


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_of_parameters_with_as_many_rows_as_examples(case: str, n: int) -> None:
    torch.manual_seed(n)
    assert_read(_model(case), torch.randn(n, 5))


def test_large_transformed_weights_are_read_a_few_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reparametrised, "BUFFER_BYTES", 8 * 20 * 3)
    torch.manual_seed(0)
    assert_read(parametrizations.weight_norm(nn.Linear(5, 4)), torch.randn(10, 3, 5))


def test_spectral_norm_in_training_mode() -> None:
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(5, 4)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    loss = layer(x).pow(3).mean()
    tap = GradientTap(layer.named_parameters(), 6)
    with tap(loss):
        loss.backward()
    gradient = sum(parameter.grad.square().sum() for parameter in layer.parameters() if parameter.grad is not None)
    assert tap.sample is not None
    assert tap.sample.gram is not None
    torch.testing.assert_close(tap.sample.gram.mean(), gradient)
