"""Instruments turn observations into the numbers that the functional room gives for the same data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import (
    energy_spectrum,
    gradient_spectrum,
    laplacian_basis,
    median_index,
    noise_scale,
    pool_noise_scales,
)
from lightning_cx.functional.complexity.basis import merge_levels
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import (
    BatchView,
    GradientNoise,
    GradientSpectrum,
    ModeScatter,
    SpectralBias,
    Spectrogram,
    quantities,
)
from lightning_cx.probe import ProbeReading


def gradients(n: int = 24, seed: int = 0, shift: float = 0.5) -> GradientSample:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 30, generator=generator, dtype=torch.float64) + shift
    gram = rows @ rows.T
    return GradientSample(batch_size=n, gram=gram, squared_norms=gram.diagonal())


def circle(n: int = 160) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return angle, torch.stack([angle.cos(), angle.sin()], 1)


def probe(residuals: Tensor, features: Tensor) -> ProbeReading:
    return ProbeReading(outputs=torch.zeros_like(residuals), residuals=residuals, features=features)


def test_noise_is_pooled_over_recent_batches_and_norms_are_those_of_the_last() -> None:
    instrument = GradientNoise()
    samples = [gradients(seed=s) for s in range(5)]
    for step, sample in enumerate(samples):
        reading = instrument.on_gradients(step, sample)
    pooled = pool_noise_scales([noise_scale(s.gram) for s in samples])
    assert reading.scalars[quantities.NOISE_SCALE] == pytest.approx(float(pooled.value))
    assert (
        reading.scalars[quantities.NOISE_SCALE_LOW]
        < reading.scalars[quantities.NOISE_SCALE]
        < reading.scalars[quantities.NOISE_SCALE_HIGH]
    )
    assert reading.scalars[quantities.GRADIENT_NORM] == pytest.approx(float(samples[-1].gram.mean().sqrt()))
    norms = samples[-1].gram.diagonal().sqrt()
    assert reading.scalars[quantities.EXAMPLE_NORM_P50] == pytest.approx(float(norms.median()), rel=0.05)
    torch.testing.assert_close(reading.histograms[quantities.EXAMPLE_NORMS], norms)


def test_a_batch_that_is_not_finite_does_not_spoil_the_pool() -> None:
    instrument = GradientNoise()
    instrument.on_gradients(0, gradients())
    bad = GradientSample(batch_size=24, gram=torch.full((24, 24), torch.nan, dtype=torch.float64))
    reading = instrument.on_gradients(1, bad)
    assert math.isnan(reading.scalars[quantities.NOISE_SCALE])
    assert "not finite" in reading.refusals[quantities.NOISE_SCALE]
    good = instrument.on_gradients(2, gradients())
    assert math.isfinite(good.scalars[quantities.NOISE_SCALE])


def test_one_example_has_norms_but_no_spread() -> None:
    reading = GradientNoise().on_gradients(0, gradients(1))
    assert math.isnan(reading.scalars[quantities.NOISE_SCALE])
    assert reading.scalars[quantities.EXAMPLE_NORM_P50] > 0
    assert "one example" in reading.refusals[quantities.NOISE_SCALE]


def test_gradients_that_follow_the_inputs_are_simple_and_those_that_do_not_are_not() -> None:
    angle, features = circle(64)
    smooth = torch.stack([torch.cos(k * angle) / (1 + k) for k in range(1, 12)], 1)
    rough = torch.randn(64, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    readings = {}
    for name, rows in {"smooth": smooth, "rough": rough}.items():
        sample = GradientSample(batch_size=64, gram=rows @ rows.T)
        readings[name] = GradientSpectrum().on_gradients(5, sample, BatchView(features))
        expected = gradient_spectrum(sample.gram, laplacian_basis(features))
        assert readings[name].scalars[quantities.GRADIENT_MEDIAN] == pytest.approx(float(expected.whole_median))
    chance_low = {name: reading.scalars[quantities.GRADIENT_MEDIAN_CHANCE_LOW] for name, reading in readings.items()}
    assert readings["smooth"].scalars[quantities.GRADIENT_MEDIAN] < chance_low["smooth"]
    assert readings["rough"].scalars[quantities.GRADIENT_MEDIAN] > chance_low["rough"]
    picture = readings["smooth"].pictures[quantities.GRADIENT_SPECTRUM]
    assert isinstance(picture, ModeScatter)
    assert picture.singular_values.shape == picture.medians.shape


def test_a_batch_too_small_to_order_is_refused_with_the_number_needed() -> None:
    reading = GradientSpectrum().on_gradients(0, gradients(8), BatchView(torch.randn(8, 3)))
    assert math.isnan(reading.scalars[quantities.GRADIENT_MEDIAN])
    assert "16 are needed" in reading.refusals[quantities.GRADIENT_MEDIAN]


def test_bands_add_up_to_the_residual_energy_and_the_median_is_that_of_the_spectrum() -> None:
    _, features = circle()
    residuals = torch.randn(160, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reading = SpectralBias().on_probe(0, probe(residuals, features))
    bands = [value for tag, value in reading.scalars.items() if "band" in tag]
    assert sum(bands) == pytest.approx(reading.scalars[quantities.RESIDUAL_ENERGY])
    assert sum(bands) == pytest.approx(residuals.square().sum().item() / 160)
    basis = laplacian_basis(features)
    energy, _ = merge_levels(energy_spectrum(basis, residuals), basis.complexity, basis.tolerance)
    expected = float(median_index(energy[1:])) / (len(energy) - 2)
    assert reading.scalars[quantities.RESIDUAL_MEDIAN] == pytest.approx(expected)
    assert expected == pytest.approx(0.5, abs=0.1)  # white


def test_a_network_that_learns_low_frequencies_first_has_a_positive_spectral_bias_index() -> None:
    angle, features = circle()
    instrument, mirrored = SpectralBias(), SpectralBias()
    readings = []
    for step in range(30):

        def residual(fast: float, slow: float, step: int = step) -> Tensor:
            low, high = torch.cos(2 * angle), torch.cos(40 * angle)
            return (low * math.exp(-fast * step) + high * math.exp(-slow * step)).unsqueeze(1)

        readings.append(instrument.on_probe(step, probe(residual(0.2, 0.02), features)))
        mirror = mirrored.on_probe(step, probe(residual(0.02, 0.2), features))
    assert math.isnan(readings[0].scalars[quantities.SPECTRAL_BIAS_INDEX])
    # Energies exp(-.4 t) and exp(-.04 t) sum to half at t = 4.3 or so: tanh((.2 - .02) t) there.
    index = readings[-1].scalars[quantities.SPECTRAL_BIAS_INDEX]
    half = next(t / 1000 for t in range(10**5) if math.exp(-0.4 * t / 1000) + math.exp(-0.04 * t / 1000) <= 1)
    assert index == pytest.approx(math.tanh(0.18 * half), abs=0.01)
    assert mirror.scalars[quantities.SPECTRAL_BIAS_INDEX] == pytest.approx(-index, abs=0.01)
    picture = readings[-1].pictures[quantities.RESIDUAL_SPECTROGRAM]
    assert isinstance(picture, Spectrogram)
    assert picture.values.shape == (30, len(picture.bands))


def test_a_residual_that_is_not_finite_is_refused() -> None:
    _, features = circle()
    reading = SpectralBias().on_probe(0, probe(torch.full((160, 1), torch.nan).double(), features))
    assert math.isnan(reading.scalars[quantities.RESIDUAL_ENERGY])
    assert "160 of 160 residuals are NaN" in reading.refusals[quantities.RESIDUAL_ENERGY]
    assert not reading.pictures


def steps_of(instrument: SpectralBias) -> list[int]:
    return [step for step, _ in instrument.state_dict()["columns"]["entries"]]


def test_another_probe_starts_the_history_anew_and_the_same_probe_continues_it() -> None:
    _, features = circle()
    residuals = torch.randn(160, 2).double()
    first = SpectralBias()
    first.on_probe(0, probe(residuals, features))
    resumed = SpectralBias()
    resumed.load_state_dict(first.state_dict())
    resumed.on_probe(7, probe(residuals, features.clone()))
    assert steps_of(resumed) == [0, 7]
    other = SpectralBias()
    other.load_state_dict(first.state_dict())
    other.on_probe(7, probe(residuals, features * 2))
    assert steps_of(other) == [7]


def test_a_long_history_is_thinned_and_keeps_its_ends() -> None:
    _, features = circle(128)
    instrument = SpectralBias()
    held = probe(torch.randn(128, 1).double(), features)
    for step in range(1100):
        instrument.on_probe(step, held)
    steps = steps_of(instrument)
    assert len(steps) <= 1024
    assert steps[0] == 0
    assert steps[-1] == 1099


@pytest.mark.parametrize("instrument", [GradientNoise(), GradientSpectrum()])
def test_nothing_to_see_gives_an_empty_reading(instrument: GradientNoise | GradientSpectrum) -> None:
    reading = instrument.on_gradients(0, GradientSample(8), BatchView())
    assert not reading.scalars
    assert not reading.pictures
