"""Whiteness: a residual of noise is called white as often as it should be, and structure is not."""

import math

import pytest
import torch
from scipy.stats import kstwobign

from lightning_cx.functional import laplacian_basis
from lightning_cx.functional.complexity import whiteness
from lightning_cx.functional.complexity.residuals import KOLMOGOROV_95, independent_outputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_limit_is_the_95_percent_point_of_kolmogorov():
    assert pytest.approx(float(kstwobign.ppf(0.95)), abs=1e-4) == KOLMOGOROV_95


@pytest.mark.parametrize(("outputs", "mixed"), [(1, False), (10, False), (10, True)])
def test_white_noise_passes_its_limit_in_about_five_percent_of_all_cases(outputs, mixed):
    draw = generator()
    basis = laplacian_basis(torch.randn(128, 4, generator=draw, dtype=torch.float64))
    mixing = (
        torch.randn(outputs, outputs, generator=draw, dtype=torch.float64) if mixed else torch.eye(outputs).double()
    )
    beyond = 0
    for _ in range(400):
        noise = torch.randn(128, outputs, generator=draw, dtype=torch.float64) @ mixing
        energy = (basis.vectors[:, 1:].T @ noise).square().sum(1)
        found = whiteness(energy, torch.ones(127), float(independent_outputs(noise)))
        beyond += bool(found.ratio > 1)
    assert 0.01 < beyond / 400 < 0.08


def test_structure_is_not_white_and_the_side_is_named():
    level = torch.arange(1, 101).double()
    assert "simple side" in str(whiteness(1 / level, torch.ones(100)))
    assert "complex side" in str(whiteness(level, torch.ones(100)))
    assert float(whiteness(level, torch.ones(100)).distance) == pytest.approx(0.25, abs=0.005)


def test_levels_of_several_functions_count_as_such():
    flat = whiteness(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 4]))
    assert float(flat.distance) == pytest.approx(0, abs=1e-12)
    uneven = whiteness(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 1, 1]))
    assert float(uneven.distance) == pytest.approx(2 / 3 - 3 / 7)
    assert not bool(uneven.excess_is_low)


def test_scale_does_not_matter():
    energy = torch.rand(50, generator=generator(), dtype=torch.float64)
    assert float(whiteness(1e12 * energy, torch.ones(50)).distance) == pytest.approx(
        float(whiteness(energy, torch.ones(50)).distance)
    )


@pytest.mark.parametrize(
    "energy", [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [1.0], []], ids=["zero", "nan", "inf", "one", "none"]
)
def test_without_energies_to_compare_it_is_unknown(energy):
    found = whiteness(torch.tensor(energy), torch.ones(len(energy)))
    assert math.isnan(found.distance)
    assert math.isnan(found.ratio)
    assert "unknown" in str(found)


def test_each_level_needs_a_size():
    with pytest.raises(ValueError, match=r"got \[3\] and \[2\]"):
        whiteness(torch.ones(3), torch.ones(2))


def test_outputs_are_counted_by_their_covariance():
    noise = torch.randn(20_000, 4, generator=generator(), dtype=torch.float64)
    assert float(independent_outputs(noise)) == pytest.approx(4, rel=0.01)
    assert float(independent_outputs(noise[:, :1].expand(-1, 4))) == pytest.approx(1)
    assert math.isnan(independent_outputs(torch.ones(5, 3)))
    assert math.isnan(independent_outputs(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))
