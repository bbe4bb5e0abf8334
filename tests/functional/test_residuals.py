"""Where a function of the examples lies on the axis of complexity, and its energy by octave."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx.functional import Basis, cosine_basis, fourier_basis, gradient_spectrum, kernel_basis, laplacian_basis
from lightning_cx.functional.complexity.spectrum import median_position, octave_energies


def points(n: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(n: int = 150, outputs: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def position_by_loops(basis: Basis, values: Tensor) -> float:
    """Half of the energy of a spectrum without ties, added up one function at a time."""
    rows = values.double().reshape(len(values), -1)
    energy = [sum(float(basis.vectors[:, k] @ column) ** 2 for column in rows.T) for k in range(1, rows.shape[0])]
    half, below = sum(energy) / 2, 0.0
    for k, e in enumerate(energy):
        if below + e >= half:
            return (k - 0.5 + (half - below) / e) / (len(energy) - 1)
        below += e
    raise AssertionError


def test_the_position_is_the_middle_of_the_energy_without_the_constant():
    basis, values = laplacian_basis(points()), noise() + 7.0
    assert basis.n_levels == 150
    assert float(median_position(basis, values)) == pytest.approx(position_by_loops(basis, values), abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 40, 148, 149])
def test_one_basis_function_lies_at_its_own_level(k):
    basis = laplacian_basis(points())
    assert float(median_position(basis, basis.vectors[:, k])) == pytest.approx((k - 1) / 148, abs=1e-9)


def test_white_noise_lies_in_the_middle():
    basis = laplacian_basis(points())
    assert float(median_position(basis, noise(outputs=20))) == pytest.approx(0.5, abs=0.03)


def test_cosine_of_known_frequency_lies_at_its_share_of_the_range():
    x = (torch.arange(65).double() + 0.5) / 65
    assert float(median_position(cosine_basis(65), torch.cos(2 * math.pi * 8 * x))) == pytest.approx(15 / 63)


def test_a_simplest_kernel_function_that_is_not_the_constant_stays_on_the_axis():
    basis = kernel_basis(torch.diag(torch.arange(8.0)))
    mode = torch.zeros(8).index_fill(0, torch.tensor([4]), 1.0)
    centred = mode - mode.mean()
    assert 0 < float(median_position(basis, centred)) < 1


def test_position_ignores_size_sign_mean_and_the_order_of_outputs():
    basis, values = laplacian_basis(points()), noise()
    expected = float(median_position(basis, values))
    for same in (1e200 * values, 1e-200 * values, -values, values + 5, values.flip(1), values[:, :, None]):
        assert float(median_position(basis, same)) == pytest.approx(expected, abs=1e-9)


def test_the_position_of_a_rank_one_gradient_is_that_of_its_only_mode():
    basis, values = laplacian_basis(points()), noise(outputs=1)
    spectrum = gradient_spectrum(values @ values.T, basis)
    assert float(median_position(basis, values)) == pytest.approx(float(spectrum.whole_median), abs=1e-9)


def test_what_tells_separate_clusters_apart_is_simple():
    clusters = torch.cat([points(60), points(60, seed=5) + 1e3])
    is_second = torch.arange(120) >= 60
    basis = laplacian_basis(clusters)
    assert int((basis.complexity == 0).sum()) == 2
    assert float(median_position(basis, is_second + 0.1 * noise(120, 1)[:, 0])) < 0.01


@pytest.mark.parametrize(("copied", "place"), [(30, 0.55), (150, 0.75)])
def test_copies_share_one_level_and_lift_the_place_of_noise(copied, place):
    features = points(300)
    basis = laplacian_basis(torch.cat([features, features[:copied]]))
    assert basis.n_levels == 301
    assert float(median_position(basis, noise(300 + copied, 200))) == pytest.approx(place, abs=0.02)


def test_octaves_add_up_the_squares_of_the_projections():
    basis, values = fourier_basis(16), noise(16, 3)
    energy = [[float(basis.vectors[:, k] @ values[:, c]) ** 2 for c in range(3)] for k in range(16)]
    by_wave = [sum(sum(energy[k]) for k in range(16) if (k + 1) // 2 == wave) / 16 for wave in range(9)]
    expected = [by_wave[0], by_wave[1], sum(by_wave[2:4]), sum(by_wave[4:8]), by_wave[8]]
    assert octave_energies(basis, values).tolist() == pytest.approx(expected, rel=1e-12)
    assert sum(expected) == pytest.approx(float(values.square().sum()) / 16)


@pytest.mark.parametrize("values", [torch.zeros(150), torch.full((150,), 0.1), torch.full((150, 2), 1e9)])
def test_a_function_that_does_not_vary_has_no_position_but_a_mean(values):
    basis = laplacian_basis(points())
    assert math.isnan(median_position(basis, values))
    bands = octave_energies(basis, values)
    assert float(bands[0]) == pytest.approx(float(values[0].double().square().sum()))
    assert float(bands[1:].sum()) <= 1e-20 * float(bands[0])


def test_a_constant_output_beside_a_varying_one_adds_nothing():
    basis, values = laplacian_basis(points()), noise(outputs=1)
    both = torch.cat([values, torch.full_like(values, 0.1)], 1)
    torch.testing.assert_close(median_position(basis, both), median_position(basis, values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_gives_nan(bad):
    basis, values = laplacian_basis(points()), noise()
    values[3, 1] = bad
    assert math.isnan(median_position(basis, values))
    assert octave_energies(basis, values).isnan().all()


def test_one_example_has_no_position():
    basis = laplacian_basis(torch.ones(1, 2))
    assert math.isnan(median_position(basis, torch.ones(1)))
    assert octave_energies(basis, torch.full((1,), 2.0)).tolist() == [4.0]


def test_examples_that_are_all_alike_leave_nothing_to_order():
    assert math.isnan(median_position(laplacian_basis(torch.ones(20, 2)), noise(20)))


@pytest.mark.parametrize("function", [median_position, octave_energies])
def test_the_wrong_number_of_rows_is_refused(function):
    with pytest.raises(ValueError, match=r"lives on 4 examples, but the values have shape \[3\]"):
        function(cosine_basis(4), torch.ones(3))


@pytest.mark.parametrize("function", [median_position, octave_energies])
def test_arrays_and_lists_are_welcome(function):
    basis, values = cosine_basis(4), [0.5, 1.0, -2.0, 0.25]
    torch.testing.assert_close(function(basis, values), function(basis, torch.tensor(values)))
    torch.testing.assert_close(function(basis, np.array(values)), function(basis, torch.tensor(values)))
