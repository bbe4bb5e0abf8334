"""A residual whose outputs were sketched leads to the same decision as the whole one."""

from __future__ import annotations

import pytest
import torch
from test_spectral_risk import INDEX, RATES, K

from lightning_cx.functional.sketching import sketch_outputs
from lightning_cx.functional.stopping import DominanceTracker, RiskTracker, WhitenessTracker

TIMES = torch.cat([torch.zeros(1), torch.logspace(-1, 3, 80)]).double()


def residuals(outputs: int, seed: int) -> torch.Tensor:
    """Exact dynamics ``[T, K, outputs]``: the target has five patterns over the outputs, the noise has all."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(5, outputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(K, 5, generator=generator, dtype=torch.float64) * (40 * (1 + INDEX) ** -1.5)[:, None]
    start = weights @ patterns + 0.5 * torch.randn(K, outputs, generator=generator, dtype=torch.float64)
    return torch.exp(-RATES * TIMES[:, None])[..., None] * start


@pytest.mark.parametrize("kind", [RiskTracker, DominanceTracker, WhitenessTracker])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_decision_is_that_of_the_whole_residual(kind, seed: int) -> None:
    path = residuals(2000, seed)

    def stop_of(sketched: bool) -> tuple[int, int]:
        tracker = kind()
        for number, coefficients in enumerate(path):
            decision = tracker.check(sketch_outputs(coefficients) if sketched else coefficients)
            if decision.stop:
                return number, decision.best_check
        raise AssertionError("never fired")

    whole, short = stop_of(sketched=False), stop_of(sketched=True)
    assert short[0] == pytest.approx(whole[0], abs=1)
    assert short[1] == pytest.approx(whole[1], abs=1)


def test_energies_survive_and_the_sketch_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 40, 30, 100, generator=generator, dtype=torch.float64)
    ratios = [float(sketch_outputs(one, most=64, seed=seed).square().sum() / one.square().sum()) for seed in range(20)]
    assert sum(ratios) / 20 == pytest.approx(1, abs=0.03)
    together = sketch_outputs(one + 2 * other)
    torch.testing.assert_close(together, sketch_outputs(one) + 2 * sketch_outputs(other))
    basis = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    coefficients = basis.T @ sketch_outputs(one)
    torch.testing.assert_close(coefficients, sketch_outputs(torch.einsum("nk,nab->kab", basis, one)))


def test_few_outputs_are_left_as_they_are() -> None:
    values = torch.randn(10, 3, 4)
    assert torch.equal(sketch_outputs(values), values.reshape(10, 12))
    assert sketch_outputs(values[:, 0, 0]).shape == (10, 1)
    assert sketch_outputs(torch.zeros(0, 5)).shape == (0, 5)
    assert sketch_outputs(values.bfloat16()).dtype is torch.float32


def test_global_random_numbers_are_left_alone_and_a_seed_repeats() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    values = torch.arange(6000.0).view(2, 3000)
    first = sketch_outputs(values, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sketch_outputs(values, seed=4), first)
    assert not torch.equal(sketch_outputs(values, seed=5), first)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="most=0"):
        sketch_outputs(torch.zeros(3, 3), most=0)
    with pytest.raises(ValueError, match="got a single number"):
        sketch_outputs(torch.tensor(1.0))
