"""The largest eigenvalue from products alone is that of LAPACK and ARPACK, with a bound that holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import linalg
from torch import Tensor

from lightning_cx.functional import largest_eigenvalue


def symmetric(size: int, seed: int) -> Tensor:
    """Of both signs, and with its largest eigenvalue in size negative as often as not."""
    entries = np.random.default_rng(seed).standard_normal((size, size))
    return torch.from_numpy(entries + entries.T)


def by(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda vector: matrix @ vector.to(matrix)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_as_many_products_as_rows_give_the_eigenvalue_of_lapack(size: int, seed: int) -> None:
    matrix = symmetric(size, seed)
    leading = largest_eigenvalue(by(matrix), size, iterations=size, tolerance=1e-12)
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(leading.value, values[-1], rtol=1e-10, atol=1e-10)
    assert abs(float(leading.vector @ vectors[:, -1])) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_a_converged_value_is_that_of_arpack(seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((400, 400)))
    spectrum = np.concatenate([rng.uniform(-40, 1, 396), [2, 5, 9, 11]])  # the largest in size is negative
    matrix = (basis * spectrum) @ basis.T
    leading = largest_eigenvalue(by(torch.from_numpy(matrix)), 400, iterations=100, tolerance=1e-7)
    (expected,) = linalg.eigsh(matrix, k=1, which="LA", return_eigenvectors=False, v0=rng.standard_normal(400))
    assert leading.converged
    assert float(leading.value) == pytest.approx(expected, rel=1e-9)
    assert leading.products < 100


@pytest.mark.parametrize("iterations", [1, 3, 8, 20])
def test_an_eigenvalue_lies_within_the_residual_and_none_is_exceeded(iterations: int) -> None:
    for seed in range(5):
        matrix = symmetric(80, seed)
        leading = largest_eigenvalue(by(matrix), 80, iterations=iterations, seed=seed)
        values = torch.linalg.eigvalsh(matrix)
        assert float((values - leading.value).abs().min()) <= float(leading.residual) + 1e-9
        assert float(leading.value) <= float(values[-1]) + 1e-9
        miss = matrix @ leading.vector - leading.value * leading.vector
        torch.testing.assert_close(miss.norm(), leading.residual, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_may_be_coarser_than_the_recurrence(dtype: torch.dtype) -> None:
    spectrum = torch.linspace(-1, 1, 300, dtype=torch.float64)
    spectrum[-1] = 7.0
    leading = largest_eigenvalue(lambda v: (spectrum * v).to(dtype), 300, tolerance=1e-6)
    assert float(leading.value) == pytest.approx(7, rel=20 * torch.finfo(dtype).eps)
    assert leading.vector.dtype == torch.float64


@pytest.mark.parametrize("seed", range(3))
def test_a_scale_gives_the_eigenvalue_of_the_preconditioned_matrix(seed: int) -> None:
    matrix = symmetric(40, seed)
    scale = torch.from_numpy(np.random.default_rng(seed + 9).uniform(0, 3, 40))
    scale[3] = 0.0
    leading = largest_eigenvalue(by(matrix), 40, scale=scale, iterations=40, tolerance=1e-10)
    root = scale.sqrt()
    expected = torch.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    torch.testing.assert_close(leading.value, expected, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.floats(1e-12, 1e12))
def test_it_scales_with_the_matrix(seed: int, factor: float) -> None:
    matrix = symmetric(12, seed)
    plain = largest_eigenvalue(by(matrix), 12, iterations=6)
    scaled = largest_eigenvalue(by(factor * matrix), 12, iterations=6)
    torch.testing.assert_close(scaled.value, factor * plain.value, rtol=1e-8, atol=1e-8 * factor)
    torch.testing.assert_close(scaled.residual, factor * plain.residual, rtol=1e-6, atol=1e-8 * factor)


def test_an_eigenvector_that_was_overtaken_does_not_hide_the_new_one() -> None:
    rng = np.random.default_rng(5)
    spectrum = torch.from_numpy(rng.uniform(-1, 1, 2000))
    spectrum[0], spectrum[1] = 10.0, 12.0
    noise = torch.from_numpy(rng.standard_normal(2000))
    start = torch.eye(2000, dtype=torch.float64)[0] + 0.1 * noise / noise.norm()
    assert float(largest_eigenvalue(lambda v: spectrum * v, 2000, start=start).value) == pytest.approx(12, rel=0.01)


def test_a_good_start_saves_products() -> None:
    matrix = torch.diag(torch.cat([torch.linspace(0, 10, 500, dtype=torch.float64), torch.tensor([11.0, 11.5])]))
    cold = largest_eigenvalue(by(matrix), 502, iterations=100, tolerance=1e-3)
    warm = largest_eigenvalue(by(matrix), 502, start=cold.vector, iterations=100, tolerance=1e-3)
    assert warm.converged
    assert warm.products < cold.products / 2


def test_negative_zero_and_constant_matrices_have_a_largest_eigenvalue() -> None:
    assert float(largest_eigenvalue(by(-torch.eye(4)), 4).value) == pytest.approx(-1)
    zero = largest_eigenvalue(by(torch.zeros(4, 4)), 4)
    assert (float(zero.value), float(zero.residual), zero.converged, zero.products) == (0, 0, True, 1)
    assert largest_eigenvalue(by(3 * torch.eye(50)), 50).products == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_give_nan_at_once(bad: float) -> None:
    leading = largest_eigenvalue(lambda v: v * bad, 5)
    assert math.isnan(leading.value)
    assert math.isnan(leading.residual)
    assert not leading.converged
    assert "product 1 was not finite" in str(leading)


def test_no_parameters_no_eigenvalue() -> None:
    leading = largest_eigenvalue(lambda v: v, 0)
    assert math.isnan(leading.value)
    assert leading.products == 0
    assert not leading.converged


def test_what_cannot_be_asked_is_refused() -> None:
    for wrong in (
        {"iterations": 0},
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"start": torch.zeros(3)},
        {"start": torch.ones(2)},
        {"start": torch.full((3,), math.nan)},
        {"scale": torch.tensor([1.0, -1.0, 1.0])},
        {"scale": torch.ones(4)},
    ):
        with pytest.raises(ValueError, match=r"it takes|must be 3 finite"):
            largest_eigenvalue(lambda v: v, 3, **wrong)


def test_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    largest_eigenvalue(lambda v: v, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_words_say_whether_it_converged() -> None:
    matrix = symmetric(80, 0)
    assert "not converged after 2 products" in str(largest_eigenvalue(by(matrix), 80, iterations=2))
    assert ", converged after" in str(largest_eigenvalue(by(matrix), 80, iterations=80))
