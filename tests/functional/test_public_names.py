"""What `lightning_cx.functional` hands out, and that each name says how it is called."""

import inspect

from lightning_cx import functional

DESIGNED = {
    "median_complexity",
    "median_index",
    "energy_spectrum",
    "laplacian_basis",
    "cosine_basis",
    "fourier_basis",
    "kernel_basis",
    "interference_profile",
    "alpha_ecf",
    "hill",
    "xi_dedh",
    "tail_report",
    "noise_scale",
    "spectral_risk",
}


def test_the_package_hands_out_45_names_and_those_of_the_design_are_among_them():
    assert len(functional.__all__) == 45
    assert set(functional.__all__) >= DESIGNED
    assert functional.__all__ == sorted(functional.__all__)


def test_every_public_function_states_arguments_and_result_and_shows_an_example():
    functions = {name: getattr(functional, name) for name in functional.__all__}
    for name, function in functions.items():
        sections = ("Attributes:",) if inspect.isclass(function) else ("Args:", "Returns:", "Example:", ">>> ")
        missing = [section for section in sections if section not in (function.__doc__ or "")]
        assert not missing, f"{name} lacks {missing}"
