"""Sets of instruments by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from lightning_cx.instruments import (
    Averaging,
    Control,
    Dwelling,
    GradientNoise,
    GradientSpectrum,
    Instrument,
    Interference,
    Kernel,
    LocalRecovery,
    Neurons,
    SpectralBias,
    StepSize,
    TailIndex,
    TrajectoryGeometry,
    VarianceReduction,
)

Preset: TypeAlias = Literal["default", "noise", "theory", "all"]


def preset(name: str, control: Control = None) -> list[Instrument]:
    """New instruments of a set.

    `"default"` says what is being learned and what batch size the gradients ask for; `"noise"` what the gradient noise
    is like and what would help against it; `"theory"` has the instruments of the research reports behind this project;
    `"all"` is everything.

    Args:
        name: Of the set.
        control: Passed to the instruments whose numbers depend on which example is which.

    Raises:
        ValueError: If there is no such set.

    Example:
        >>> [type(instrument).__name__ for instrument in preset("noise")]
        ['GradientNoise', 'TailIndex', 'VarianceReduction', 'Averaging']
    """
    if name not in _PRESETS:
        known = ", ".join(map(repr, _PRESETS))
        raise ValueError(f"there is no preset {name!r}: choose one of {known}, or pass a list of instruments.")
    return _PRESETS[name](control)


def _default(control: Control) -> list[Instrument]:
    return [GradientNoise(), GradientSpectrum(control=control), SpectralBias(control=control)]


def _noise(control: Control) -> list[Instrument]:
    del control  # noise does not depend on which example is which
    return [GradientNoise(), TailIndex(), VarianceReduction(), Averaging()]


def _theory(control: Control) -> list[Instrument]:
    of_interference = [SpectralBias(control=control), Interference(control=control)]
    of_kernels = [Kernel(), Kernel(on="probe"), StepSize(), Averaging(), VarianceReduction()]
    of_recovery = [Neurons(), LocalRecovery()]
    return [*of_interference, Dwelling(), *of_kernels, *of_recovery, TailIndex(), TrajectoryGeometry()]


def _all(control: Control) -> list[Instrument]:
    there = _default(control)
    return [*there, *(more for more in _theory(control) if type(more) not in set(map(type, there)))]


_PRESETS: Mapping[str, Callable[[Control], list[Instrument]]] = {
    "default": _default,
    "noise": _noise,
    "theory": _theory,
    "all": _all,
}
