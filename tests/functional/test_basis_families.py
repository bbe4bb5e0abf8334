"""Bases: what each family promises about its columns and their order."""

import math

import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_cx.functional import (
    Basis,
    cosine_basis,
    default_features,
    energy_spectrum,
    fourier_basis,
    kernel_basis,
    laplacian_basis,
    median_complexity,
    median_index,
)
from lightning_cx.functional.complexity.basis import merge_levels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_orthonormal(basis: Basis) -> None:
    identity = torch.eye(basis.vectors.shape[1], dtype=torch.float64)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, identity, rtol=0, atol=1e-10)
    assert (basis.complexity.diff() >= 0).all()


def level_energies(basis: Basis, values: Tensor) -> Tensor:
    return merge_levels(energy_spectrum(basis, values), basis.complexity, basis.tolerance)[0]


# Cosines and waves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_cosines_on_a_regular_grid_are_the_dct(n):
    signal = torch.randn(n, dtype=torch.float64, generator=generator())
    basis = cosine_basis(n)
    expected = scipy.fft.dct(signal.numpy(), type=2, norm="ortho")
    torch.testing.assert_close(basis.vectors.T @ signal, torch.from_numpy(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.complexity, torch.arange(n).double() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_a_regular_grid_is_recognised_in_any_dtype_offset_and_order(dtype):
    grid = torch.arange(40) if dtype == torch.int64 else torch.linspace(-3, 8, 40, dtype=dtype)
    order = torch.randperm(40, generator=generator())
    torch.testing.assert_close(cosine_basis(grid).vectors, cosine_basis(40).vectors)
    torch.testing.assert_close(cosine_basis(grid[order]).vectors, cosine_basis(40).vectors[order])


def test_the_first_columns_on_irregular_points_span_the_first_cosines():
    x = torch.rand(31, dtype=torch.float64, generator=generator()) * 5 - 2
    basis = cosine_basis(x)
    assert_orthonormal(basis)
    assert basis.vectors.shape == (31, 15)
    u = (x - x.min()) / (x.max() - x.min())
    for k in (0, 1, 2, 5):
        wave = torch.cos(math.pi * k * u)
        inside = basis.vectors[:, : k + 1]
        torch.testing.assert_close(inside @ (inside.T @ wave), wave, rtol=0, atol=1e-9)


def test_points_that_repeat_leave_out_the_cosines_they_cannot_tell_apart():
    basis = cosine_basis(torch.tensor([0.0, 0.0, 0.0, 0.3, 0.3, 0.3, 1.0, 1.0]))
    assert_orthonormal(basis)
    assert basis.complexity.tolist() == [0.0, 0.5, 1.0]
    assert cosine_basis(torch.ones(6)).complexity.tolist() == [0.0]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_waves_of_one_frequency_form_one_level(n):
    basis = fourier_basis(n)
    assert_orthonormal(basis)
    assert basis.vectors.shape == (n, n)
    assert basis.level_complexity.tolist() == list(range(n // 2 + 1))


@pytest.mark.parametrize("make", [cosine_basis, fourier_basis])
def test_a_grid_needs_points(make):
    with pytest.raises(ValueError, match="at least one point, got n=0"):
        make(0)


@pytest.mark.parametrize(
    ("points", "message"),
    [(torch.zeros(3, 1), r"shape \[n\]"), (torch.tensor([0.0, torch.nan]), "NaN"), (torch.zeros(0), "at least one")],
)
def test_cosines_refuse_points_that_are_not_on_a_line(points, message):
    with pytest.raises(ValueError, match=message):
        cosine_basis(points)


# Laplacian ------------------------------------------------------------------------------------------------


def noisy_circle(n: int, noise: float) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * torch.rand(n, dtype=torch.float64, generator=generator(1))
    plane, _ = torch.linalg.qr(torch.randn(20, 2, dtype=torch.float64, generator=generator(2)))
    jitter = noise * torch.randn(n, 20, dtype=torch.float64, generator=generator(3))
    return angle, torch.stack([angle.cos(), angle.sin()], dim=1) @ plane.T + jitter


def test_the_graph_of_a_noisy_circle_in_twenty_dimensions_orders_waves_by_frequency():
    angle, features = noisy_circle(256, noise=0.02)
    basis = laplacian_basis(features)
    frequencies = torch.arange(1, 11, dtype=torch.float64)
    medians = torch.stack(
        [
            median_complexity(energy_spectrum(basis, torch.cos(f * angle)), basis.complexity, basis.tolerance)
            for f in frequencies
        ]
    )
    assert (medians.diff() > 0).all(), "rank correlation of frequency and median complexity is not 1"
    x, y = frequencies.log(), medians.log()
    slope = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    assert 0.8 < slope < 1.2


def test_white_noise_has_its_median_in_the_middle_of_a_graph_basis():
    _, features = noisy_circle(256, noise=0.02)
    basis = laplacian_basis(features)
    noise = torch.randn(256, 20, dtype=torch.float64, generator=generator())
    assert abs(float(median_index(level_energies(basis, noise))) / (basis.n_levels - 1) - 0.5) < 0.03


def test_labels_of_digits_are_simple_functions_of_the_pixels_and_not_of_shuffled_pixels():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = default_features(torch.from_numpy(digits.data[:512]))
    labels = torch.nn.functional.one_hot(torch.from_numpy(digits.target[:512])).double()
    labels = labels - labels.mean(0)

    def position(features: Tensor) -> float:
        basis = laplacian_basis(features)
        return float(median_index(level_energies(basis, labels))) / (basis.n_levels - 1)

    assert position(images) < 0.03
    shuffled = images[torch.randperm(512, generator=generator())]
    assert abs(position(shuffled) - 0.5) < 0.05


def assert_sound_laplacian(basis: Basis, n: int) -> None:
    assert basis.vectors.shape == (n, n)
    assert_orthonormal(basis)
    assert basis.complexity[0] == 0
    torch.testing.assert_close(basis.vectors[:, 0], torch.full((n,), n**-0.5, dtype=torch.float64), rtol=0, atol=0)


features = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(0, 3)).map(
        lambda shape: torch.randn(*shape[:2], generator=generator(seed)).round(decimals=shape[2])
    )
)


@given(features, st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_any_features_give_an_orthonormal_basis_with_the_constant_first(features, n_neighbors):
    assert_sound_laplacian(laplacian_basis(features, n_neighbors), len(features))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_examples_are_enough_for_a_laplacian_basis(n):
    assert_sound_laplacian(laplacian_basis(torch.arange(float(n))), n)


@pytest.mark.parametrize("value", [0.0, 1e200, -3.0])
def test_identical_examples_give_the_constant_and_one_level_beside_it(value):
    basis = laplacian_basis(torch.full((20, 3), value, dtype=torch.float64))
    assert_sound_laplacian(basis, 20)
    torch.testing.assert_close(basis.level_complexity, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_features_that_do_not_vary_change_nothing():
    features = torch.randn(40, 2, dtype=torch.float64, generator=generator())
    constant = torch.full((40, 3), 7.0, dtype=torch.float64)
    padded = laplacian_basis(torch.cat([features, constant], dim=1))
    assert_sound_laplacian(padded, 40)
    torch.testing.assert_close(padded.complexity, laplacian_basis(features).complexity, rtol=0, atol=1e-7)


def test_two_examples_differ_by_one_function_and_two_copies_too():
    for pair in (torch.tensor([0.0, 3.0]), torch.tensor([3.0, 3.0])):
        basis = laplacian_basis(pair)
        assert_sound_laplacian(basis, 2)
        assert basis.vectors[:, 1].abs().tolist() == pytest.approx([0.5**0.5] * 2)
    torch.testing.assert_close(basis.complexity, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("distance", [1e3, 1e12])
def test_isolated_outliers_leave_the_basis_sound(distance):
    """An outlier is tied to the nearest others: by a weight while that is a number at all, alone beyond."""
    features = torch.randn(60, 2, dtype=torch.float64, generator=generator())
    features[:3] += distance * torch.tensor([[1.0, 0.0], [0.0, 2.0], [-4.0, 0.0]])
    basis = laplacian_basis(features, n_neighbors=4)
    assert_sound_laplacian(basis, 60)
    n_simplest = int((basis.complexity < 1e-3).sum())
    torch.testing.assert_close(level_energies(basis, torch.ones(60))[0], torch.tensor(60.0, dtype=torch.float64))
    assert n_simplest >= 2, "an outlier is a function of its own, simpler than any wave in the cloud"


def test_pairs_of_duplicates_are_many_components_with_one_zero_each():
    pairs = 10.0 ** torch.arange(40.0, dtype=torch.float64)[:, None].repeat_interleave(2, dim=0)
    basis = laplacian_basis(pairs, n_neighbors=1)
    assert_sound_laplacian(basis, 80)
    assert int((basis.complexity == 0).sum()) == 40
    torch.testing.assert_close(basis.level_complexity, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("components", [2, 4, 30])
def test_a_graph_in_pieces_has_one_zero_per_piece_and_still_the_constant_first(components):
    pieces = torch.randn(components, 15, 2, dtype=torch.float64, generator=generator())
    pieces += 1e4 * torch.arange(components)[:, None, None]
    basis = laplacian_basis(pieces.reshape(-1, 2), n_neighbors=5)
    assert_sound_laplacian(basis, 15 * components)
    assert int((basis.complexity == 0).sum()) == components
    membership = torch.eye(components, dtype=torch.float64).repeat_interleave(15, dim=0)
    torch.testing.assert_close(level_energies(basis, membership)[0], membership.sum())


def test_many_duplicates_stay_connected_to_the_rest():
    cloud = torch.randn(40, 2, dtype=torch.float64, generator=generator())
    basis = laplacian_basis(torch.cat([cloud[:1].expand(9, 2), cloud]))
    assert_sound_laplacian(basis, 49)
    assert int((basis.complexity == 0).sum()) == 1


def test_shuffling_examples_with_their_values_leaves_the_spectrum_as_it_was():
    features = torch.randn(50, 3, dtype=torch.float64, generator=generator())
    values = torch.randn(50, 2, dtype=torch.float64, generator=generator(1))
    order = torch.randperm(50, generator=generator(2))
    before = level_energies(laplacian_basis(features), values)
    after = level_energies(laplacian_basis(features[order]), values[order])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


def test_ties_between_neighbours_are_not_broken_by_the_order_of_examples():
    grid = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0))
    order = torch.randperm(49, generator=generator())
    complexity = laplacian_basis(grid, n_neighbors=3).complexity
    torch.testing.assert_close(laplacian_basis(grid[order], n_neighbors=3).complexity, complexity)


@pytest.mark.parametrize("transform", ["scale", "shift", "rotate"])
def test_units_and_axes_of_the_features_do_not_matter(transform):
    features = torch.randn(40, 3, dtype=torch.float64, generator=generator())
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator(1)))
    moved = {"scale": features * 1e150, "shift": features + 1e3, "rotate": features @ rotation}[transform]
    torch.testing.assert_close(
        laplacian_basis(moved).complexity, laplacian_basis(features).complexity, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_features_of_any_dtype_give_a_float64_basis(dtype):
    basis = laplacian_basis(torch.arange(24).reshape(12, 2, 1).to(dtype))
    assert basis.vectors.dtype == basis.complexity.dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, 3), "at least one example"),
        (torch.zeros(3, 0), "they have no feature"),
        (torch.tensor(1.0), "at least one example"),
        (torch.tensor([[0.0], [torch.nan]]), "1 of 2 features are NaN or infinite, the first is nan in example 1"),
        (torch.tensor([[0.0, torch.inf]]), "the first is inf in example 0"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
    ],
)
def test_features_without_distances_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        laplacian_basis(features)


def test_every_example_needs_a_neighbour():
    with pytest.raises(ValueError, match="n_neighbors=0"):
        laplacian_basis(torch.zeros(3, 1), n_neighbors=0)


# Kernel and the record ------------------------------------------------------------------------------------


def test_a_kernel_basis_puts_the_largest_eigenvalue_first():
    vectors, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator()))
    eigenvalues = torch.tensor([3.0, 7.0, 0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    basis = kernel_basis((vectors * eigenvalues) @ vectors.T)
    assert_orthonormal(basis)
    overlap = (basis.vectors.T @ vectors).abs()
    assert overlap.argmax(0).tolist() == eigenvalues.argsort(descending=True).argsort().tolist()
    assert basis.complexity.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("gram", [torch.zeros(2, 3), torch.zeros(0, 0), torch.full((2, 2), torch.nan)])
def test_a_kernel_that_has_no_eigenvectors_is_refused(gram):
    with pytest.raises(ValueError, match=r"square|at least one|NaN"):
        kernel_basis(gram)


def test_a_basis_checks_its_own_shapes_and_order():
    with pytest.raises(ValueError, match=r"\[3, 3\] and \[2\]"):
        Basis(torch.eye(3), torch.arange(2.0))
    with pytest.raises(ValueError, match="ascending"):
        Basis(torch.eye(2), torch.tensor([1.0, 0.0]))


def test_a_basis_of_single_precision_is_used_in_double():
    basis = Basis(torch.eye(2), torch.arange(2.0))
    assert energy_spectrum(basis, torch.tensor([1.0, 2.0])).tolist() == [1.0, 4.0]


def test_a_moved_basis_keeps_its_tolerance():
    basis = laplacian_basis(torch.arange(5.0))
    assert basis.to("cpu").tolerance == basis.tolerance == 1e-6
