"""The median of a spectrum: known answers, a slow oracle, invariances, degenerate input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import (
    cosine_basis,
    energy_spectrum,
    fourier_basis,
    median_complexity,
    median_index,
    octave_bands,
)
from lightning_cx.functional.complexity.basis import band_energies, merge_levels
from lightning_cx.functional.complexity.spectrum import low_weights

spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=12).filter(any)


def close(actual: Tensor, expected: object, atol: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, equal_nan=True)


def median_by_walking_along_the_axis(energies: list[float]) -> float:
    """The definition in words: pour out half of the energy, cell by cell, then look across the plateau."""
    left = sum(energies) / 2
    holders = [k for k, energy in enumerate(energies) if energy > 1e-12 * sum(energies)]
    for k, energy in enumerate(energies):
        if abs(energy - left) <= 1e-12 * sum(energies):
            return (k + next(above for above in holders if above > k)) / 2
        if energy > left:
            return k - 0.5 + left / energy
        left -= energy
    raise AssertionError("half of the energy is never reached")


@pytest.mark.parametrize(
    ("energy", "index"),
    [
        ([0.0, 0.0, 0.0, 1.0, 0.0], 3.0),
        ([1.0] * 7, 3.0),
        ([1.0] * 8, 3.5),
        ([0.9, 0.1], -0.5 + 0.5 / 0.9),
        ([0.1, 0.2, 0.3, 0.4], 13 / 6),
        ([0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3.0),
        ([2.0**-k for k in range(1, 60)], 0.5),
        ([0.0, 0.0], math.nan),
    ],
)
def test_median_index_of_the_theory(energy, index):
    close(median_index(torch.tensor(energy, dtype=torch.float64)), index)


@pytest.mark.parametrize(
    ("energy", "complexity", "median"),
    [
        ([0.0, 0.0, 1.0, 0.0], [0.0, 1.5, 2.5, 7.0], 2.5),
        ([0.9, 0.1], [0.0, 1.0], -0.5 + 0.5 / 0.9),
        ([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 4.0, 9.0], 29 / 6),
        ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 2.0], 1.0),
        ([0.4, 0.3, 0.3, 0.0], [0.0, 1.0, 1.0, 2.0], 2 / 3),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0], math.nan),
    ],
)
def test_median_complexity_of_the_theory(energy, complexity, median):
    energy, complexity = (torch.tensor(values, dtype=torch.float64) for values in (energy, complexity))
    close(median_complexity(energy, complexity), median)


@pytest.mark.parametrize("frequency", [1, 2, 5, 15, 31])
def test_a_cosine_on_a_regular_grid_is_as_complex_as_its_frequency(frequency):
    x = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    basis = cosine_basis(x)
    energy = energy_spectrum(basis, torch.cos(2 * math.pi * frequency * x))
    close(median_complexity(energy, basis.complexity), frequency)


def test_median_complexity_stays_at_the_first_level_where_the_median_lies_before_it():
    close(median_complexity(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])), 3.0)
    close(median_complexity(torch.tensor([9.0, 1e-3]), torch.tensor([3.0, 4.0])), 3.0 + 0.5 / 9 * 1e-3, atol=1e-3)


@given(spectra)
def test_median_index_agrees_with_walking_along_the_axis(energies):
    close(median_index(torch.tensor(energies, dtype=torch.float64)), median_by_walking_along_the_axis(energies))


@given(spectra, st.floats(1e-250, 1e250))
def test_median_index_does_not_depend_on_the_scale(energies, scale):
    energy = torch.tensor(energies, dtype=torch.float64)
    close(median_index(energy * scale), median_index(energy))


@given(spectra)
def test_reflecting_the_spectrum_reflects_the_median(energies):
    energy = torch.tensor(energies, dtype=torch.float64)
    close(median_index(energy.flip(0)), len(energies) - 1 - median_index(energy))


@given(spectra)
def test_low_weights_hold_half_of_the_energy(energies):
    energy = torch.tensor(energies, dtype=torch.float64)
    weights = low_weights(energy)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights.diff() <= 0).all()
    close((weights * energy).sum() / energy.sum(), 0.5, atol=2e-12)


@given(st.floats(0, 2 * math.pi), st.integers(1, 7))
@settings(max_examples=30)
def test_turning_a_wave_inside_its_level_changes_nothing(phase, frequency):
    basis = fourier_basis(16)
    angle = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    energy = energy_spectrum(basis, torch.cos(frequency * angle + phase))
    close(median_complexity(energy, basis.complexity), frequency)


def test_rows_of_a_batch_do_not_see_each_other():
    energy = torch.rand(5, 3, 9, generator=torch.Generator().manual_seed(0))
    energy[0, 0], energy[1, 1, 4] = 0.0, torch.nan
    complexity = torch.arange(9.0) ** 2
    for function in (median_index, low_weights, lambda row: median_complexity(row, complexity)):
        one_by_one = torch.stack([torch.stack([function(row) for row in rows]) for rows in energy])
        torch.testing.assert_close(function(energy), one_by_one, rtol=0, atol=0, equal_nan=True)
    assert median_index(energy).isnan().sum() == 2


@pytest.mark.parametrize("energy", [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [-1.0, -1.0], [-3.0, 1.0], []])
def test_energies_without_a_median_give_nan(energy):
    energy = torch.tensor(energy)
    assert median_index(energy).isnan()
    assert low_weights(energy).isnan().all()
    assert median_complexity(energy, torch.arange(float(len(energy)))).isnan()


def test_one_level_has_its_median_in_the_middle():
    close(median_index(torch.tensor([7.0])), 0.0)


def test_the_largest_and_smallest_numbers_have_a_median():
    close(median_index(torch.full((4,), 1e308, dtype=torch.float64)), 1.5)
    close(median_index(torch.full((4,), 1e-320, dtype=torch.float64)), 1.5)


def test_rounding_does_not_choose_the_side_of_a_plateau():
    close(median_index(torch.tensor([0.5 - 1e-14, 0.0, 0.5 + 1e-14], dtype=torch.float64)), 1.0)
    close(median_index(torch.tensor([0.5 + 1e-14, 1e-15, 0.5 - 1e-14], dtype=torch.float64)), 1.0)


def test_energies_of_several_outputs_add_up_to_the_squared_norm():
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    energy = energy_spectrum(cosine_basis(12), values)
    close(energy.sum(), values.double().square().sum(), atol=1e-12)
    separately = sum(energy_spectrum(cosine_basis(12), column) for column in values.T)
    torch.testing.assert_close(energy, separately)


def test_energy_spectrum_wants_one_row_per_example():
    with pytest.raises(ValueError, match=r"basis lives on 4 examples.*\[3, 2\]"):
        energy_spectrum(cosine_basis(4), torch.zeros(3, 2))


def test_merging_adds_energies_and_averages_complexities_within_the_tolerance():
    energy = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
    complexity = torch.tensor([0.0, 1.0, 1.0 + 4e-7, 2.0], dtype=torch.float64)
    merged, levels = merge_levels(energy, complexity, tol=1e-6)
    close(merged, [[1.0, 5.0, 4.0], [0.0, 1.0, 1.0]])
    close(levels, [0.0, 1.0 + 2e-7, 2.0], atol=1e-15)
    assert merge_levels(energy, complexity)[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("complexity", "message"), [([1.0, 0.0], "ascending"), ([0.0, math.nan], "finite"), ([0.0], "one complexity")]
)
def test_merging_refuses_an_axis_out_of_order(complexity, message):
    with pytest.raises(ValueError, match=message):
        merge_levels(torch.ones(2), torch.tensor(complexity))


@given(st.integers(0, 300))
def test_octaves_cover_every_level_once_and_double_in_width(levels):
    bands = octave_bands(levels)
    assert [k for start, stop in bands for k in range(start, stop)] == list(range(levels))
    assert all(start in (0, 1) or start == 2 * bands[i - 1][0] for i, (start, _) in enumerate(bands))
    energy = torch.rand(2, levels, dtype=torch.float64)
    torch.testing.assert_close(band_energies(energy, bands).sum(-1), energy.sum(-1))


def test_bands_outside_the_spectrum_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\) reaches outside the 3 levels"):
        band_energies(torch.ones(3), [(0, 2), (2, 4)])
    with pytest.raises(ValueError, match="negative"):
        octave_bands(-1)
