"""Plausible mistakes in the definitions of THEORY: each is planted, and some known answer must notice it."""

from collections.abc import Callable

import pytest
import test_interference as profiles
import torch
from torch import Tensor

from lightning_cx.functional import fourier_basis
from lightning_cx.functional.complexity import spectrum
from lightning_cx.functional.complexity.spectrum import Axis
from lightning_cx.functional.interference import coherence as gradient_system
from lightning_cx.functional.interference import profile as interference
from lightning_cx.functional.linalg import principal_modes


def medians_of_the_theory() -> None:
    energy = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    seen = spectrum.median_complexity(energy, torch.tensor([0.0, 1.0, 4.0, 9.0]))
    torch.testing.assert_close(seen, torch.tensor([29 / 6, 2.5], dtype=torch.float64))


def ties_of_the_theory() -> None:
    seen = spectrum.median_complexity(torch.tensor([0.4, 0.3, 0.3, 0.0]), torch.tensor([0.0, 1.0, 1.0, 2.0]))
    torch.testing.assert_close(seen, torch.tensor(2 / 3, dtype=torch.float64), rtol=0, atol=1e-6)


def a_wave_on_a_circle_stands_at_its_frequency_whatever_its_phase() -> None:
    basis = fourier_basis(64)
    angle = 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    wave = torch.cos(5 * angle) + torch.cos(5 * angle + 0.3) + 0.9 * torch.cos(9 * angle)
    profile = interference.interference_profile(torch.outer(wave, wave), basis, permutations=0)
    torch.testing.assert_close(profile.whole_median, profile.medians[0])
    share = (1 + 2 * torch.cos(torch.tensor(0.3)).double() + 1) / (2 + 2 * torch.cos(torch.tensor(0.3)).double() + 0.81)
    index = 4 - 0.5 + 0.5 / share  # level 4 of those without the constant, k = 5
    torch.testing.assert_close(profile.medians[0], index + 1, rtol=0, atol=1e-6)


def every_index_is_that_of_the_loops() -> None:
    profiles.test_every_index_agrees_with_its_definition_in_loops(make=fourier_basis, seed=0)


def a_shuffled_probe_shows_no_principle() -> None:
    profiles.test_the_mean_gradient_fakes_the_principle_only_where_it_is_kept()


def turning_waves_changes_nothing() -> None:
    profiles.test_turning_the_waves_of_one_frequency_into_each_other_changes_nothing()


KNOWN_ANSWERS: list[Callable[[], None]] = [
    medians_of_the_theory,
    ties_of_the_theory,
    a_wave_on_a_circle_stands_at_its_frequency_whatever_its_phase,
    every_index_is_that_of_the_loops,
    a_shuffled_probe_shows_no_principle,
    turning_waves_changes_nothing,
]


def noticed_by() -> list[str]:
    """The known answers that do not come out."""
    return [check.__name__ for check in KNOWN_ANSWERS if fails(check)]


def fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


def test_without_a_mutation_every_known_answer_comes_out():
    assert noticed_by() == []


def discrete_median(energy: Tensor) -> Tensor:
    cumulative = energy.double().cumsum(-1)
    return (cumulative >= (0.5 - 1e-12) * cumulative[..., -1:]).int().argmax(-1).double()


def centroid(energy: Tensor) -> Tensor:
    energy = energy.double()
    return (energy * torch.arange(energy.shape[-1])).sum(-1) / energy.sum(-1)


@pytest.mark.parametrize("median", [discrete_median, centroid])
@pytest.mark.parametrize("home", [spectrum, interference], ids=["of a spectrum", "of a mode"])
def test_another_median_is_noticed(monkeypatch, median, home):
    monkeypatch.setattr(home, "median_index", median)
    assert noticed_by()


def test_a_split_that_does_not_cut_the_median_cell_is_noticed(monkeypatch):
    right = spectrum.low_weights
    monkeypatch.setattr(interference, "low_weights", lambda energy: right(energy).round())
    assert noticed_by()


def test_amplitudes_in_place_of_energies_are_noticed(monkeypatch):
    right = Axis.energies
    monkeypatch.setattr(Axis, "energies", lambda axis, functions: right(axis, functions).sqrt())
    assert noticed_by()


def test_ties_that_are_not_merged_are_noticed(monkeypatch):
    def every_function_alone(complexity: Tensor, tol: float = 0) -> Tensor:
        return torch.arange(complexity.numel())

    monkeypatch.setattr("lightning_cx.functional.complexity.basis.level_index", every_function_alone)
    found = noticed_by()
    assert "ties_of_the_theory" in found
    assert "turning_waves_changes_nothing" in found


def test_singular_values_in_place_of_their_squares_are_noticed(monkeypatch):
    right = principal_modes

    def unsquared(gram: Tensor, n_examples: int, center: bool = True) -> tuple[Tensor, Tensor]:
        eigenvalues, modes = right(gram, n_examples, center)
        return eigenvalues.sqrt(), modes

    monkeypatch.setattr(gradient_system, "principal_modes", unsquared)
    assert noticed_by()


def test_a_gram_matrix_that_is_not_centred_is_noticed(monkeypatch):
    right = principal_modes
    monkeypatch.setattr(gradient_system, "principal_modes", lambda gram, n, center=True: right(gram, n, False))
    monkeypatch.setattr(Axis, "without_constant", Axis.of)
    assert "a_shuffled_probe_shows_no_principle" in noticed_by()
