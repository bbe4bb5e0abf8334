"""Complexity, interference and noise as pure maths on tensors, usable without a Trainer.

The story of this folder: choose an axis of complexity for your examples (`basis`), expand a function of the
examples on it and find the middle of its energy (`spectrum`), do the same for the functions that a gradient
step can move (`modes`), and ask how much of the gradient is signal at all (`noise`). Everything is computed in
float64 on the device of its input and draws no random numbers.

>>> import torch
>>> x = (torch.arange(64) + 0.5) / 64                       # 64 examples on a line
>>> basis = cosine_basis(x)                                 # functions of x, slowest first
>>> target = torch.cos(2 * torch.pi * 3 * x.double())       # three cycles
>>> energy = energy_spectrum(basis, target)
>>> round(float(median_complexity(energy, basis.complexity)), 6)
3.0

On examples that do not lie on a line, their similarity gives the axis:

>>> angle = 2 * torch.pi * torch.arange(60).double() / 60
>>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
>>> basis = laplacian_basis(circle)
>>> for waves in (1, 2, 3):
...     energy = energy_spectrum(basis, torch.cos(waves * angle))
...     level_energy, _ = merge_levels(energy, basis.complexity, basis.tolerance)
...     print(f"{waves} waves: level {float(median_index(level_energy)):.3f}")
1 waves: level 1.000
2 waves: level 2.000
3 waves: level 3.000

Do the gradients of a network prefer simple functions, and could that be chance?

>>> from lightning_cx.gradients import per_example_gram
>>> _ = torch.manual_seed(0)
>>> net = torch.nn.Sequential(torch.nn.Linear(1, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
>>> x = torch.linspace(-1, 1, 128)
>>> profile = interference_profile(per_example_gram(net, net(x[:, None])[:, 0]), cosine_basis(x))
>>> profile.verdict, bool(profile.cii > 0.9), bool(abs(profile.shuffled_cii) < 0.05), bool(profile.p_value < 0.01)
('holds', True, True, True)
"""

from lightning_cx.functional.alignment import (
    ChanceAlignment,
    CumulativePower,
    chance_alignment,
    cumulative_power,
    kernel_target_alignment,
)
from lightning_cx.functional.averaging import (
    AveragingGain,
    QuadraticLosses,
    TailAverage,
    averaging_gain,
    quadratic_losses,
)
from lightning_cx.functional.basis import Basis, cosine_basis, fourier_basis, kernel_basis, laplacian_basis
from lightning_cx.functional.blocks import noise_scale_of_blocks
from lightning_cx.functional.blockwise import BlockShares, block_shares, pool_block_shares
from lightning_cx.functional.bound_index import bound_index, levy_dimension_constant, noise_level
from lightning_cx.functional.coherence import Coherence
from lightning_cx.functional.decay import decay_exponent, decay_similarity
from lightning_cx.functional.dimension import KernelDimension, kernel_dimension
from lightning_cx.functional.dwelling import (
    DiffusionExponent,
    DwellReport,
    Episode,
    PointConvexity,
    diffusion_exponent,
    dwell,
    one_point_convexity,
)
from lightning_cx.functional.features import default_features
from lightning_cx.functional.gauss_newton import (
    GaussNewton,
    ResidualLaw,
    gauss_newton,
    gauss_newton_from_gradients,
    residual_law,
)
from lightning_cx.functional.interference import interference_profile
from lightning_cx.functional.kernel import (
    EigenvalueDecay,
    effective_rank,
    eigenvalue_decay,
    gram_participation_ratio,
    participation_ratio,
)
from lightning_cx.functional.lanczos import LeadingEigenvalue, largest_eigenvalue
from lightning_cx.functional.levels import band_energies, merge_levels, octave_bands
from lightning_cx.functional.loss_tail import LossTail, loss_tail
from lightning_cx.functional.matching import (
    Alignment,
    NeuronMatch,
    permutation_sign_distance,
    teacher_alignment,
)
from lightning_cx.functional.modes import GradientSpectrum, gradient_spectrum
from lightning_cx.functional.nested_means import half_width, nested_mean_error
from lightning_cx.functional.neurons import NeuronReport, chance_of_duplicates, neuron_report
from lightning_cx.functional.noise import (
    NoiseScale,
    gradient_diversity,
    gradient_snr,
    noise_scale,
    noise_scale_from_sums,
    pool_noise_scales,
)
from lightning_cx.functional.profile import InterferenceProfile
from lightning_cx.functional.rates import DecayRates, decay_rates
from lightning_cx.functional.recovery import LocalModel, jacobian_rank, local_model, local_rate
from lightning_cx.functional.residuals import median_position, octave_energies
from lightning_cx.functional.spectral_bias import (
    energies_at_half,
    fitted_fraction,
    high_complexity_dominance,
    spectral_bias_index,
)
from lightning_cx.functional.spectrum import energy_spectrum, low_weights, median_complexity, median_index
from lightning_cx.functional.step_gains import StepGains, UnsupportedOptimizerError, step_gains
from lightning_cx.functional.step_size import edge_of_stability, step_gain
from lightning_cx.functional.stopping import Decision, RiskCurve, RiskTracker, spectral_risk
from lightning_cx.functional.tail_index import (
    CoordinateTail,
    TailFit,
    TailReport,
    TailTest,
    aggregation_test,
    alpha_ecf,
    anderson_darling,
    coordinate_tail,
    elliptical_stable,
    hill,
    stable_test,
    symmetric_stable,
    tail_report,
    without_drift,
    xi_dedh,
)
from lightning_cx.functional.trajectory import (
    DistanceFromStart,
    distance_from_start,
    positive_magnitude,
    spanning_tree_length,
)
from lightning_cx.functional.variance_reduction import BatchAdvice, SvrgGain, batch_size_advice, svrg_gain
from lightning_cx.functional.whiteness import Whiteness, independent_outputs, whiteness

__all__ = [
    "Alignment",
    "AveragingGain",
    "Basis",
    "BatchAdvice",
    "BlockShares",
    "ChanceAlignment",
    "Coherence",
    "CoordinateTail",
    "CumulativePower",
    "DecayRates",
    "Decision",
    "DiffusionExponent",
    "DistanceFromStart",
    "DwellReport",
    "EigenvalueDecay",
    "Episode",
    "GaussNewton",
    "GradientSpectrum",
    "InterferenceProfile",
    "KernelDimension",
    "LeadingEigenvalue",
    "LocalModel",
    "LossTail",
    "NeuronMatch",
    "NeuronReport",
    "NoiseScale",
    "PointConvexity",
    "QuadraticLosses",
    "ResidualLaw",
    "RiskCurve",
    "RiskTracker",
    "StepGains",
    "SvrgGain",
    "TailAverage",
    "TailFit",
    "TailReport",
    "TailTest",
    "UnsupportedOptimizerError",
    "Whiteness",
    "aggregation_test",
    "alpha_ecf",
    "anderson_darling",
    "averaging_gain",
    "band_energies",
    "batch_size_advice",
    "block_shares",
    "bound_index",
    "chance_alignment",
    "chance_of_duplicates",
    "coordinate_tail",
    "cosine_basis",
    "cumulative_power",
    "decay_exponent",
    "decay_rates",
    "decay_similarity",
    "default_features",
    "diffusion_exponent",
    "distance_from_start",
    "dwell",
    "edge_of_stability",
    "effective_rank",
    "eigenvalue_decay",
    "elliptical_stable",
    "energies_at_half",
    "energy_spectrum",
    "fitted_fraction",
    "fourier_basis",
    "gauss_newton",
    "gauss_newton_from_gradients",
    "gradient_diversity",
    "gradient_snr",
    "gradient_spectrum",
    "gram_participation_ratio",
    "half_width",
    "high_complexity_dominance",
    "hill",
    "independent_outputs",
    "interference_profile",
    "jacobian_rank",
    "kernel_basis",
    "kernel_dimension",
    "kernel_target_alignment",
    "laplacian_basis",
    "largest_eigenvalue",
    "levy_dimension_constant",
    "local_model",
    "local_rate",
    "loss_tail",
    "low_weights",
    "median_complexity",
    "median_index",
    "median_position",
    "merge_levels",
    "nested_mean_error",
    "neuron_report",
    "noise_level",
    "noise_scale",
    "noise_scale_from_sums",
    "noise_scale_of_blocks",
    "octave_bands",
    "octave_energies",
    "one_point_convexity",
    "participation_ratio",
    "permutation_sign_distance",
    "pool_block_shares",
    "pool_noise_scales",
    "positive_magnitude",
    "quadratic_losses",
    "residual_law",
    "spanning_tree_length",
    "spectral_bias_index",
    "spectral_risk",
    "stable_test",
    "step_gain",
    "step_gains",
    "svrg_gain",
    "symmetric_stable",
    "tail_report",
    "teacher_alignment",
    "whiteness",
    "without_drift",
    "xi_dedh",
]
