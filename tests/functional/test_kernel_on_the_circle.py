"""The tangent kernel of a two-layer network on the circle, where theory knows every eigenvalue."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from _oracles import circle_angles, circle_eigenvalue, circle_eigenvalue_on_grid, circle_ntk
from torch import Tensor

from lightning_cx.functional import (
    cumulative_power,
    eigenvalue_decay,
    fourier_basis,
    kernel_basis,
    kernel_target_alignment,
)
from lightning_cx.functional.complexity.spectrum import theil_sen

N = 256
ANGLE = circle_angles(N)
KERNEL = circle_ntk(N)


def share_in_frequency(functions: Tensor, k: int) -> Tensor:
    basis = fourier_basis(N)
    waves = basis.vectors[:, basis.complexity == k]
    return (waves.T @ functions).square().sum(0)


def test_the_kernel_is_that_of_the_inner_products():
    points = torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)
    cosine = (points @ points.T).clamp(-1, 1)
    expected = (cosine + 1) * (math.pi - cosine.arccos()) / (4 * math.pi)
    torch.testing.assert_close(KERNEL, expected, rtol=0, atol=1e-7)  # arccos near 1 keeps half the digits


@pytest.mark.parametrize("phase", [0.0, 0.7])
def test_waves_are_eigenfunctions_with_the_eigenvalues_of_the_grid_exactly(phase):
    for k in range(N // 2):
        wave = torch.cos(k * ANGLE + phase)
        torch.testing.assert_close(2 / N * KERNEL @ wave, circle_eigenvalue_on_grid(k, N) * wave, rtol=0, atol=1e-13)


def test_eigenvalues_are_those_of_the_continuum_within_six_percent():
    for k in range(1, 33):
        assert circle_eigenvalue_on_grid(k, N) == pytest.approx(circle_eigenvalue(k), rel=0.06)
    for k in range(1, 33):  # and the difference is the grid's alone
        assert circle_eigenvalue_on_grid(k, 2**20) == pytest.approx(circle_eigenvalue(k), rel=1e-8)


def test_the_basis_of_the_kernel_is_the_waves_in_the_order_of_their_frequency():
    vectors = kernel_basis(KERNEL).vectors
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(share_in_frequency(vectors[:, :1], 0), one[:1])
    for k in range(1, 127):  # parity makes steps of unequal height, but never changes the order
        torch.testing.assert_close(share_in_frequency(vectors[:, 2 * k - 1 : 2 * k + 1], k), one)
    # 127 and 128 have one eigenvalue on this grid, so that only their common space is determined.
    last = share_in_frequency(vectors[:, 253:], 127) + share_in_frequency(vectors[:, 253:], 128)
    torch.testing.assert_close(last, torch.ones(3, dtype=torch.float64))


def test_eigenvalues_decay_with_the_square_of_the_rank():
    decay = eigenvalue_decay(circle_ntk(512))
    assert float(decay.exponent) == pytest.approx(2, abs=0.15)
    assert decay.last_rank == 64


@pytest.mark.parametrize("n", [128, 256, 512])
def test_the_decay_is_that_of_the_exact_eigenvalues_which_fall_faster_on_few_ranks(n):
    # Frequency k stands at ranks 2 k and 2 k + 1, so that eigenvalues fall as (rank - 1/2)^-2, in steps by parity.
    ranks = np.arange(3, n // 8 + 1)
    exact = np.array([circle_eigenvalue_on_grid(rank // 2, n) for rank in ranks])
    decay = eigenvalue_decay(circle_ntk(n))
    expected = -scipy.stats.theilslopes(np.log(exact), np.log(ranks)).slope
    assert float(decay.exponent) == pytest.approx(expected, abs=1e-9)
    assert float(decay.exponent) > 2


def half_time(k: int, eigenvalues: Tensor, modes: Tensor) -> float:
    """When gradient flow on all frequencies at once, dr/dt = -2/n K r, has halved the wave of frequency k."""
    wave = torch.cos(k * ANGLE)
    residual = modes.T @ torch.cos(torch.arange(1, 65)[:, None] * ANGLE).sum(0)
    wave_in_modes = modes.T @ wave

    def amplitude(t: float) -> float:
        return float(wave_in_modes @ (torch.exp(-2 / N * eigenvalues * t) * residual))

    early, late = 0.0, 1e6
    for _ in range(60):
        middle = (early + late) / 2
        early, late = (middle, late) if amplitude(middle) > amplitude(0) / 2 else (early, middle)
    return late


def test_the_time_to_learn_a_frequency_grows_with_its_square():
    eigenvalues, modes = torch.linalg.eigh(KERNEL)
    frequencies = torch.arange(4, 33)
    times = torch.tensor([half_time(int(k), eigenvalues, modes) for k in frequencies], dtype=torch.float64)
    x, y = frequencies.double().log(), times.log()
    least_squares = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    assert float(least_squares) == pytest.approx(2, abs=0.1)
    assert float(theil_sen(x, y)) == pytest.approx(2, abs=0.1)
    assert (times.diff() > 0).all(), "a higher frequency was learned before a lower one"
    expected = [math.log(2) / circle_eigenvalue_on_grid(int(k), N) for k in frequencies]
    torch.testing.assert_close(times, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 2, 31, 100])
def test_a_wave_is_counted_at_its_frequency_whatever_its_phase(k):
    # Cosine and sine share an eigenvalue, at modes 2 k - 1 and 2 k without the constant: half is reached between them.
    for phase in (0.0, 0.3, 2.0):
        cumulative = cumulative_power(KERNEL, torch.cos(k * ANGLE + phase))
        expected = torch.zeros(N - 1, dtype=torch.float64)
        expected[2 * k - 2], expected[2 * k - 1 :] = 0.5, 1.0
        torch.testing.assert_close(cumulative.power, expected)
        assert float(cumulative.area) == pytest.approx(1 - (2 * k - 1) / (N - 1), abs=1e-9)


def test_the_alignment_of_a_wave_is_its_share_of_the_eigenvalues():
    eigenvalues = torch.tensor([circle_eigenvalue_on_grid((rank + 1) // 2, N) for rank in range(1, N)])
    for k in (1, 5, 64):
        expected = circle_eigenvalue_on_grid(k, N) / float(eigenvalues.norm())
        assert float(kernel_target_alignment(KERNEL, torch.cos(k * ANGLE))) == pytest.approx(expected, rel=1e-6)
