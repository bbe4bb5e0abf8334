"""The interference instrument: the numbers of the functional room, per layer, on batch and probe, with its control."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import default_features, interference_profile, laplacian_basis
from lightning_cx.gradients import GradientSample, LayerGradients
from lightning_cx.instruments import (
    BandDecay,
    BatchView,
    GradientNoise,
    GradientSpectrum,
    Interference,
    ModeScatter,
    Reading,
    SpectralBias,
    quantities,
)
from lightning_cx.instruments.control import shuffled_gradients, shuffled_probe
from lightning_cx.instruments.gradient_spectrum import EARLIER_STEPS
from lightning_cx.probe import ProbeReading


def circle(n: int = 64) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return angle, torch.stack([angle.cos(), angle.sin()], 1)


def smooth_rows(n: int = 64, power: float = 1.0, seed: int = 0) -> Tensor:
    """Gradients that follow the circle, the faster waves weaker, mixed over 100 parameters."""
    angle, _ = circle(n)
    frequencies = torch.arange(1, n // 2).double()
    waves = torch.cat([torch.cos(frequencies * angle[:, None]), torch.sin(frequencies * angle[:, None])], 1)
    sizes = torch.cat([frequencies, frequencies]) ** -power
    mixing = torch.randn(waves.shape[1], 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (waves * sizes) @ mixing


def rough_rows(n: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(n, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_of(**layers: Tensor) -> GradientSample:
    grams = {name.replace("__", "."): rows @ rows.T for name, rows in layers.items()}
    gram = sum(grams.values())
    assert isinstance(gram, Tensor)
    known = {name: LayerGradients("AddmmBackward0", own) for name, own in grams.items()}
    return GradientSample(len(gram), gram=gram, squared_norms=gram.diagonal(), layers=known)


def on_batch(sample: GradientSample, features: Tensor | None, step: int = 0) -> tuple[int, GradientSample, BatchView]:
    return step, sample, BatchView(features)


def test_a_batch_shows_the_profile_of_its_gram_on_its_own_graph() -> None:
    _, features = circle()
    sample = sample_of(layer__weight=smooth_rows())
    reading = Interference().on_gradients(*on_batch(sample, features))
    expected = interference_profile(sample.gram, laplacian_basis(features), shuffles=0)
    assert reading.scalars == {
        quantities.INTERFERENCE: float(expected.cii),
        quantities.INTERFERENCE_P: float(expected.p_value),
        quantities.RANK_CORRELATION: float(expected.rank_correlation),
    }
    assert reading.scalars[quantities.INTERFERENCE] > 0.6
    assert reading.scalars[quantities.INTERFERENCE_P] < 0.01
    rough = Interference().on_gradients(*on_batch(sample_of(layer__weight=rough_rows()), features))
    assert abs(rough.scalars[quantities.INTERFERENCE]) < 0.25


def test_layers_are_measured_apart_on_request_the_parameters_of_one_together() -> None:
    _, features = circle()
    sample = sample_of(body__weight=smooth_rows(), body__bias=smooth_rows(seed=3), head__weight=rough_rows())
    instrument = Interference(per_layer=True)
    assert instrument.needs.per_layer
    scalars = instrument.on_gradients(*on_batch(sample, features)).scalars
    body = sample.layers["body.weight"].gram + sample.layers["body.bias"].gram
    expected = interference_profile(body, laplacian_basis(features), shuffles=0)
    assert scalars[quantities.of_layer(quantities.INTERFERENCE, "body")] == float(expected.cii)
    assert scalars[quantities.of_layer(quantities.INTERFERENCE, "body")] > 0.6
    assert abs(scalars[quantities.of_layer(quantities.INTERFERENCE, "head")]) < 0.25
    assert set(scalars) == {
        f"{tag}{layer}"
        for tag in (quantities.INTERFERENCE, quantities.INTERFERENCE_P, quantities.RANK_CORRELATION)
        for layer in ("", "_layers/body", "_layers/head")
    }


def test_the_probe_is_measured_from_its_own_gradients() -> None:
    _, features = circle(160)
    sample = sample_of(layer__weight=smooth_rows(160)[:100])
    residuals = torch.zeros(160, 1).double()
    reading = ProbeReading(residuals, residuals, features, gradients=sample)
    instrument = Interference(on="probe", examples=100)
    assert instrument.needs.probe_gradients == 100
    assert instrument.shown == {"on_probe"}
    scalars = instrument.on_probe(0, reading).scalars
    expected = interference_profile(sample.gram, laplacian_basis(features[:100]), shuffles=0)
    assert scalars[quantities.PROBE_INTERFERENCE] == float(expected.cii)
    assert not instrument.on_probe(0, replace(reading, gradients=None)).scalars


@pytest.mark.parametrize("instrument", [Interference, GradientSpectrum])
def test_a_shuffled_twin_stands_beside_each_number_of_the_gradients(instrument) -> None:
    _, features = circle()
    step, sample, batch = on_batch(sample_of(layer__weight=smooth_rows()), features)
    plain, controlled = (
        made.on_gradients(step, sample, batch) for made in (instrument(), instrument(control="shuffle"))
    )
    by_hand = instrument().on_gradients(step, shuffled_gradients(sample), batch)
    for tag, value in plain.scalars.items():
        assert controlled.scalars[tag] == value
        if tag == quantities.PARTICIPATION_RATIO:
            assert quantities.shuffled(tag) not in controlled.scalars
        else:
            assert controlled.scalars[quantities.shuffled(tag)] == by_hand.scalars[tag]
    assert controlled.pictures.keys() == plain.pictures.keys()


def test_shuffling_takes_the_principle_away_and_leaves_strength_alone() -> None:
    _, features = circle()
    sample = sample_of(layer__weight=smooth_rows())
    scalars = Interference(control="shuffle", per_layer=True).on_gradients(*on_batch(sample, features)).scalars
    assert scalars[quantities.INTERFERENCE] > 0.6
    assert abs(scalars[quantities.shuffled(quantities.INTERFERENCE)]) < 0.25
    assert abs(scalars[quantities.shuffled(quantities.of_layer(quantities.INTERFERENCE, "layer"))]) < 0.25
    other = shuffled_gradients(sample)
    torch.testing.assert_close(other.gram.diagonal().sort().values, sample.gram.diagonal().sort().values)
    assert torch.equal(shuffled_gradients(sample).gram, other.gram), "another order at every step"
    assert torch.equal(shuffled_probe(decaying_probe(0)).features, decaying_probe(0).features)


def decaying_probe(step: int, n: int = 160) -> ProbeReading:
    angle, features = circle(n)
    waves = [torch.cos(k * angle) * math.exp(-rate * step) for k, rate in ((2, 0.2), (9, 0.1), (40, 0.02))]
    residuals = sum(waves)[:, None] + 0.3
    return ProbeReading(torch.zeros_like(residuals), residuals, features)


def test_each_band_shows_its_fitted_fraction_rate_and_half_life_on_request() -> None:
    instrument = SpectralBias(per_band=True)
    for step in range(12):
        scalars = instrument.on_probe(step, decaying_probe(step)).scalars
    bands = {2: 0.2, 4: 0.1, 6: 0.02}  # levels 2-3, 8-15 and 32-63
    for number, rate in bands.items():
        assert scalars[quantities.fitted_fraction(number)] == pytest.approx(1 - math.exp(-11 * rate), abs=0.01)
        assert scalars[quantities.decay_rate(number)] == pytest.approx(2 * rate, rel=0.05)
        assert scalars[quantities.half_life(number)] == pytest.approx(math.log(2) / (2 * rate), rel=0.05)
    assert scalars[quantities.fitted_fraction(0)] == pytest.approx(0, abs=1e-9)
    assert scalars[quantities.half_life(0)] == math.inf
    assert quantities.fitted_fraction(0) not in SpectralBias().on_probe(0, decaying_probe(0)).scalars


def test_rates_are_unknown_until_there_are_enough_readings_to_tell() -> None:
    instrument = SpectralBias(per_band=True)
    for step in range(6):
        scalars = instrument.on_probe(step, decaying_probe(step)).scalars
        assert math.isnan(scalars[quantities.decay_rate(2)]) == (step < 5)
        assert math.isnan(scalars[quantities.HIGH_COMPLEXITY_DOMINANCE]) == (step < 5)


def test_dominance_turns_from_the_simple_to_the_complex_side() -> None:
    instrument = SpectralBias()
    seen = [instrument.on_probe(s, decaying_probe(s)).scalars[quantities.HIGH_COMPLEXITY_DOMINANCE] for s in range(60)]
    assert seen[5] < 0.3
    assert seen[-1] > 0.9


def test_whiteness_is_in_units_of_its_limit_and_tells_noise_from_structure() -> None:
    _, features = circle(160)
    noise = torch.randn(160, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    readings = [SpectralBias().on_probe(0, ProbeReading(r, r, features)) for r in (noise, decaying_probe(0).residuals)]
    white, structured = (reading.scalars[quantities.WHITENESS] for reading in readings)
    assert white < 1 < structured


def test_the_control_of_the_residual_is_white_from_the_start() -> None:
    scalars = SpectralBias(control="shuffle").on_probe(0, decaying_probe(0)).scalars
    assert scalars[quantities.RESIDUAL_MEDIAN] < 0.3
    assert scalars[quantities.shuffled(quantities.RESIDUAL_MEDIAN)] == pytest.approx(0.5, abs=0.1)
    assert scalars[quantities.shuffled(quantities.WHITENESS)] < 1
    assert quantities.shuffled(quantities.RESIDUAL_ENERGY) not in scalars


def test_the_bands_are_drawn_with_their_half_lives() -> None:
    instrument = SpectralBias()
    for step in range(12):
        reading = instrument.on_probe(step, decaying_probe(step))
    picture = reading.pictures[quantities.BAND_DECAY]
    assert isinstance(picture, BandDecay)
    assert picture.values.shape == (12, len(picture.bands))
    assert len(picture.half_lives) == len(picture.bands)
    assert picture.half_lives[2] == pytest.approx(math.log(2) / 0.4, rel=0.05)


def test_the_modes_of_earlier_steps_stand_behind_the_present_ones_evenly_over_the_run() -> None:
    _, features = circle()
    instrument = Interference()
    for step in range(0, 400, 10):
        reading = instrument.on_gradients(*on_batch(sample_of(layer__weight=smooth_rows()), features, step))
    picture = reading.pictures[quantities.GRADIENT_SPECTRUM]
    assert isinstance(picture, ModeScatter)
    steps = [step for step, _, _ in picture.earlier]
    assert picture.step == 390
    assert 3 < len(steps) <= EARLIER_STEPS
    assert steps[0] == 0
    assert len({later - earlier for earlier, later in pairwise(steps)}) == 1


@pytest.mark.parametrize(
    "make", [lambda: SpectralBias(True, "shuffle"), lambda: Interference(control="shuffle"), GradientNoise]
)
def test_a_resumed_instrument_goes_on_where_it_was(make) -> None:
    _, features = circle()

    def show(instrument, step: int) -> Reading:
        if "on_probe" in instrument.shown:
            return instrument.on_probe(step, decaying_probe(step))
        return instrument.on_gradients(step, sample_of(layer__weight=smooth_rows(seed=step)), BatchView(features))

    whole, first, second = make(), make(), make()
    for step in range(10):
        expected = show(whole, step)
        if step < 5:
            show(first, step)
    second.load_state_dict(first.state_dict())
    for step in range(5, 10):
        seen = show(second, step)
    assert seen.scalars == pytest.approx(expected.scalars, nan_ok=True)
    assert seen.pictures.keys() == expected.pictures.keys()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (sample_of(w=rough_rows(8)), "8 examples are too few to order them: 16 are needed"),
        (GradientSample(32, gram=torch.full((32, 32), math.nan).double()), "not finite"),
        (GradientSample(32, gram=torch.ones(32, 32).double()), "do not differ between examples"),
    ],
)
def test_what_cannot_be_measured_is_nan_with_the_reason(sample, message) -> None:
    features = default_features(torch.randn(32, 3))
    reading = Interference().on_gradients(*on_batch(sample, features))
    assert all(math.isnan(value) for value in reading.scalars.values())
    assert message in reading.refusals[quantities.INTERFERENCE]


@pytest.mark.parametrize("instrument", [Interference, GradientSpectrum])
def test_features_that_tell_nothing_apart_are_refused_with_the_reason(instrument) -> None:
    reading = instrument().on_gradients(*on_batch(sample_of(w=rough_rows(32)), torch.ones(32, 2)))
    tag = next(iter(reading.refusals))
    assert math.isnan(reading.scalars[tag])
    assert "gives no order" in reading.refusals[tag]


def test_without_features_nothing_is_claimed_and_without_gradients_nothing_said() -> None:
    reading = Interference().on_gradients(*on_batch(sample_of(w=rough_rows()), None))
    assert all(math.isnan(value) for value in reading.scalars.values())
    assert not Interference(control="shuffle").on_gradients(*on_batch(GradientSample(32), None)).scalars


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interference(on="validation"), '"batch" or "probe", got \'validation\''),
        (lambda: Interference(control="rotate"), "got 'rotate'"),
        (lambda: SpectralBias(control="rotate"), "got 'rotate'"),
        (lambda: GradientSpectrum(control="rotate"), "got 'rotate'"),
        (lambda: Interference(examples=4), "16 examples are needed"),
    ],
)
def test_settings_that_are_not_known_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
