"""The gradient's modes: planted complexity, a loop as oracle, and the closed form of chance."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import (
    Basis,
    cosine_basis,
    energy_spectrum,
    fourier_basis,
    gradient_spectrum,
    kernel_basis,
    laplacian_basis,
    median_index,
)
from lightning_cx.functional.complexity.basis import merge_levels
from lightning_cx.functional.interference.gradient_spectrum import _pairing_variance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_gram(basis: Basis, decay: float, width: int = 200, seed: int = 0) -> Tensor:
    """Gradients whose part along column k has the size (1 + k)^-decay."""
    sizes = (1.0 + torch.arange(basis.vectors.shape[1], dtype=torch.float64)) ** -decay
    coefficients = torch.randn(len(sizes), width, dtype=torch.float64, generator=generator(seed))
    gradients = basis.vectors @ (sizes[:, None] * coefficients)
    return gradients @ gradients.T


def positions_by_loops(gram: Tensor, basis: Basis) -> tuple[list[float], float]:
    """Centre, diagonalise and measure each mode by the functions of a single spectrum."""
    n = len(gram)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    eigenvalues, vectors = torch.linalg.eigh(centre @ gram @ centre)
    spectra = []
    for j in range(n - 1, -1, -1):
        if eigenvalues[j] > 1e-8 * eigenvalues[-1]:
            energy, _ = merge_levels(energy_spectrum(basis, vectors[:, j]), basis.complexity, basis.tolerance)
            spectra.append((float(eigenvalues[j]), energy[1:]))  # level 0 is the constant
    last = basis.n_levels - 2
    medians = [float(median_index(energy).clamp(0, last)) / last for _, energy in spectra]
    whole = sum(size * energy for size, energy in spectra)
    return medians, float(median_index(whole)) / last


@pytest.mark.parametrize("make", [cosine_basis, fourier_basis])
def test_positions_agree_with_measuring_every_mode_alone(make):
    basis = make(24)
    gram = planted_gram(basis, decay=0.7)
    spectrum = gradient_spectrum(gram, basis)
    medians, whole = positions_by_loops(gram, basis)
    torch.testing.assert_close(spectrum.medians, torch.tensor(medians).double(), rtol=0, atol=1e-6)
    assert float(spectrum.whole_median) == pytest.approx(whole, abs=1e-9)


def test_decaying_gradients_are_simple_flat_ones_average_and_growing_ones_complex():
    basis = cosine_basis(64)
    simple, flat, rough = (gradient_spectrum(planted_gram(basis, decay), basis) for decay in (1, 0, -1))
    assert float(simple.whole_median) < 0.05
    assert float(flat.whole_median) == pytest.approx(0.5, abs=0.05)
    assert float(rough.whole_median) > 0.7
    assert simple.medians[0] < simple.medians[-1]
    assert rough.medians[0] > rough.medians[-1]


def test_a_single_mode_stands_at_its_own_frequency():
    basis = cosine_basis(32)
    wave = basis.vectors[:, 7]
    spectrum = gradient_spectrum(5 * wave[:, None] * wave, basis)
    torch.testing.assert_close(spectrum.eigenvalues, torch.tensor([5.0]).double())
    assert float(spectrum.whole_median) == pytest.approx(6 / 30)  # levels 1 .. 31 without the constant
    assert float(spectrum.whole_median_complexity) == pytest.approx(3.5)
    assert float(spectrum.participation_ratio) == pytest.approx(1)


def test_rounding_of_a_single_precision_gram_makes_no_modes():
    gradients = torch.randn(64, 20, generator=generator())
    assert gradient_spectrum(gradients @ gradients.T, cosine_basis(64)).eigenvalues.numel() == 20


def test_the_mean_gradient_does_not_count():
    basis = cosine_basis(32)
    gram = planted_gram(basis, decay=0.5)
    shifted = gram + 1e3 * torch.ones(32, 32)
    torch.testing.assert_close(
        gradient_spectrum(shifted, basis).whole_median,
        gradient_spectrum(gram, basis).whole_median,
        rtol=0,
        atol=1e-9,
    )


def test_scale_and_order_of_examples_do_not_matter():
    features = torch.randn(40, 3, dtype=torch.float64, generator=generator())
    gram = planted_gram(laplacian_basis(features), decay=0.5)
    order = torch.randperm(40, generator=generator(1))
    before = gradient_spectrum(gram, laplacian_basis(features))
    after = gradient_spectrum(1e9 * gram[order][:, order], laplacian_basis(features[order]))
    for name in ("medians", "whole_median", "null_median", "null_sd", "participation_ratio"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-6)


def test_the_variance_over_pairings_is_exact():
    centre = torch.eye(6, dtype=torch.float64) - 1 / 6
    gradients = centre @ torch.randn(6, 2, dtype=torch.float64, generator=generator())
    a = gradients @ gradients.T
    b = torch.randn(6, 6, dtype=torch.float64, generator=generator(1))
    b = centre @ (b + b.T) @ centre
    pairings = torch.tensor(list(itertools.permutations(range(6))))
    traces = (a[pairings[:, :, None], pairings[:, None, :]] * b).sum((1, 2))
    torch.testing.assert_close(_pairing_variance(a, b), traces.var(correction=0))


def irregular_cosines(n: int) -> Basis:
    return cosine_basis(torch.rand(n, dtype=torch.float64, generator=generator(7)))


@pytest.mark.parametrize("make", [cosine_basis, fourier_basis, irregular_cosines], ids=lambda make: make.__name__)
@pytest.mark.parametrize("width", [2, 200])
def test_chance_is_what_shuffling_the_probe_gives(make, width):
    basis = make(64)
    gram = planted_gram(basis, decay=1.0, width=width)
    spectrum = gradient_spectrum(gram, basis)
    orders = [torch.randperm(64, generator=generator(seed)) for seed in range(200)]
    shuffled = torch.stack([gradient_spectrum(gram[o][:, o], basis).whole_median for o in orders])
    assert float(spectrum.null_sd) == pytest.approx(float(shuffled.std()), rel=0.25)
    assert float(spectrum.null_median) == pytest.approx(float(shuffled.mean()), abs=0.02)


def test_components_of_a_graph_keep_the_lowest_level_on_the_axis():
    two_pieces = torch.cat([torch.linspace(0, 1, 12), torch.linspace(100, 101, 12)])
    basis = laplacian_basis(two_pieces, n_neighbors=3)
    side = torch.cat([torch.ones(12), -torch.ones(12)]).double()
    spectrum = gradient_spectrum(side[:, None] * side, basis)
    assert float(spectrum.whole_median) == 0.0
    assert float(spectrum.whole_median_complexity) == 0.0


def test_a_basis_without_the_constant_keeps_all_its_levels():
    reference = planted_gram(cosine_basis(20), decay=1.0)
    spectrum = gradient_spectrum(reference, kernel_basis(reference))
    assert 0 <= float(spectrum.whole_median) < 0.2
    assert float(spectrum.null_median) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "gram",
    [torch.zeros(8, 8), torch.full((8, 8), 0.1), torch.full((8, 8), math.nan), torch.full((8, 8), math.inf)],
    ids=["zero", "identical", "nan", "inf"],
)
def test_gradients_that_do_not_differ_or_are_not_finite_have_no_modes(gram):
    spectrum = gradient_spectrum(gram, cosine_basis(8))
    assert spectrum.eigenvalues.numel() == spectrum.medians.numel() == 0
    for name in ("whole_median", "whole_median_complexity", "participation_ratio", "null_sd"):
        assert math.isnan(getattr(spectrum, name))
    assert str(spectrum).startswith("gradient spectrum unknown")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_examples_give_nan_rather_than_an_error(n):
    spectrum = gradient_spectrum(torch.eye(n), laplacian_basis(torch.arange(float(n))))
    assert math.isnan(spectrum.null_sd)
    assert spectrum.eigenvalues.numel() == n - 1


def test_gram_and_basis_must_be_about_the_same_examples():
    with pytest.raises(ValueError, match=r"4 examples, but the Gram matrix has shape \[5, 5\]"):
        gradient_spectrum(torch.eye(5), cosine_basis(4))


def test_measuring_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    gradient_spectrum(torch.eye(16), cosine_basis(16))
    assert torch.equal(torch.random.get_rng_state(), before)
