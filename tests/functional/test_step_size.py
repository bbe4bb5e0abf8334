"""Below the edge of stability real optimizers settle on a quadratic, above it they run away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lightning_cx.functional import edge_of_stability, largest_eigenvalue
from lightning_cx.functional.step_size import UnsupportedOptimizerError, step_gain, step_gains

Make = Callable[[Iterable[Any]], Optimizer]
SIZES = (3, 2)  # entries of two parameters
STEPS = 3000

SGDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "a little momentum": {"momentum": 0.3},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "dampening without momentum": {"dampening": 0.5},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"momentum": 0.5, "weight_decay": 3.0},
    "Nesterov and weight decay": {"momentum": 0.7, "nesterov": True, "weight_decay": 3.0},
}


def hessian(seed: int) -> Tensor:
    factor = np.random.default_rng(seed).standard_normal((sum(SIZES), 2 * sum(SIZES)))
    return torch.from_numpy(factor @ factor.T / (2 * sum(SIZES)))


def parameters(seed: int) -> dict[str, nn.Parameter]:
    """Tiny, so that squared gradients change no running mean of squares: the preconditioner is frozen."""
    rng = np.random.default_rng(seed + 100)
    return {f"p{i}": nn.Parameter(1e-30 * torch.from_numpy(rng.standard_normal(n))) for i, n in enumerate(SIZES)}


def grows(optimizer: Optimizer, own: dict[str, nn.Parameter], curvature: Tensor) -> bool:
    """Run a real optimizer on x^T H x / 2 until x is a million times larger or smaller."""
    start = float(torch.cat([p.detach() for p in own.values()]).norm())
    for _ in range(STEPS):
        x = torch.cat([p.detach() for p in own.values()])
        size = float(x.norm())
        if not 1e-6 < size / start < 1e6:
            return size > start
        for p, slope in zip(own.values(), torch.split(curvature @ x, SIZES), strict=True):
            p.grad = slope
        optimizer.step()
    raise AssertionError(f"neither settled nor ran away in {STEPS} steps: {size / start}")


def preconditioned(optimizer: Optimizer, own: dict[str, nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Square roots of the gains, and the decays, of all entries."""
    gain, decay = step_gains(optimizer, own).flat(own)
    return gain.double().sqrt(), decay.double()


def at_ratio(ratio: float, curvature: Tensor, optimizer: Optimizer, own: dict[str, nn.Parameter]) -> Tensor:
    """Scale a Hessian so that the optimizer's ratio on it is the one wanted; decay is curvature that stays."""
    root, decay = preconditioned(optimizer, own)

    def top(factor: float) -> float:
        matrix = root[:, None] * (factor * curvature + decay.diag()) * root
        return float(torch.linalg.eigvalsh(matrix)[-1])

    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if top(middle) < ratio else (low, middle)
    return low * curvature


@pytest.mark.parametrize("options", SGDS.values(), ids=SGDS)
@pytest.mark.parametrize("seed", range(2))
def test_sgd_settles_at_98_percent_and_runs_away_at_102(options: dict[str, Any], seed: int) -> None:
    plain = {key: value for key, value in options.items() if key != "weight_decay"}
    decay = options.get("weight_decay", 0.0)
    for ratio, diverges in ((0.98, False), (1.02, True)):
        own, curvature = parameters(seed), hessian(seed)
        rate = 0.05
        # By the formula alone: lambda_max such that eta (lambda_max + decay) gain / eta is the ratio.
        largest = ratio / step_gain(rate, **plain) - decay
        curvature *= largest / torch.linalg.eigvalsh(curvature)[-1]
        assert float(edge_of_stability(largest, rate, **options)) == pytest.approx(ratio)
        assert grows(SGD(own.values(), lr=rate, **options), own, curvature) is diverges


def after_large_steps(optimizer: Optimizer, own: dict[str, nn.Parameter], seed: int, steps: int = 5) -> Optimizer:
    """Let an optimizer see gradients of size 1 first, so that it has a preconditioner, and then set it at rest."""
    rng = np.random.default_rng(seed + 7)
    start = {name: p.detach().clone() for name, p in own.items()}
    for _ in range(steps):
        for p in own.values():
            p.grad = torch.from_numpy(rng.uniform(0.3, 3, p.shape) * rng.choice([-1, 1], p.shape))
        optimizer.step()
    for name, p in own.items():
        p.data.copy_(start[name])
        for moment in ("exp_avg", "momentum_buffer", "grad_avg"):
            if moment in optimizer.state[p]:
                optimizer.state[p][moment].zero_()
    return optimizer


NEARLY_FROZEN = 1 - 1e-12
"""A memory for squares that outlasts the test; Adam's bias correction is then that of a plain mean."""

ADAPTIVE: dict[str, Make] = {
    "Adam": lambda ps: Adam(ps, lr=0.01, betas=(0.9, NEARLY_FROZEN)),
    "Adam without momentum": lambda ps: Adam(ps, lr=0.01, betas=(0.0, NEARLY_FROZEN)),
    "Adam with L2": lambda ps: Adam(ps, lr=0.01, betas=(0.9, NEARLY_FROZEN), weight_decay=200.0, eps=1e-3),
    "AMSGrad": lambda ps: Adam(ps, lr=0.01, betas=(0.8, NEARLY_FROZEN), amsgrad=True),
    "AdamW": lambda ps: AdamW(ps, lr=0.01, betas=(0.9, NEARLY_FROZEN), weight_decay=20.0),
    "RMSprop": lambda ps: RMSprop(ps, lr=0.01, alpha=NEARLY_FROZEN),
    "RMSprop with momentum": lambda ps: RMSprop(ps, lr=0.01, alpha=NEARLY_FROZEN, momentum=0.9, eps=0.1),
    "centred RMSprop": lambda ps: RMSprop(ps, lr=0.01, alpha=NEARLY_FROZEN, centered=True, weight_decay=1.0),
}


def frozen(name: str, own: dict[str, nn.Parameter], seed: int) -> Optimizer:
    optimizer = after_large_steps(ADAPTIVE[name](own.values()), own, seed)
    for p in own.values():
        state = optimizer.state[p]
        for key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):  # of size 1, as if seen for long
            if key in state:
                state[key].mul_(1e6 if name.startswith("A") else 1e12)
        if "exp_avg_sq" in state:  # a clock so late that both bias corrections stand still
            state["step"].fill_(1e7)
    return optimizer


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_frozen_preconditioner_settles_at_98_percent_and_runs_away_at_102(name: str) -> None:
    for ratio, diverges in ((0.98, False), (1.02, True)):
        own = parameters(1)
        optimizer = frozen(name, own, 1)
        curvature = at_ratio(ratio, hessian(1), optimizer, own)
        assert grows(optimizer, own, curvature) is diverges


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_different_rates_momenta_and_decays_have_one_edge(seed: int) -> None:
    for ratio, diverges in ((0.98, False), (1.02, True)):
        own = parameters(seed)
        groups = [
            {"params": [own["p0"]], "lr": 0.3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
            {"params": [own["p1"]], "lr": 0.02, "momentum": 0.2, "dampening": 0.1},
        ]
        optimizer = SGD(groups)
        assert step_gains(optimizer, own).common is None
        curvature = at_ratio(ratio, hessian(seed), optimizer, own)
        assert grows(optimizer, own, curvature) is diverges


def test_the_preconditioner_is_what_torch_divided_the_gradient_by() -> None:
    """A step from rest, without momentum, is minus the gain times 2 times the gradient."""
    for make in (
        lambda ps: Adam(ps, lr=0.1, betas=(0.0, 0.9), eps=0.01),
        lambda ps: AdamW(ps, lr=0.1, betas=(0.0, 0.9), eps=0.01, amsgrad=True, weight_decay=0.0),
        lambda ps: RMSprop(ps, lr=0.1, alpha=0.9, eps=0.01),
        lambda ps: RMSprop(ps, lr=0.1, alpha=0.9, eps=0.01, centered=True),
    ):
        own = {name: nn.Parameter(torch.zeros_like(p)) for name, p in parameters(0).items()}
        optimizer = after_large_steps(make(own.values()), own, 0)
        before = {name: p.detach().clone() for name, p in own.items()}
        optimizer.step()  # the gradient is still that of the last step
        gains = step_gains(optimizer, own)
        for name, p in own.items():
            torch.testing.assert_close(before[name] - p.detach(), 2 * gains.gain[name] * p.grad, rtol=1e-6, atol=0)


def test_bias_corrections_of_both_moments_count() -> None:
    own = {"p": nn.Parameter(torch.zeros(2))}
    own["p"].grad = torch.tensor([1.0, -3.0])
    optimizer = Adam(own.values(), lr=0.1, betas=(0.9, 0.999), eps=0.0)
    optimizer.step()
    # After one step v_hat = g^2, so P = (1 - .9) |g|, and the threshold on H / |g| is 2 (1.9 / .1) (1 - .9) / eta.
    torch.testing.assert_close(step_gains(optimizer, own).gain["p"], 0.1 / 3.8 / torch.tensor([1.0, 3.0]))


def test_adams_threshold_is_that_of_cohen_et_al() -> None:
    assert float(edge_of_stability(38 / 0.001, 0.001, momentum=0.9, dampening=0.9)) == pytest.approx(1)


def test_the_thresholds_of_momentum_are_those_of_the_papers() -> None:
    for mu in (0.0, 0.5, 0.9, 0.99):
        assert 1 / step_gain(0.1, momentum=mu) == pytest.approx(2 * (1 + mu) / 0.1)
        assert 1 / step_gain(0.1, momentum=mu, nesterov=True) == pytest.approx(2 * (1 + mu) / ((1 + 2 * mu) * 0.1))


@given(st.floats(0, 0.99), st.floats(1e-3, 10), st.booleans(), st.floats(0, 1))
def test_at_the_edge_a_root_of_the_recurrence_is_minus_one(mu: float, rate: float, ahead: bool, shrink: float) -> None:
    h = 1 / step_gain(rate, momentum=mu, nesterov=ahead, shrinkage=shrink)
    # State (momentum, x): m' = mu m + h x, x' = (1 - shrink) x - rate (m', or h x + mu m').
    turned = rate * (h * (1 + mu) if ahead else h)
    step = np.array([[mu, h], [-rate * mu * (mu if ahead else 1), 1 - shrink - turned]])
    assert np.min(np.abs(np.linalg.eigvals(step) + 1)) < 1e-6
    assert np.max(np.abs(np.linalg.eigvals(step))) < 1 + 1e-6


@pytest.mark.parametrize(("make", "needed"), [(Adam, 100), (lambda ps: RMSprop(ps, momentum=0.5), 20), (RMSprop, 10)])
def test_a_young_preconditioner_says_that_it_still_moves(make: Any, needed: int) -> None:
    own = {"p": nn.Parameter(torch.zeros(2))}
    optimizer = make(own.values())
    for made in range(1, needed + 1):
        own["p"].grad = torch.ones(2)
        optimizer.step()
        forming = step_gains(optimizer, own).forming
        assert forming.endswith(f"has made {made} of {needed} steps after which its preconditioner changes slowly") or (
            made == needed and not forming
        )
    assert not step_gains(SGD(own.values(), lr=0.1), own).forming


def test_what_no_optimizer_moves_has_no_gain() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    own = dict(net.named_parameters())
    gains = step_gains(SGD(net[0].parameters(), lr=0.1), own)
    assert [float(g) for g in gains.gain.values()] == [0.05, 0.05, 0, 0]
    adam = Adam(net.parameters(), lr=0.1)
    net[0](torch.ones(1, 2)).sum().backward()
    adam.step()
    gains = step_gains(adam, own)
    assert gains.gain["0.weight"].shape == (3, 2)
    assert float(gains.gain["1.weight"]) == 0


def test_one_group_of_sgd_has_one_gain_and_flat_follows_the_order_of_the_parameters() -> None:
    net = nn.Linear(2, 1)
    own = dict(net.named_parameters())
    gains = step_gains(SGD(own.values(), lr=0.1, weight_decay=0.01), own)
    assert gains.common == (0.05, 0.01)
    groups = [{"params": [net.bias], "lr": 0.4, "weight_decay": 0.0}, {"params": [net.weight]}]
    gain, decay = step_gains(SGD(groups, lr=0.1, weight_decay=0.01), own).flat(own)
    torch.testing.assert_close(gain.double(), torch.tensor([0.05, 0.05, 0.2], dtype=torch.float64))
    torch.testing.assert_close(decay.double(), torch.tensor([0.01, 0.01, 0.0], dtype=torch.float64))


def test_the_ratio_of_unlike_entries_comes_from_the_preconditioned_products() -> None:
    own = parameters(3)
    optimizer = after_large_steps(Adam(own.values(), lr=0.01), own, 3)
    gain, _ = step_gains(optimizer, own).flat(own)
    curvature = hessian(3)
    leading = largest_eigenvalue(lambda v: curvature @ v, sum(SIZES), scale=gain, tolerance=1e-10)
    root = gain.double().sqrt()
    expected = torch.linalg.eigvalsh(root[:, None] * curvature * root)[-1]
    torch.testing.assert_close(leading.value, expected)


def test_a_learning_rate_may_be_a_tensor() -> None:
    own = {"p": nn.Parameter(torch.zeros(2))}
    assert float(step_gains(SGD(own.values(), lr=torch.tensor(0.5)), own).gain["p"]) == 0.25


class Own(SGD):
    """Derived, and so free to step otherwise."""


@pytest.mark.parametrize(
    "make",
    [torch.optim.Rprop, torch.optim.LBFGS, torch.optim.NAdam, torch.optim.Adagrad, Own],
    ids=lambda m: m.__name__,
)
def test_other_optimizers_are_refused_by_name(make: Any) -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(UnsupportedOptimizerError, match=f"for SGD, Adam, AdamW, RMSprop, not for {make.__name__}"):
        step_gains(make(net.parameters(), lr=0.1), dict(net.named_parameters()))


def test_what_has_no_edge_is_refused() -> None:
    net = nn.Linear(2, 1)
    own = dict(net.named_parameters())
    with pytest.raises(UnsupportedOptimizerError, match="Adam has made no step yet"):
        step_gains(Adam(own.values()), own)
    with pytest.raises(UnsupportedOptimizerError, match="it maximises"):
        step_gains(SGD(own.values(), lr=0.1, maximize=True), own)
    with pytest.raises(UnsupportedOptimizerError, match="momentum from 0 to below 1"):
        step_gains(SGD(own.values(), lr=0.1, momentum=1.0), own)
    wave = {"p": nn.Parameter(torch.zeros(2, dtype=torch.complex64))}
    with pytest.raises(UnsupportedOptimizerError, match="p is complex"):
        step_gains(SGD(wave.values(), lr=0.1), wave)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"dampening": 1.5}, {"shrinkage": 2.0}])
def test_numbers_of_no_optimizer_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps shrink only with"):
        step_gain(0.1, **wrong)
    with pytest.raises(ValueError, match="steps shrink only with"):
        step_gain(-0.1)


def test_edges_of_many_and_of_none() -> None:
    found = edge_of_stability([10.0, 20.0, math.nan, -10.0], 0.1)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, math.nan, -0.5], dtype=torch.float64), equal_nan=True)
    assert edge_of_stability(np.zeros(0), 0.1).shape == (0,)
    assert edge_of_stability(torch.tensor(20.0), 0.1).dtype == torch.float64
    assert math.isinf(edge_of_stability(math.inf, 0.1))
