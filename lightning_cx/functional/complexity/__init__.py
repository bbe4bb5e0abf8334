"""An axis of complexity for functions of the examples, spectra on it, and what training learns first."""

from lightning_cx.functional.complexity.basis import (
    Basis,
    cosine_basis,
    fourier_basis,
    kernel_basis,
    laplacian_basis,
    merge_levels,
    octave_bands,
)
from lightning_cx.functional.complexity.graph import MAX_DENSE
from lightning_cx.functional.complexity.residuals import (
    DecayRates,
    Whiteness,
    decay_rates,
    energies_at_half,
    fitted_fraction,
    high_complexity_dominance,
    independent_outputs,
    spectral_bias_index,
    whiteness,
)
from lightning_cx.functional.complexity.spectrum import (
    Axis,
    decay_exponent,
    energy_spectrum,
    median_complexity,
    median_index,
    median_position,
    octave_energies,
)
from lightning_cx.functional.inputs import as_matrix, default_features, holds_ids
from lightning_cx.functional.linalg import principal_eigenvalues

__all__ = [
    "MAX_DENSE",
    "Axis",
    "Basis",
    "DecayRates",
    "Whiteness",
    "as_matrix",
    "cosine_basis",
    "decay_exponent",
    "decay_rates",
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
