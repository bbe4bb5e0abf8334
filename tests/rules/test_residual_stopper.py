"""A rule in a plain loop: what a stopper refuses, remembers and shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_cx.functional import laplacian_basis
from lightning_cx.functional.stopping import noise_floor
from lightning_cx.instruments import quantities
from lightning_cx.probe import ProbeReading
from lightning_cx.rules import HighComplexityDominance, RefusedError, ResidualStopper, ResidualWhiteness, SpectralRisk

STEPS = [0, *np.unique(np.geomspace(1, 20000, 90).astype(int)).tolist()]


def readings(seed: int = 0, outputs: int = 1, n: int = 256, noise: float = 0.5) -> list[ProbeReading]:
    """Exact linear dynamics on a line, seen at `STEPS`; functions are those of the graph of the features."""
    draw = np.random.default_rng(seed)
    features = torch.tensor(np.sort(draw.uniform(-1, 1, (n, 1)), axis=0))
    basis = laplacian_basis(features)
    target = torch.sin(4 * features) @ torch.ones(1, outputs, dtype=torch.float64)
    start = target + noise * torch.tensor(draw.normal(size=(n, outputs)))
    rates = 1 / (1 + torch.arange(n, dtype=torch.float64)[:, None])
    coefficients = basis.vectors.T @ start
    left = [basis.vectors @ (coefficients * torch.exp(-rates * step)) for step in STEPS]
    return [ProbeReading(start - residual, residual, features) for residual in left]


def follow(stopper: ResidualStopper, path: list[ProbeReading], start: int = 0) -> int | None:
    for number in range(start, len(path)):
        if stopper.check(STEPS[number], path[number]).stop:
            stopper.mark_stop(STEPS[number])
            return STEPS[number]
    return None


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_kept_step_is_close_to_the_best_one(outputs: int, seed: int) -> None:
    path, stopper = readings(seed, outputs), ResidualStopper(SpectralRisk())
    truth = torch.sin(4 * path[0].features)
    errors = {step: float((reading.outputs - truth).square().mean()) for step, reading in zip(STEPS, path, strict=True)}
    stopped = follow(stopper, path)
    assert stopped is not None
    assert stopper.best_step is not None
    assert errors[stopper.best_step] < 1.5 * min(errors.values())
    assert errors[STEPS[-1]] > 4 * min(errors.values())


@pytest.mark.parametrize("rule", [HighComplexityDominance, ResidualWhiteness])
def test_simple_rules_stop_as_well(rule: type) -> None:
    stopper = ResidualStopper(rule())
    assert follow(stopper, readings(1)) is not None


def test_what_it_shows_is_what_functions_say() -> None:
    path, stopper = readings(2), ResidualStopper(SpectralRisk())
    stopped = follow(stopper, path)
    reading = stopper.reading()
    basis = laplacian_basis(path[0].features)
    first = basis.vectors.T @ path[0].residuals
    assert stopper.order == "smooth along neighbours" or stopper.order == "smooth in the features"
    if stopper.order == "smooth along neighbours":
        assert reading.scalars[quantities.STOPPING_NOISE_FLOOR] == pytest.approx(noise_floor(first).sigma2)
    assert reading.scalars[quantities.STOPPING_NOISE_FLOOR] == pytest.approx(0.25, rel=0.3)
    assert 0 < reading.scalars[quantities.STOPPING_FITTED_HIGH] < 1
    assert 0.5 < reading.scalars[quantities.STOPPING_DOMINANCE] <= 1
    picture = reading.pictures[quantities.STOPPING_CURVE]
    assert (picture.kept, picture.stopped) == (stopper.best_step, stopped)  # type: ignore[union-attr]
    low, risk, high = (
        reading.scalars[tag]
        for tag in (quantities.STOPPING_RISK_LOW, quantities.STOPPING_RISK, quantities.STOPPING_RISK_HIGH)
    )
    assert low < risk < high
    assert risk > 0.25  # nothing gets below the noise


def test_the_order_of_the_examples_does_not_matter() -> None:
    path = readings(3)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    moved = [ProbeReading(r.outputs[order], r.residuals[order], r.features[order]) for r in path]
    one, other = ResidualStopper(SpectralRisk()), ResidualStopper(SpectralRisk())
    assert follow(one, path) == follow(other, moved)
    assert one.best_step == other.best_step


@pytest.mark.parametrize("rule", [SpectralRisk, HighComplexityDominance, ResidualWhiteness])
@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_resumed_watch_stops_at_the_same_step(rule: type, cut: int) -> None:
    path, whole, before, after = readings(4), ResidualStopper(rule()), ResidualStopper(rule()), ResidualStopper(rule())
    stopped = follow(whole, path)
    for number in range(cut):
        if before.check(STEPS[number], path[number]).stop:
            return  # stopped before the cut
    after.load_state_dict(before.state_dict())
    assert follow(after, path, cut) == stopped
    assert after.best_step == whole.best_step
    assert (
        after.reading().pictures[quantities.STOPPING_CURVE].steps
        == whole.reading().pictures[quantities.STOPPING_CURVE].steps
    )  # type: ignore[union-attr]


def test_the_picture_of_a_very_long_run_stays_small() -> None:
    stopper = ResidualStopper(SpectralRisk(patience=10**9))
    first, later = readings(5, n=128)[:2]
    stopper.check(0, first)
    for step in range(1, 2600):
        stopper.check(step, later)
    picture = stopper.reading().pictures[quantities.STOPPING_CURVE]
    assert 500 < len(picture.steps) <= 1024  # type: ignore[union-attr]
    assert len(stopper.state_dict()["record"]["points"]["cells"]) <= 1024


def test_refusals_name_the_reason_and_what_to_do() -> None:
    path = readings(0)
    few = ProbeReading(path[0].outputs[:100], path[0].residuals[:100], path[0].features[:100])
    noise = torch.tensor(np.random.default_rng(0).normal(size=(256, 1)))
    white = ProbeReading(noise, noise, path[0].features)
    broken = ProbeReading(noise, noise * math.nan, path[0].features)
    for reading, words in ((few, "128 are needed"), (white, r"ProbeSet\(features=...\)"), (broken, "not finite")):
        stopper = ResidualStopper(SpectralRisk())
        with pytest.raises(RefusedError, match=words):
            stopper.check(0, reading)
        assert not stopper.begun
        assert stopper.reading().scalars == {}


def test_a_residual_that_becomes_nan_is_passed_over() -> None:
    path, stopper = readings(6), ResidualStopper(SpectralRisk())
    stopped = follow(ResidualStopper(SpectralRisk()), path)
    for number in range(10):
        stopper.check(STEPS[number], path[number])
    decision = stopper.check(STEPS[9], ProbeReading(path[0].outputs, path[0].residuals * math.nan, path[0].features))
    assert not decision.stop
    assert math.isnan(decision.value)
    assert follow(stopper, path, 10) == stopped
