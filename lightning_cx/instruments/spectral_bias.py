"""What of the target is still unlearned, from simple to complex, and which part is being learned now."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import Basis, complexity, laplacian_basis, octave_bands
from lightning_cx.instruments.band_history import BandHistory
from lightning_cx.instruments.base import Instrument
from lightning_cx.instruments.control import Control, ShuffledTwin, shuffled_probe
from lightning_cx.instruments.learning import Learning
from lightning_cx.instruments.reading import Reading
from lightning_cx.probe import ProbeReading
from lightning_cx.tensorboard import tags

SUMMARY = (
    tags.RESIDUAL_ENERGY,
    tags.RESIDUAL_MEDIAN,
    tags.WHITENESS,
    tags.SPECTRAL_BIAS_INDEX,
    tags.HIGH_COMPLEXITY_DOMINANCE,
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

    Raises:
        ValueError: If `control` is not known.
    """

    def __init__(self, per_band: bool = False, control: Control = None) -> None:
        self.per_band = per_band
        self._basis: Basis | None = None
        self._features: Tensor | None = None
        self._fingerprint: float | None = None
        self._learning = Learning()
        self._bands = BandHistory()
        self._twin = ShuffledTwin(control, lambda: SpectralBias(per_band), order_free=(tags.RESIDUAL_ENERGY,))

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        reading = self._measure(step, probe)
        return self._twin.beside(reading, lambda twin: twin.on_probe(step, shuffled_probe(probe)))

    def _measure(self, step: int, probe: ProbeReading) -> Reading:
        n, basis, residuals = len(probe.residuals), self._basis_on(probe.features), probe.residuals
        bands = octave_bands(basis.n_levels)
        band_tags = [tags.residual_band(number) for number in range(len(bands))]
        bad = int((~residuals.isfinite().all(1)).sum())
        if bad:
            why = f"{bad} of {n} residuals are NaN or infinite: inputs are, or training diverged"
            return Reading(dict.fromkeys((*SUMMARY, *band_tags), torch.nan), refusals=dict.fromkeys(SUMMARY, why))
        axis = complexity.Axis.without_constant(basis)
        varying = axis.energies(residuals.reshape(-1, 1))[0]
        self._learning.follow(varying, basis.vectors.T @ residuals)
        by_band = complexity.octave_energies(basis, residuals)
        self._bands.add(step, by_band)
        white = complexity.whiteness(
            varying, torch.bincount(axis.level_of), float(complexity.independent_outputs(residuals))
        )
        scalars = {
            tags.RESIDUAL_ENERGY: float(residuals.square().sum()) / n,
            tags.RESIDUAL_MEDIAN: float(complexity.median_position(basis, residuals)),
            tags.WHITENESS: float(white.ratio),
            tags.SPECTRAL_BIAS_INDEX: self._learning.spectral_bias,
            tags.HIGH_COMPLEXITY_DOMINANCE: self._learning.dominance,
            **dict(zip(band_tags, by_band.tolist(), strict=True)),
        }
        if self.per_band:
            scalars |= self._band_scalars(basis, bands)
        return Reading(scalars, pictures=self._bands.pictures(bands))

    def _band_scalars(self, basis: Basis, bands: list[tuple[int, int]]) -> dict[str, float]:
        rates = self._bands.rates()
        fitted = self._learning.fitted(basis.level_of, bands)
        scalars: dict[str, float] = {}
        for number in range(len(bands)):
            scalars[tags.fitted_fraction(number)] = float(fitted[number])
            scalars[tags.decay_rate(number)] = float(rates.rate[number])
            scalars[tags.half_life(number)] = float(rates.half_life[number])
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
        self._twin.reset()

    def state_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            **self._learning.state_dict(),
            **self._bands.state_dict(),
            **self._twin.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._fingerprint = state["fingerprint"]
        self._learning.load_state_dict(state)
        self._bands.load_state_dict(state)
        self._twin.load_state_dict(state)
