"""What of the target is still unlearned, from simple to complex, and which part is being learned now."""

from __future__ import annotations

from collections import deque
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import (
    Basis,
    complexity,
    decay_rates,
    fitted_fraction,
    laplacian_basis,
    octave_bands,
    spectral_bias_index,
)
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import BandDecay, Instrument, Picture, Reading, Spectrogram
from lightning_cx.instruments.control import Control, ShuffledControl, shuffled_probe
from lightning_cx.instruments.histories import Thinned
from lightning_cx.probe import ProbeReading

SUMMARY = (
    quantities.RESIDUAL_ENERGY,
    quantities.RESIDUAL_MEDIAN,
    quantities.WHITENESS,
    quantities.SPECTRAL_BIAS_INDEX,
    quantities.HIGH_COMPLEXITY_DOMINANCE,
)


@final
class SpectralBias(Instrument):
    """Residual energy on the fixed probe by octave band of complexity, and what that says about learning.

    Band 0 is the mean residual; each further band holds functions about twice as rough over the probe as the last.
    In a healthy run the low bands empty first. When they lie as low as the top bands and only the top bands still
    fall, the network is fitting noise.

    All but the bands leave the constant out: a residual of pure noise has its median at .5. The whiteness distance is
    in units of what white noise stays below in 95% of all cases. Dominance is that of the last five readings.

    Args:
        per_band: Log fitted fraction, decay rate and half-life of each band as well. A rate is that of the last 16
            readings, and nan before the sixth.
        control: `"shuffle"` logs every number that depends on the order of the examples again with the examples
            shuffled, under `<tag>_shuffled`.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `control` is not known.
    """

    tags = SUMMARY

    def __init__(self, per_band: bool = False, control: Control = None, *, name: str = "") -> None:
        super().__init__(name)
        self.control = control
        self.per_band = per_band
        self._basis: Basis | None = None
        self._features: Tensor | None = None
        self._fingerprint: float | None = None
        self._learning = Learning()
        self._bands = BandHistory()
        self._shuffled = ShuffledControl(
            control, lambda: SpectralBias(per_band), order_free=(quantities.RESIDUAL_ENERGY,)
        )

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        reading = self._measure(step, probe)
        if self.control is None:
            return reading
        return self._shuffled.beside(reading, lambda other: other.on_probe(step, shuffled_probe(probe)))

    def _measure(self, step: int, probe: ProbeReading) -> Reading:
        n, basis, residuals = len(probe.residuals), self._basis_on(probe.features), probe.residuals
        bands = octave_bands(basis.n_levels)
        band_tags = [quantities.residual_band(number) for number in range(len(bands))]
        bad = int((~residuals.isfinite().all(1)).sum())
        if bad or probe.no_residual:
            diverged = f"{bad} of {n} residuals are NaN or infinite: inputs are, or training diverged"
            why = probe.no_residual or diverged
            return Reading(dict.fromkeys((*SUMMARY, *band_tags), torch.nan), refusals=dict.fromkeys(SUMMARY, why))
        of_signs = bool(probe.flat) and not bool((residuals == 0).all(1).any())  # no example is right
        axis = complexity.Axis.without_constant(basis)
        varying = axis.energies(residuals.reshape(-1, 1))[0]
        self._learning.follow(varying, basis.vectors.T @ residuals)
        by_band = complexity.octave_energies(basis, residuals)
        self._bands.add(step, by_band)
        white = complexity.whiteness(
            varying, torch.bincount(axis.level_of), float(complexity.independent_outputs(residuals))
        )
        scalars = {
            quantities.RESIDUAL_ENERGY: float("nan") if of_signs else float(residuals.square().sum()) / n,
            quantities.RESIDUAL_MEDIAN: float(complexity.median_position(basis, residuals)),
            quantities.WHITENESS: float(white.ratio),
            quantities.SPECTRAL_BIAS_INDEX: self._learning.spectral_bias,
            quantities.HIGH_COMPLEXITY_DOMINANCE: self._learning.dominance,
            **dict(zip(band_tags, by_band.tolist(), strict=True)),
        }
        if self.per_band:
            scalars |= self._band_scalars(basis, bands)
        refusals = {quantities.RESIDUAL_ENERGY: probe.flat} if of_signs else {}
        return Reading(scalars, pictures=self._bands.pictures(bands), refusals=refusals)

    def _band_scalars(self, basis: Basis, bands: list[tuple[int, int]]) -> dict[str, float]:
        rates = self._bands.rates()
        fitted = self._learning.fitted(basis.level_of, bands)
        scalars: dict[str, float] = {}
        for number in range(len(bands)):
            scalars[quantities.fitted_fraction(number)] = float(fitted[number])
            scalars[quantities.decay_rate(number)] = float(rates.rate[number])
            scalars[quantities.half_life(number)] = float(rates.half_life[number])
        return scalars

    def _basis_on(self, features: Tensor) -> Basis:
        if self._basis is None or self._features is not features:
            self._basis, self._features = laplacian_basis(features), features
            fingerprint = float(features.square().sum())
            if self._fingerprint is not None and abs(fingerprint - self._fingerprint) > 1e-9 * fingerprint:
                self._start_afresh()  # another probe: nothing before it is comparable
            self._fingerprint = fingerprint
        return self._basis

    def _start_afresh(self) -> None:
        self._learning.reset()
        self._bands.reset()

    def reset(self) -> None:
        self._start_afresh()
        self._shuffled.reset()

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            **self._learning.state_dict(),
            **self._bands.state_dict(),
            **self._shuffled.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._fingerprint = state["fingerprint"]
        self._learning.load_state_dict(state)
        self._bands.load_state_dict(state)
        self._shuffled.load_state_dict(state)


WINDOW = 5  # readings back over which dominance is measured (THEORY 5 measured its rules so)


class Learning:
    """Spectral bias index, dominance and fitted fractions against the first residual that was seen."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.spectral_bias = torch.nan  # until half of the energy is gone
        self.dominance = torch.nan  # until there are enough readings
        self._initial: Tensor | None = None
        self._recent: deque[Tensor] = deque(maxlen=WINDOW + 1)
        self._first_coefficients: Tensor | None = None
        self._coefficients: Tensor | None = None

    def follow(self, energy: Tensor, coefficients: Tensor) -> None:
        """Add one residual: level energies ``[L]`` without the constant, coefficients ``[K, C]`` in the whole basis."""
        if self._initial is None:
            self._initial, self._first_coefficients = energy, coefficients
        elif self.spectral_bias != self.spectral_bias:  # the first crossing counts
            at_half = complexity.energies_at_half(self._initial, self._recent[-1], energy)
            if at_half is not None:
                self.spectral_bias = float(spectral_bias_index(self._initial, at_half))
        self._recent.append(energy)
        self._coefficients = coefficients
        self.dominance = torch.nan
        if len(self._recent) == self._recent.maxlen:
            self.dominance = float(complexity.high_complexity_dominance(self._initial, self._recent[0], energy))

    def fitted(self, level_of: Tensor, bands: list[tuple[int, int]]) -> Tensor:
        """Return the fitted fraction of each band ``[B]``; nan if outputs were added or removed since the start."""
        first, now = self._first_coefficients, self._coefficients
        if first is None or now is None or first.shape != now.shape:
            return torch.full((len(bands),), torch.nan, dtype=torch.float64)
        return fitted_fraction(first, now, level_of, bands)

    def state_dict(self) -> dict[str, Any]:
        return {
            "index": self.spectral_bias,
            "initial": self._initial,
            "window": list(self._recent),
            "first_coefficients": self._first_coefficients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.spectral_bias = state["index"]
        self._initial = state["initial"]
        self._recent.extend(state["window"])
        self._first_coefficients = state["first_coefficients"]


MAX_COLUMNS = 1024  # of a picture
RATE_READINGS = 16  # a rate is that of the present; more readings would span phases that differ


class BandHistory:
    """Energies of the bands at the readings so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._columns: Thinned[tuple[int, Tensor]] = Thinned(MAX_COLUMNS)
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=RATE_READINGS)

    def add(self, step: int, bands: Tensor) -> None:
        """Add the energies ``[B]`` of one reading."""
        self._columns.add((step, bands))
        self._recent.append((step, bands))

    def rates(self) -> complexity.DecayRates:
        """Return how fast each band falls at present."""
        steps = torch.tensor([step for step, _ in self._recent])
        return decay_rates(steps, torch.stack([bands for _, bands in self._recent]))

    def pictures(self, bands: list[tuple[int, int]]) -> dict[str, Picture]:
        """Return the pictures of all readings so far; bands are half-open ranges of levels."""
        labels = ["mean", *(f"{start}" if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in bands[1:])]
        steps, columns = zip(*self._columns.to_now(), strict=True)
        values = torch.stack(columns)
        spectrogram = Spectrogram(
            steps=steps,
            values=values,
            bands=labels,
            title="What is still unlearned: residual energy on the probe by complexity",
            reading="Simple functions of the data at the bottom, complex ones on top. A healthy run darkens from the "
            "bottom up; once only the top still darkens, the network is fitting noise.",
        )
        decay = BandDecay(
            steps=steps,
            values=values,
            bands=labels,
            half_lives=self.rates().half_life.tolist(),
            title="How fast each band is learned: residual energy on the probe",
            reading="One line for each band of complexity, dark for simple and light for complex. In a healthy run the "
            "dark lines fall first; when they have levelled off and the light ones still fall, noise is being fitted.",
        )
        return {quantities.RESIDUAL_SPECTROGRAM: spectrogram, quantities.BAND_DECAY: decay}

    def state_dict(self) -> dict[str, Any]:
        return {"columns": self._columns.state_dict(), "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self._columns.load_state_dict(state["columns"])
        self._recent.extend(state["recent"])
