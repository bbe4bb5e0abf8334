"""Complexity: an axis for functions of the examples, their spectra on it, and what is learned first."""

from lightning_cx.functional.complexity.axis import Axis, principal_eigenvalues
from lightning_cx.functional.complexity.basis import Basis, cosine_basis, fourier_basis, kernel_basis, laplacian_basis
from lightning_cx.functional.complexity.decay import decay_exponent, decay_similarity
from lightning_cx.functional.complexity.eigenfunctions import MAX_DENSE
from lightning_cx.functional.complexity.features import as_matrix, default_features, holds_ids
from lightning_cx.functional.complexity.levels import band_energies, merge_levels, octave_bands
from lightning_cx.functional.complexity.position import median_position, octave_energies
from lightning_cx.functional.complexity.spectral_bias import (
    DecayRates,
    decay_rates,
    energies_at_half,
    fitted_fraction,
    high_complexity_dominance,
    spectral_bias_index,
)
from lightning_cx.functional.complexity.spectrum import energy_spectrum, low_weights, median_complexity, median_index
from lightning_cx.functional.complexity.whiteness import Whiteness, independent_outputs, whiteness

__all__ = [
    "MAX_DENSE",
    "Axis",
    "Basis",
    "DecayRates",
    "Whiteness",
    "as_matrix",
    "band_energies",
    "cosine_basis",
    "decay_exponent",
    "decay_rates",
    "decay_similarity",
    "default_features",
    "energies_at_half",
    "energy_spectrum",
    "fitted_fraction",
    "fourier_basis",
    "high_complexity_dominance",
    "holds_ids",
    "independent_outputs",
    "kernel_basis",
    "laplacian_basis",
    "low_weights",
    "median_complexity",
    "median_index",
    "median_position",
    "merge_levels",
    "octave_bands",
    "octave_energies",
    "principal_eigenvalues",
    "spectral_bias_index",
    "whiteness",
]
