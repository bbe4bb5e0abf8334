"""The stopping rule on arrays: exact dynamics have known answers, and the numbers are the plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import spectral_risk
from lightning_cx.functional.stopping import noise_floor, target_is_ordered
from lightning_cx.functional.stopping.spectral_risk import RiskTracker

K = 256
INDEX = torch.arange(K, dtype=torch.float64)
RATES = (1 + INDEX) ** -1.5  # simple functions are learned first
TIMES = torch.cat([torch.zeros(1), torch.logspace(-2, math.log10(5 / float(RATES[-1])), 399)]).double()

SMOOTH = 8 * (1 + INDEX) ** -2
ROUGH = torch.where(INDEX < K // 2, 1.5, 0.0).double()
NOTHING = torch.zeros(K, dtype=torch.float64)


def exact_dynamics(target: Tensor, sigma: float, seed: int, rates: Tensor = RATES) -> tuple[Tensor, Tensor]:
    """Residuals ``[T, K]`` of linear dynamics, and the true squared error against the noiseless target ``[T]``."""
    noise = sigma * torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    residuals = torch.exp(-rates * TIMES[:, None]) * (target + noise)
    return residuals, (residuals - noise).square().mean(1)


FEW, MANY = range(8, 16), range(40)  # among the first eight, one path alone lifts the mean of so few over any limit
SEEDS = pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])


@SEEDS
@pytest.mark.parametrize(("target", "limit"), [(SMOOTH, 1.35), (ROUGH, 1.15)], ids=["smooth", "rough"])
def test_a_noisy_target_is_left_near_the_least_error_and_always_in_time(
    target: Tensor, limit: float, seeds: range
) -> None:
    ratios = []
    for seed in seeds:
        residuals, error = exact_dynamics(target, 0.5, seed)
        curve = spectral_risk(residuals)
        assert curve.stop_check is not None
        assert curve.best_check < curve.stop_check
        ratios.append(float(error[curve.best_check] / error.min()))
    assert np.mean(ratios) < limit


def test_a_clean_target_loses_nothing() -> None:
    residuals, error = exact_dynamics(SMOOTH, 0.0, 0)
    curve = spectral_risk(residuals)
    assert float(error[curve.best_check] - error.min()) < 1e-4 * float(error[0])


@SEEDS
def test_labels_that_are_nothing_but_noise_are_hardly_fitted(seeds: range) -> None:
    for seed in seeds:
        residuals, error = exact_dynamics(NOTHING, 0.5, seed)
        assert float(error[spectral_risk(residuals).best_check]) < 0.05 * 0.25


def test_risk_error_and_stop_are_those_of_the_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(64, 3, generator=generator, dtype=torch.float64) * (1 + torch.arange(64.0))[:, None] ** -0.5
    shrink = torch.rand(30, 64, 1, generator=generator, dtype=torch.float64)
    path = torch.cat([start[None], start * torch.cumprod(0.7 + 0.3 * shrink, 0)])
    curve = spectral_risk(path, sigma2=0.04, z=1.0, patience=2, min_checks=4)
    bands = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    best, best_risk, in_a_row, stop, best_fitted = 0, math.inf, 0, None, []
    for t, a in enumerate(path):
        fitted = [1 - float((a[i:j] * start[i:j]).sum() / start[i:j].square().sum()) for i, j in bands]
        spent = sum((j - i) * s for (i, j), s in zip(bands, fitted, strict=True))
        risk = (float(a.square().sum()) + 2 * 0.04 * spent) / 64
        assert float(curve.risk[t]) == pytest.approx(risk)
        if risk < best_risk:
            best_check_risk = (t, risk, fitted)
            if stop is None:
                best, best_risk, best_fitted, in_a_row = *best_check_risk, 0
            continue
        changes = [(1 - u) ** 2 - (1 - v) ** 2 for u, v in zip(best_fitted, fitted, strict=True)]
        variance = sum(2 * 2 * (j - i) * 0.02**2 * g * g for (i, j), g in zip(bands, changes, strict=True))
        assert float(curve.standard_error[t]) == pytest.approx(math.sqrt(variance) / 64)
        in_a_row = in_a_row + 1 if risk - best_risk > math.sqrt(variance) / 64 and t >= 4 else 0
        if in_a_row >= 2 and stop is None:
            stop = t
    assert stop is not None
    assert (curve.stop_check, curve.best_check) == (stop, best)


def test_check_by_check_is_the_same_as_all_at_once() -> None:
    residuals, _ = exact_dynamics(SMOOTH, 0.5, 1)
    curve, tracker = spectral_risk(residuals), RiskTracker()
    for number, coefficients in enumerate(residuals):
        decision = tracker.check(coefficients[:, None])
        assert decision.value == float(curve.risk[number])
        if decision.stop:
            break
    assert (number, decision.best_check, tracker.sigma2) == (curve.stop_check, curve.best_check, curve.sigma2)
    assert decision.reason == curve.reason
    assert "standard errors above that of check" in decision.reason
    assert str(decision).startswith("stop: the estimated risk")


def test_memory_does_not_grow_with_the_run() -> None:
    residuals, _ = exact_dynamics(SMOOTH, 0.5, 1)

    def size(tracker: RiskTracker) -> int:
        return sum(value.numel() for value in vars(tracker).values() if isinstance(value, Tensor))

    tracker = RiskTracker()
    tracker.check(residuals[0])
    tracker.check(residuals[1])
    early = size(tracker)
    for coefficients in residuals[2:]:
        tracker.check(coefficients)
    assert size(tracker) == early


def test_units_and_a_rotation_of_the_outputs_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    target = SMOOTH[:, None] * torch.randn(1, 4, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(K, 4, generator=generator, dtype=torch.float64)
    residuals = torch.exp(-RATES * TIMES[:, None])[..., None] * (target + noise)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    plain = spectral_risk(residuals)
    for other, unit in ((residuals @ rotation, 1.0), (residuals * 1e4, 1e8), (-residuals, 1.0)):
        curve = spectral_risk(other)
        assert (curve.stop_check, curve.best_check) == (plain.stop_check, plain.best_check)
        torch.testing.assert_close(curve.risk, plain.risk * unit)


def test_patience_least_checks_and_doubling_put_the_stop_off() -> None:
    residuals, _ = exact_dynamics(SMOOTH, 0.5, 2)

    def stop_of(**options: float) -> tuple[int, int]:
        tracker = RiskTracker(**options)  # type: ignore[arg-type]
        for number, coefficients in enumerate(residuals):
            decision = tracker.check(coefficients)
            if decision.stop:
                return number, decision.best_check
        raise AssertionError("never fired")

    stop, best = stop_of()
    assert stop_of(patience=8) == (stop + 5, best)
    assert stop_of(min_checks=stop + 20) == (stop + 22, best)
    assert stop_of(doubling=True) == (max(stop, 2 * best), best)
    assert stop_of(z=5.0)[0] > stop


def test_a_check_that_is_not_finite_is_passed_over() -> None:
    residuals, _ = exact_dynamics(SMOOTH, 0.5, 2)
    tracker = RiskTracker()
    tracker.check(residuals[0])
    decision = tracker.check(torch.full((K,), math.nan))
    assert not decision.stop
    assert math.isnan(decision.value)
    assert decision.reason == "the residual is not finite"
    assert tracker.check(residuals[5]).best_check == 2  # it counts as a check


def test_a_first_residual_without_noise_floor_never_stops() -> None:
    curve = spectral_risk(torch.full((20, 64), math.inf))
    assert curve.stop_check is None
    assert curve.risk.isnan().all()


def test_wrong_arguments_raise() -> None:
    for shape in ((5,), (0, 4), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match="coefficients are"):
            spectral_risk(torch.zeros(shape))
    tracker = RiskTracker()
    tracker.check(torch.ones(8, 2))
    with pytest.raises(ValueError, match=r"\[8, 3\], where the first check had \[8, 2\]"):
        tracker.check(torch.ones(8, 3))
    for options in ({"sigma2": -1.0}, {"z": -0.1}, {"patience": 0}, {"min_checks": -1}):
        with pytest.raises(ValueError, match="got"):
            RiskTracker(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", [1, 5])
def test_the_noise_floor_is_the_noise(outputs: int) -> None:
    found = []
    for seed in range(60):
        noise = 0.5 * torch.randn(512, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noise[:12] += 5
        found.append(noise_floor(noise))
    values = np.array([floor.sigma2 for floor in found]) / (0.25 * outputs)
    assert np.mean(values) == pytest.approx(1, abs=0.03)
    spread = np.mean([floor.spread for floor in found]) * math.sqrt(max(outputs - 1, 1) / outputs)
    assert np.std(values) == pytest.approx(spread, rel=0.35)
    assert all(floor.cut >= 8 for floor in found)


def test_the_gate_opens_for_targets_that_the_basis_orders_and_for_no_others() -> None:
    draw = torch.Generator().manual_seed(0)
    for seed in range(50):
        residuals, _ = exact_dynamics(4 * SMOOTH, 0.5, seed)
        assert target_is_ordered(residuals[0])[0]
        another_basis = torch.linalg.qr(torch.randn(K, K, generator=draw, dtype=torch.float64)).Q
        assert not target_is_ordered(another_basis @ residuals[0])[0]


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.ones(3), torch.full((64,), math.nan)])
def test_without_enough_to_go_on_there_is_no_floor_and_no_order(bad: Tensor) -> None:
    assert math.isnan(noise_floor(bad).sigma2)
    ordered, p = target_is_ordered(bad)
    assert not ordered
    assert math.isnan(p)
    with pytest.raises(ValueError, match="got shape"):
        noise_floor(torch.zeros(2, 2, 2))


def test_a_target_of_zeros_has_a_floor_of_zero() -> None:
    assert noise_floor(torch.zeros(64)).sigma2 == 0
    assert target_is_ordered(torch.zeros(64)) == (False, 1.0)
    assert spectral_risk(torch.zeros(5, 64)).stop_check is None
