"""What of the target is still unlearned, from simple to complex."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import (
    Basis,
    band_energies,
    energies_at_half,
    energy_spectrum,
    laplacian_basis,
    median_index,
    merge_levels,
    octave_bands,
    spectral_bias_index,
)
from lightning_cx.instruments.base import Instrument, Needs, Observation, Reading, Spectrogram
from lightning_cx.tensorboard import tags

MAX_COLUMNS = 1024  # of the spectrogram; past this every other one is dropped


@final
class SpectralBias(Instrument):
    """Residual energy on the fixed probe by octave band of complexity, its median, and the spectral bias index.

    Band 0 is the mean residual; each further band holds functions about twice as rough over the probe as the last.
    In a healthy run the low bands empty first. When they lie as low as the top bands and only the top bands still
    fall, the network is fitting noise.

    The median and the index leave the constant out: a residual of pure noise has its median at .5.
    """

    def __init__(self) -> None:
        self._basis: Basis | None = None
        self._features: Tensor | None = None
        self._fingerprint: float | None = None
        self._initial: Tensor | None = None
        self._previous: Tensor | None = None
        self._index = torch.nan
        self._steps: list[int] = []
        self._columns: list[Tensor] = []

    @property
    def needs(self) -> Needs:
        return Needs(probe=True)

    def measure(self, observation: Observation) -> Reading:
        probe = observation.probe
        if probe is None:
            return Reading()
        basis = self._basis_on(probe.features)
        energy, complexity = merge_levels(
            energy_spectrum(basis, probe.residuals), basis.complexity, tol=basis.tolerance
        )
        names = octave_bands(len(energy))
        band_tags = [tags.residual_band(number) for number in range(len(names))]
        summary = (tags.RESIDUAL_ENERGY, tags.RESIDUAL_MEDIAN, tags.SPECTRAL_BIAS_INDEX)
        if not bool(energy.isfinite().all()):
            bad = int((~probe.residuals.isfinite().all(1)).sum())
            why = f"{bad} of {len(probe.residuals)} residuals are NaN or infinite: inputs are, or training diverged"
            return Reading(dict.fromkeys((*summary, *band_tags), torch.nan), refusals=dict.fromkeys(summary, why))
        varying = energy[1:] if complexity[0] == 0 else energy
        self._follow(varying)
        bands = band_energies(energy, names) / len(probe.residuals)
        self._remember(observation.step, bands)
        scalars = {
            tags.RESIDUAL_ENERGY: float(energy.sum()) / len(probe.residuals),
            tags.RESIDUAL_MEDIAN: float(median_index(varying)) / max(1, len(varying) - 1),
            tags.SPECTRAL_BIAS_INDEX: self._index,
            **dict(zip(band_tags, bands.tolist(), strict=True)),
        }
        return Reading(scalars, pictures={tags.RESIDUAL_SPECTROGRAM: self._picture(names)})

    def _basis_on(self, features: Tensor) -> Basis:
        if self._basis is None or self._features is not features:
            self._basis, self._features = laplacian_basis(features), features
            fingerprint = float(features.square().sum())
            if self._fingerprint is not None and abs(fingerprint - self._fingerprint) > 1e-9 * fingerprint:
                self.reset()  # another probe: nothing before it is comparable
            self._fingerprint = fingerprint
        return self._basis

    def reset(self) -> None:
        self._initial = self._previous = None
        self._index = torch.nan
        self._steps, self._columns = [], []

    def _follow(self, varying: Tensor) -> None:
        if self._initial is None or self._previous is None:
            self._initial = self._previous = varying
            return
        at_half = energies_at_half(self._initial, self._previous, varying)
        if at_half is not None and self._index != self._index:  # the first crossing counts
            self._index = float(spectral_bias_index(self._initial, at_half))
        self._previous = varying

    def _remember(self, step: int, bands: Tensor) -> None:
        self._steps.append(step)
        self._columns.append(bands)
        if len(self._steps) > MAX_COLUMNS:
            self._steps, self._columns = self._steps[::2], self._columns[::2]

    def _picture(self, names: list[tuple[int, int]]) -> Spectrogram:
        labels = ["mean", *(f"{start}" if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in names[1:])]
        return Spectrogram(
            steps=tuple(self._steps),
            values=torch.stack(self._columns),
            bands=labels,
            title="What is still unlearned: residual energy on the probe by complexity",
            reading="Simple functions of the data at the bottom, complex ones on top. A healthy run darkens from the "
            "bottom up; once only the top still darkens, the network is fitting noise.",
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            "initial": self._initial,
            "previous": self._previous,
            "index": self._index,
            "steps": self._steps,
            "columns": self._columns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._fingerprint = state["fingerprint"]
        self._initial, self._previous, self._index = state["initial"], state["previous"], state["index"]
        self._steps, self._columns = list(state["steps"]), list(state["columns"])
