"""Complexity, interference, tails, noise and curvature as pure maths on tensors, usable without a Trainer.

Choose an axis of complexity for your examples (`laplacian_basis`), expand a function of the examples on it and find the
middle of its energy (`median_complexity`), ask which functions a gradient step can move (`interference_profile`), how
much of the gradient is signal at all (`noise_scale`), and how heavy the tail of the rest is (`tail_report`).

The 45 names here are the ones to start with. The rest is reached by theme, as ``functional.tails.without_drift``:

| theme | what it is about |
|---|---|
| `complexity` | bases, spectra on them, spectral bias, whiteness of a residual |
| `interference`, `kernels` | modes of the gradients and of a Gram matrix, alignment, shares of blocks |
| `noise`, `variance_reduction`, `averaging` | noise scale, larger batches, SVRG, averaged weights |
| `tails` | tail indices, tests of normal and stable laws, scale drift |
| `stopping` | when to stop without a validation set |
| `curvature`, `step_size`, `convergence` | sharpness, edge of stability, how training ends |
| `trajectories`, `neurons` | the path of the parameters; copies, dead neurons, a teacher |
| `linalg`, `sketching`, `inputs` | what the others are made of |

Functions take tensors, arrays and lists, compute in float64, and leave the global random states alone. Those that need
chance (random projections, permutations, parametric bootstraps, halves of the examples) draw from a generator of their
own, with a fixed seed or the argument `seed`, so that the same input always gives the same numbers.

>>> import torch
>>> x = (torch.arange(64) + 0.5) / 64                       # 64 examples on a line
>>> basis = cosine_basis(x)                                 # functions of x, slowest first
>>> target = torch.cos(2 * torch.pi * 3 * x.double())       # three cycles
>>> energy = energy_spectrum(basis, target)
>>> round(float(median_complexity(energy, basis.complexity)), 6)
3.0

On examples that do not lie on a line, their similarity gives the axis:

>>> angle = 2 * torch.pi * torch.arange(60).double() / 60
>>> from lightning_cx.functional import complexity
>>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
>>> basis = laplacian_basis(circle)
>>> for waves in (1, 2, 3):
...     energy = energy_spectrum(basis, torch.cos(waves * angle))
...     level_energy, _ = complexity.merge_levels(energy, basis.complexity, basis.tolerance)
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

from lightning_cx.functional.averaging import averaging_gain
from lightning_cx.functional.complexity import (
    Basis,
    cosine_basis,
    decay_exponent,
    decay_rates,
    default_features,
    energy_spectrum,
    fitted_fraction,
    fourier_basis,
    kernel_basis,
    laplacian_basis,
    median_complexity,
    median_index,
    octave_bands,
    spectral_bias_index,
)
from lightning_cx.functional.convergence import local_model, loss_tail
from lightning_cx.functional.curvature import largest_eigenvalue
from lightning_cx.functional.interference import gradient_spectrum, interference_profile
from lightning_cx.functional.kernels import (
    block_shares,
    chance_alignment,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
)
from lightning_cx.functional.linalg import effective_rank, participation_ratio
from lightning_cx.functional.neurons import neuron_report
from lightning_cx.functional.noise import NoiseScale, noise_scale, pool_noise_scales
from lightning_cx.functional.step_size import edge_of_stability
from lightning_cx.functional.stopping import spectral_risk
from lightning_cx.functional.tails import alpha_ecf, hill, tail_report, xi_dedh
from lightning_cx.functional.trajectories import (
    bound_index,
    distance_from_start,
    dwell,
    one_point_convexity,
    spanning_tree_length,
)
from lightning_cx.functional.variance_reduction import batch_size_advice, svrg_gain

__all__ = [
    "Basis",
    "NoiseScale",
    "alpha_ecf",
    "averaging_gain",
    "batch_size_advice",
    "block_shares",
    "bound_index",
    "chance_alignment",
    "cosine_basis",
    "cumulative_power",
    "decay_exponent",
    "decay_rates",
    "default_features",
    "distance_from_start",
    "dwell",
    "edge_of_stability",
    "effective_rank",
    "eigenvalue_decay",
    "energy_spectrum",
    "fitted_fraction",
    "fourier_basis",
    "gradient_spectrum",
    "hill",
    "interference_profile",
    "kernel_basis",
    "kernel_dimension",
    "kernel_target_alignment",
    "laplacian_basis",
    "largest_eigenvalue",
    "local_model",
    "loss_tail",
    "median_complexity",
    "median_index",
    "neuron_report",
    "noise_scale",
    "octave_bands",
    "one_point_convexity",
    "participation_ratio",
    "pool_noise_scales",
    "spanning_tree_length",
    "spectral_bias_index",
    "spectral_risk",
    "svrg_gain",
    "tail_report",
    "xi_dedh",
]
