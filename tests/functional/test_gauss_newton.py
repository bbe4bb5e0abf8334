"""The Gauss-Newton matrix from Gram matrices has the eigenvalue of the one that is formed from the Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.functional.curvature import gauss_newton

Loss = Callable[[Tensor, Tensor], Tensor]


def network(outputs: int, seed: int) -> tuple[nn.Sequential, Tensor]:
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(rng.standard_normal(p.shape)))
    return net, torch.from_numpy(rng.standard_normal((12, 3)))


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """[n, C, P], one output at a time."""
    rows = []
    for row in x:
        outputs = net(row)
        rows.append([torch.cat([g.flatten() for g in torch.autograd.grad(f, list(net.parameters()), retain_graph=True)])
                     for f in outputs])  # fmt: skip
    return torch.stack([torch.stack(row) for row in rows])


def derivatives(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals [n, C] and Hessians [n, C, C] of each example's own loss, by autograd."""
    first = [
        torch.autograd.functional.jacobian(lambda f, y=y: loss(f, y), f) for f, y in zip(outputs, targets, strict=True)
    ]
    second = [
        torch.autograd.functional.hessian(lambda f, y=y: loss(f, y), f) for f, y in zip(outputs, targets, strict=True)
    ]
    return -torch.stack(list(first)), torch.stack(list(second))


def squared(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).square().sum()


def crossed(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y)


def logistic(f: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(f, y.double().expand(1))


def formed(jac: Tensor, hessian: Tensor) -> Tensor:
    """The P x P matrix itself."""
    return torch.einsum("icp,icd,idq->pq", jac, hessian, jac) / len(jac)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("outputs", "loss"), [(1, squared), (4, squared), (4, crossed), (1, logistic)])
def test_the_eigenvalue_is_that_of_the_matrix_itself(outputs: int, loss: Loss, seed: int) -> None:
    net, x = network(outputs, seed)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 4 if loss is crossed else 2, 12))
    _, hessian = derivatives(loss, net(x).detach(), labels)
    jac = jacobian(net, x)
    flat = jac.reshape(12 * outputs, -1)
    found = gauss_newton(flat @ flat.T, hessian)
    matrix = formed(jac, hessian)
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(found.value, values[-1], rtol=1e-9, atol=0)
    along = torch.einsum("icp,p->ic", jac, vectors[:, -1])
    parts = torch.einsum("ic,icd,id->i", along, hessian, along)
    torch.testing.assert_close(found.standard_error, parts.std() / 12**0.5, rtol=1e-6, atol=0)
    assert found.examples == 12


def test_the_standard_error_is_the_spread_over_fresh_samples() -> None:
    rng = np.random.default_rng(4)
    values, errors = [], []
    for _ in range(300):
        jac = torch.from_numpy(rng.standard_normal((200, 5)) * np.array([3, 1, 1, 0.5, 0.5]))
        found = gauss_newton(jac @ jac.T, torch.ones(200, 1, 1))
        values.append(float(found.value))
        errors.append(float(found.standard_error))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_the_fisher_of_the_same_gradients_is_another_number() -> None:
    """What dividing the Gram matrix of gradients by n would give; small residuals make it small, the curvature not."""
    net, x = network(1, 0)
    flat = jacobian(net, x).reshape(12, -1)
    residuals = 0.01 * torch.from_numpy(np.random.default_rng(0).standard_normal(12))
    gradients = residuals[:, None] * flat
    fisher = torch.linalg.eigvalsh(gradients @ gradients.T)[-1] / 12
    found = gauss_newton(flat @ flat.T, torch.ones(12, 1, 1))
    truth = torch.linalg.eigvalsh(flat @ flat.T)[-1] / 12
    torch.testing.assert_close(found.value, truth)
    assert float(fisher) < 1e-3 * float(truth)


@given(st.integers(0, 100), st.floats(1e-6, 1e6))
def test_it_scales_with_the_loss_and_does_not_see_the_order_of_examples(seed: int, factor: float) -> None:
    net, x = network(2, seed)
    jac = jacobian(net, x)
    hessian = torch.eye(2).double().expand(12, 2, 2)
    flat = jac.reshape(24, -1)
    plain = gauss_newton(flat @ flat.T, hessian)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(12))
    mixed = jac[order].reshape(24, -1)
    other = gauss_newton(mixed @ mixed.T, factor * hessian)
    torch.testing.assert_close(other.value, factor * plain.value)
    torch.testing.assert_close(other.standard_error, factor * plain.standard_error)


def test_a_loss_that_is_concave_somewhere_has_no_gauss_newton_matrix() -> None:
    with pytest.raises(ValueError, match="not convex in its outputs"):
        gauss_newton(torch.eye(2), torch.tensor([1.0, -0.1]).reshape(2, 1, 1))
    with pytest.raises(ValueError, match=r"only rounding is left of its second derivatives \(from -3e-10 to 8e-10\)"):
        gauss_newton(torch.eye(2), torch.tensor([8e-10, -3e-10]).reshape(2, 1, 1))
    rounding = gauss_newton(torch.eye(2), torch.tensor([1.0, -1e-8]).reshape(2, 1, 1))
    assert float(rounding.value) == pytest.approx(0.5)


def test_degenerate_input_gives_nan_zero_or_a_reason() -> None:
    assert math.isnan(gauss_newton(torch.zeros(0, 0), torch.zeros(0, 2, 2)).value)
    assert math.isnan(gauss_newton(torch.full((1, 1), math.inf), torch.ones(1, 1, 1)).value)
    assert "unknown" in str(gauss_newton(torch.eye(1), torch.full((1, 1, 1), math.nan)))
    assert float(gauss_newton(torch.zeros(3, 3), torch.ones(3, 1, 1)).value) == 0
    one = gauss_newton(torch.eye(1), torch.ones(1, 1, 1))
    assert (float(one.value), math.isnan(one.standard_error)) == (1, True)
    with pytest.raises(ValueError, match=r"\[nC, nC\]"):
        gauss_newton(torch.eye(3), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"\[nC, nC\]"):
        gauss_newton(torch.eye(2), torch.ones(2, 1))
