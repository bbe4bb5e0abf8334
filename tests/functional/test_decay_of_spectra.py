"""Condition (a): planted power laws, their noise, and spectra that parameters share or do not."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import decay_exponent, fourier_basis
from lightning_cx.functional.complexity.spectrum import decay_similarity, decay_sums, similarity_of_sums, theil_sen

FREQUENCY = torch.arange(512, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power_law(p: float, frequency: Tensor = FREQUENCY) -> Tensor:
    return frequency.clamp_min(0.5) ** -p


def chi_squared(shape: tuple[int, ...], degrees: int, seed: int) -> Tensor:
    """Energies of ``degrees`` independent Gaussian functions, mean 1."""
    return torch.randn(degrees, *shape, dtype=torch.float64, generator=generator(seed)).square().mean(0)


# Exponent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [-1.0, 0.0, 0.5, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("count", [30, 64, 512])
def test_a_power_law_returns_its_exponent_exactly(p, count):
    frequency = FREQUENCY[:count]
    assert float(decay_exponent(power_law(p, frequency), frequency)) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(10))
def test_a_noisy_power_law_returns_its_exponent(p, seed):
    energy = power_law(p) * chi_squared((512,), degrees=2, seed=seed)
    assert float(decay_exponent(energy, FREQUENCY)) == pytest.approx(p, abs=0.15)


@pytest.mark.parametrize(("degrees", "error"), [(1, 0.1), (4, 0.05)])
def test_noise_does_not_pull_the_exponent_to_one_side(degrees, error):
    draws = [chi_squared((512,), degrees, seed) * power_law(1.5) for seed in range(100)]
    errors = torch.stack([decay_exponent(energy, FREQUENCY) for energy in draws]) - 1.5
    assert float(errors.square().mean().sqrt()) < error
    assert abs(float(errors.mean())) < 0.03


def test_waves_and_levels_of_a_periodic_basis_agree():
    basis = fourier_basis(200)  # two waves of each frequency
    once = power_law(1.3, basis.complexity)
    assert float(decay_exponent(once, basis.complexity)) == pytest.approx(1.3, abs=1e-9)


def test_how_energy_divides_within_a_level_does_not_matter():
    basis = fourier_basis(128)
    energy = power_law(1.0, basis.complexity) * chi_squared((128,), 1, seed=0)
    swapped = energy.clone()
    swapped[1:127] = energy[1:127].reshape(-1, 2).flip(1).flatten()
    torch.testing.assert_close(decay_exponent(swapped, basis.complexity), decay_exponent(energy, basis.complexity))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_unit_of_energy_and_the_unit_of_complexity_do_not_matter(scale):
    energy = power_law(1.0) * chi_squared((512,), 4, seed=1)
    expected = decay_exponent(energy, FREQUENCY)
    torch.testing.assert_close(decay_exponent(scale * energy, FREQUENCY), expected)
    torch.testing.assert_close(decay_exponent(energy, FREQUENCY * 2**-20), expected)


def test_a_factor_of_the_complexity_adds_to_the_exponent():
    energy = chi_squared((512,), 2, seed=3)
    flat = decay_exponent(energy, FREQUENCY)
    steeper = decay_exponent(energy * power_law(2.5), FREQUENCY)
    torch.testing.assert_close(steeper, flat + 2.5, rtol=0, atol=1e-9)


def test_the_constant_and_a_few_odd_frequencies_do_not_count():
    energy = power_law(2.0)
    energy[0], energy[300:320] = 1e9, 1.0  # about 1e5 times what belongs there, in a bin or two of 12
    assert float(decay_exponent(energy, FREQUENCY)) == pytest.approx(2, abs=0.15)


def test_frequencies_without_energy_leave():
    odd = power_law(2.0) * (FREQUENCY % 2)
    assert float(decay_exponent(odd, FREQUENCY)) == pytest.approx(2, abs=0.15)
    empty_below = torch.where(FREQUENCY < 10, 0.0, power_law(2.0))
    assert float(decay_exponent(empty_below, FREQUENCY)) == pytest.approx(2, abs=0.15)


def test_a_spectrum_that_falls_by_a_hundred_orders_is_measured():
    energy = torch.exp(-FREQUENCY / 2)
    assert 20 < float(decay_exponent(energy, FREQUENCY)) < 250


def test_the_exponent_takes_lists_and_arrays_of_any_dtype():
    energy, frequency = power_law(1.0)[:64], FREQUENCY[:64]
    assert float(decay_exponent(energy.tolist(), frequency.tolist())) == pytest.approx(1, abs=1e-9)
    assert float(decay_exponent(energy.float().numpy(), np.arange(64))) == pytest.approx(1, abs=1e-5)
    assert decay_exponent(energy.float(), frequency.int()).dtype == torch.float64


@pytest.mark.parametrize(
    ("energy", "complexity"),
    [
        ([], []),
        ([1.0], [1.0]),
        ([1.0] * 20, range(20)),  # two bins of eight
        ([0.0] * 64, range(64)),
        ([1.0] * 64, [0.0] * 64),
        ([1.0] * 64, [3.0] * 64),
        ([1.0] * 64, range(-64, 0)),
        ([1.0] * 63 + [math.nan], range(64)),
        ([1.0] * 63 + [math.inf], range(64)),
        ([1.0] * 63 + [-1.0], range(64)),
    ],
)
def test_spectra_without_a_slope_give_nan(energy, complexity):
    found = decay_exponent(torch.tensor(energy), torch.tensor(list(complexity)))
    assert found.dtype == torch.float64
    assert math.isnan(found)


@pytest.mark.parametrize(
    ("energy", "complexity", "message"),
    [
        (torch.ones(3), torch.ones(4), r"got shapes \[3\] and \[4\]"),
        (torch.ones(3, 3), torch.arange(3), r"got shapes \[3, 3\] and \[3\]"),
        (torch.ones(3), torch.tensor([0.0, 2.0, 1.0]), "ascending"),
        (torch.ones(3), torch.tensor([0.0, 1.0, math.nan]), "finite"),
    ],
)
def test_energies_need_ascending_complexities(energy, complexity, message):
    with pytest.raises(ValueError, match=message):
        decay_exponent(energy, complexity)


# Similarity -----------------------------------------------------------------------------------------------


def similarity_by_loops(spectra: Tensor) -> float:
    total, mean = float(spectra.sum()), spectra.sum(1) / spectra.sum()
    found = 0.0
    for column in spectra.T:
        weight = float(column.sum())
        if weight > 0:
            found += (
                weight / total * sum(math.sqrt(float(q) / weight * float(m)) for q, m in zip(column, mean, strict=True))
            )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_similarity_agrees_with_a_loop(seed):
    spectra = chi_squared((12, 30), 1, seed) * torch.rand(30, generator=generator(seed)).double()
    spectra[:, 3] = 0
    assert float(decay_similarity(spectra)) == pytest.approx(similarity_by_loops(spectra), abs=1e-12)


def test_parameters_of_one_spectrum_are_alike_whatever_their_sizes():
    sizes = torch.tensor([1e-8, 1.0, 1e8, 0.0], dtype=torch.float64)
    assert float(decay_similarity(power_law(1.0)[:, None] * sizes)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("r", [1, 2, 5, 16])
def test_disjoint_equal_spectra_have_the_inverse_root_of_their_number(r):
    disjoint = torch.eye(r, dtype=torch.float64).repeat_interleave(3, dim=0)
    assert float(decay_similarity(disjoint)) == pytest.approx(r**-0.5, abs=1e-12)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 999), st.floats(1e-100, 1e100))
def test_similarity_is_a_share_and_does_not_depend_on_unit_or_order(levels, columns, seed, scale):
    spectra = chi_squared((levels, columns), 1, seed)
    found = decay_similarity(spectra)
    assert 0 < float(found) <= 1
    order = torch.randperm(columns, generator=generator(seed))
    torch.testing.assert_close(decay_similarity(scale * spectra[:, order].flip(0)), found)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_of_parameters_add_up(chunk):
    spectra = chi_squared((9, 50), 1, seed=0)
    sums = [decay_sums(part) for part in spectra.split(chunk, dim=1)]
    energy, amplitude = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
    torch.testing.assert_close(similarity_of_sums(energy, amplitude), decay_similarity(spectra))


@pytest.mark.parametrize(
    "spectra",
    [
        torch.zeros(3, 4),
        torch.zeros(0, 4),
        torch.zeros(3, 0),
        torch.tensor([[1.0, math.nan]]),
        torch.tensor([[1.0, math.inf]]),
        torch.tensor([[1.0, 2.0], [1.0, -1e-9]]),
    ],
    ids=["zero", "no levels", "no parameters", "nan", "inf", "negative"],
)
def test_spectra_without_energy_or_not_of_energies_give_nan(spectra):
    found = decay_similarity(spectra)
    assert found.dtype == torch.float64
    assert math.isnan(found)


def test_a_single_spectrum_is_no_matrix():
    with pytest.raises(ValueError, match=r"\[L, P\], got shape \[5\]"):
        decay_similarity(torch.ones(5))


# Slope ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 15])
def test_the_median_slope_is_that_of_scipy(n):
    x = torch.randn(n, dtype=torch.float64, generator=generator(n))
    y = torch.randn(n, dtype=torch.float64, generator=generator(n + 1))
    assert float(theil_sen(x, y)) == pytest.approx(scipy.stats.theilslopes(y.numpy(), x.numpy()).slope, abs=1e-12)


@pytest.mark.parametrize("y", [[], [1.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0]])
def test_points_without_a_slope_give_nan(y):
    assert math.isnan(theil_sen(torch.arange(len(y)), torch.tensor(y)))
