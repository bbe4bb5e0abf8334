"""The instrument pools sampled batches and says of their noise what the functional room says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_cx.functional import alpha_ecf, hill, tail_report, xi_dedh
from lightning_cx.functional.tails.pooling import without_drift
from lightning_cx.functional.tails.stable import elliptical_stable
from lightning_cx.gradients import GradientSample, LayerGradients
from lightning_cx.instruments import ParameterStep, QuantilePlot, Reading, SurvivalPlot, TailIndex, quantities
from lightning_cx.instruments.tail_index import BATCH, COORDINATES, NORMS, SINGLE, TAGS, TRAJECTORY


def rows(n: int, seed: int, alpha: float = 2.0) -> Tensor:
    return elliptical_stable(alpha, n, 200, torch.Generator().manual_seed(seed)) + 0.2


DIRECTIONS = torch.randn(200, 16, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def sample(gradients: Tensor, **options: object) -> GradientSample:
    gram = gradients @ gradients.T
    projections = gradients @ DIRECTIONS
    return GradientSample(
        batch_size=len(gradients),
        gram=gram,
        squared_norms=gram.diagonal(),
        projections=projections,
        **options,  # type: ignore[arg-type]
    )


def shown(instrument: TailIndex, count: int, n: int, alpha: float = 2.0) -> list[Reading]:
    return [instrument.on_gradients(s, sample(rows(n, s, alpha))) for s in range(count)]


def last(instrument: TailIndex, count: int, n: int, alpha: float = 2.0) -> Reading:
    """The last reading with numbers."""
    return [reading for reading in shown(instrument, count, n, alpha) if reading.scalars][-1]


def test_numbers_begin_at_512_examples_and_come_with_each_new_eighth() -> None:
    readings = shown(TailIndex(), 40, 32)
    waiting, first, later = readings[:15], readings[15], readings[16:]
    assert all(math.isnan(r.scalars[tag]) for r in waiting for tag in TAGS)
    assert all(not r.refusals for r in waiting)
    assert waiting[0].texts[quantities.TAIL_VERDICT] == (
        "**waiting**: 32 of 512 examples pooled so far. A tail cannot be read from fewer."
    )
    assert math.isfinite(first.scalars[quantities.TAIL_INDEX])
    given = [16 + i for i, r in enumerate(later) if r.scalars]
    held = 512
    expected = []
    new = 0
    for batch in range(16, 40):
        held, new = held + 32, new + 32
        if new * 8 >= held:
            expected.append(batch)
            new = 0
    assert given == expected


def test_the_first_full_window_is_read_at_once() -> None:
    readings = shown(TailIndex(), 70, 32)
    given = [i for i, r in enumerate(readings) if r.scalars]
    assert 63 in given
    assert 64 not in given


def test_the_numbers_are_those_of_the_report_on_the_pooled_noise() -> None:
    instrument = TailIndex(seed=2)
    readings = shown(instrument, 16, 64, alpha=1.6)
    last = max(i for i, r in enumerate(readings) if r.scalars and math.isfinite(r.scalars[quantities.TAIL_INDEX]))
    centred = [rows(64, s, 1.6) - rows(64, s, 1.6).mean(0) for s in range(last + 1)]
    noise = torch.cat([c @ DIRECTIONS for c in centred])
    norms = torch.cat([c.norm(dim=1) for c in centred])
    both = without_drift(torch.cat([noise, norms[:, None]], 1), torch.arange(last + 1).repeat_interleave(64))
    report = tail_report(both[:, :-1], 64, seed=2, projections=None, norms=both[:, -1])
    scalars = readings[last].scalars
    expected = [report.alpha, report.alpha_low, report.alpha_high]
    assert [scalars[tag] for tag in SINGLE] == pytest.approx([float(v) for v in expected], rel=1e-6)
    expected = [report.xi, report.xi_low, report.xi_high, report.hill]
    assert [scalars[tag] for tag in NORMS] == pytest.approx([float(v) for v in expected], rel=1e-6)
    assert all(math.isnan(scalars[tag]) for tag in BATCH)  # 16 batches give 64 sums of 16, not of 64


def test_the_index_of_a_batch_comes_with_64_batches_and_agrees_with_its_law() -> None:
    for alpha, verdict in ((2.0, 0.0), (1.4, 2.0)):
        full = shown(TailIndex(), 64, 32, alpha)[-1]
        assert full.scalars[quantities.TAIL_BATCH_INDEX] == pytest.approx(alpha, abs=0.4)
        assert full.scalars[quantities.TAIL_BATCH_INDEX_LOW] < alpha + 1e-9
        assert full.scalars[quantities.TAIL_VERDICT] == verdict
        assert "Verdicts: -1 indeterminate, 0 gaussian" in full.texts[quantities.TAIL_VERDICT]


def test_heavy_examples_that_average_away_are_called_so() -> None:
    instrument = TailIndex()
    for step in range(64):
        generator = torch.Generator().manual_seed(1000 + step)
        scale = torch.where(torch.rand(64, generator=generator) < 0.1, 10.0, 1.0).double()
        reading = instrument.on_gradients(step, sample(rows(64, step) * scale[:, None]))
    assert reading.scalars[quantities.TAIL_INDEX] < 1.5
    assert reading.scalars[quantities.TAIL_BATCH_INDEX] > 1.8
    assert reading.scalars[quantities.TAIL_VERDICT] == 1
    assert reading.texts[quantities.TAIL_VERDICT].startswith(
        "**heavy-aggregates-to-gaussian** (1): single samples are heavy"
    )


def test_a_known_batch_size_of_the_step_is_used() -> None:
    """Four accumulated batches of 8: a step sums 32."""
    full = shown(TailIndex(batch_size=32), 256, 8)[-1]
    assert math.isfinite(full.scalars[quantities.TAIL_BATCH_INDEX])
    assert math.isnan(last(TailIndex(batch_size=64), 256, 8).scalars[quantities.TAIL_BATCH_INDEX])


def test_pictures_show_single_examples_their_sums_and_the_norms() -> None:
    pictures = last(TailIndex(), 32, 32).pictures
    quantiles, survival = pictures[quantities.TAIL_QUANTILES], pictures[quantities.TAIL_SURVIVAL]
    assert isinstance(quantiles, QuantilePlot)
    assert isinstance(survival, SurvivalPlot)
    assert {name: len(values) for name, values in quantiles.samples.items()} == {
        "single examples": 960,
        "sums of 15": 64,
    }
    assert survival.magnitudes.shape == (960,)
    assert math.isnan(survival.index)  # normal noise has no power law
    heavy = last(TailIndex(), 32, 32, alpha=1.2).pictures[quantities.TAIL_SURVIVAL]
    assert isinstance(heavy, SurvivalPlot)
    assert heavy.index == pytest.approx(float(hill(heavy.magnitudes).index))
    assert heavy.tail == 62


def test_each_layer_has_its_own_index_on_request() -> None:
    instrument = TailIndex(per_layer=True)
    for step in range(16):
        first, second = rows(64, step) @ DIRECTIONS, rows(64, 100 + step, alpha=1.3) @ DIRECTIONS
        layers = {
            "a.weight": LayerGradients("node", projections=first * 0.25),
            "a.bias": LayerGradients("node", projections=first * 0.75),
            "b.weight": LayerGradients("node", projections=second),
        }
        reading = instrument.on_gradients(step, sample(rows(64, step), layers=layers))
    assert reading.scalars["tail/index_layers/a"] == pytest.approx(reading.scalars[quantities.TAIL_INDEX], abs=1e-3)
    assert reading.scalars["tail/index_layers/b"] == pytest.approx(1.3, abs=0.2)
    assert instrument.needs.per_layer


def test_pooled_coordinates_come_beside_their_control() -> None:
    scales = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    instrument = TailIndex(coordinates=200)
    for step in range(10):
        gradients = rows(64, step) * scales
        reading = instrument.on_gradients(step, sample(gradients, coordinates=gradients))
    assert instrument.needs.coordinates == 200
    assert reading.scalars[COORDINATES[0]] == pytest.approx(reading.scalars[COORDINATES[1]], abs=0.2)
    assert reading.scalars[COORDINATES[0]] < 1.8  # the lie
    assert reading.scalars[quantities.TAIL_INDEX] > 1.95  # the truth


def steps(count: int, seed: int = 0) -> list[Tensor]:
    """Parameter steps with a power-law length, index 2.5, that shrink as the step size does."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(count, generator=generator, dtype=torch.float64) ** (-1 / 2.5)
    decay = torch.exp(-torch.arange(count) / 500.0)
    return list(torch.randn(count, 64, generator=generator, dtype=torch.float64) * (lengths * decay)[:, None])


def test_steps_of_the_parameters_have_a_tail_from_128_on() -> None:
    instrument = TailIndex()
    readings = [instrument.on_step(i, ParameterStep(s, s)) for i, s in enumerate(steps(600))]
    assert all(math.isnan(r.scalars[tag]) for r in readings[:127] for tag in TRAJECTORY)
    given = [i for i, r in enumerate(readings) if i >= 127 and r.scalars]
    assert given == [127 + 16 * i for i in range(len(given))]
    level = without_drift(torch.stack(steps(600)[: given[-1] + 1]), torch.arange(given[-1] + 1), 33)
    norms = (level - level.mean(0)).norm(dim=1)
    scalars = readings[given[-1]].scalars
    xi, power = xi_dedh(norms), hill(norms)
    expected = [float(v) for v in (xi.index, xi.low, xi.high, power.index)]
    assert [scalars[tag] for tag in TRAJECTORY] == pytest.approx(expected)
    assert scalars[quantities.TAIL_TRAJECTORY_HILL] == pytest.approx(2.5, rel=0.34)


def test_steps_that_changed_nothing_or_are_not_finite_do_not_count() -> None:
    instrument = TailIndex()
    for bad in (torch.zeros(64), torch.full((64,), math.nan)):
        for _ in range(200):
            reading = instrument.on_step(0, ParameterStep(bad, bad))
            assert math.isnan(reading.scalars[quantities.TAIL_TRAJECTORY_XI])
    quiet = TailIndex(trajectory=False)
    assert quiet.shown == {"on_gradients"}
    assert quiet.on_step(0, ParameterStep(bad, bad)) == Reading()


def test_a_batch_that_says_nothing_is_refused_with_the_reason() -> None:
    instrument = TailIndex(coordinates=10)
    for gradients, why in (
        (torch.full((16, 200), math.nan, dtype=torch.float64), "not finite"),
        (rows(16, 0) * 1e200, "not finite"),  # squares overflow
        (rows(3, 0), "a batch of 3 is too small to subtract its mean: 4 are needed"),
    ):
        reading = instrument.on_gradients(0, sample(gradients))
        assert set(reading.scalars) == {*TAGS, *COORDINATES}
        assert all(math.isnan(value) for value in reading.scalars.values())
        assert all(why in reason for reason in reading.refusals.values())
    assert instrument.on_gradients(0, GradientSample(8)) == Reading()
    assert math.isnan(shown(instrument, 1, 64)[0].scalars[quantities.TAIL_INDEX])  # and the pool is still empty


def test_a_model_that_has_nothing_left_to_learn_is_refused() -> None:
    instrument = TailIndex()
    for step in range(16):
        gradients = rows(64, step)
        gradients[:40] = 0
        reading = instrument.on_gradients(step, sample(gradients))
    assert math.isnan(reading.scalars[quantities.TAIL_INDEX])
    assert math.isnan(reading.scalars[quantities.TAIL_VERDICT])
    assert "62% of the examples have no gradient at all" in reading.refusals[quantities.TAIL_INDEX]


def test_a_resumed_instrument_goes_on_where_it_was() -> None:
    whole, first, second = TailIndex(per_layer=True), TailIndex(per_layer=True), TailIndex(per_layer=True)
    increments = steps(300)

    def show(instrument: TailIndex, span: range) -> list[Reading]:
        seen = []
        for step in span:
            layers = {"a.weight": LayerGradients("node", projections=rows(32, step) @ DIRECTIONS)}
            seen.append(instrument.on_gradients(step, sample(rows(32, step), layers=layers)))
            seen.append(instrument.on_step(step, ParameterStep(increments[step], increments[step])))
        return seen

    expected = show(whole, range(200))[2 * 90 :]
    show(first, range(90))
    second.load_state_dict(first.state_dict())
    again = show(second, range(90, 200))
    assert len(again) == len(expected)
    for one, other in zip(again, expected, strict=True):
        assert dict(one.scalars) == pytest.approx(dict(other.scalars), rel=1e-9, nan_ok=True)


def test_layers_are_forgotten_where_a_resumed_run_does_not_ask_for_them() -> None:
    layers = {"a.weight": LayerGradients("node", projections=rows(64, 0) @ DIRECTIONS)}
    first = TailIndex(per_layer=True)
    for step in range(10):
        first.on_gradients(step, sample(rows(64, step), layers=layers))
    second = TailIndex()
    second.load_state_dict(first.state_dict())
    reading = [r for r in (second.on_gradients(s, sample(rows(64, s))) for s in range(10)) if r.scalars][-1]
    assert not [tag for tag in reading.scalars if tag.startswith("tail/index_layers/")]


def test_a_batch_larger_than_1024_is_judged_by_sums_of_1024() -> None:
    instrument = TailIndex(trajectory=False)
    for step in range(33):
        projections = torch.randn(2048, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        reading = instrument.on_gradients(step, GradientSample(2048, projections=projections))
    assert instrument._pools[""].held == 1 << 16
    given = [reading] if reading.scalars else [instrument._read(0, GradientSample(2048, projections=projections))]
    assert given[0].scalars[quantities.TAIL_BATCH_INDEX] == pytest.approx(2, abs=0.1)


def test_a_state_goes_through_a_checkpoint_file(tmp_path) -> None:
    instrument = TailIndex()
    shown(instrument, 20, 32)
    torch.save(instrument.state_dict(), tmp_path / "state.pt")
    fresh = TailIndex()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert fresh.state_dict()["new"] == instrument.state_dict()["new"]


def test_another_model_starts_afresh() -> None:
    instrument = TailIndex()
    shown(instrument, 20, 32)
    for step in steps(130):
        instrument.on_step(0, ParameterStep(step, step))
    instrument.reset()
    assert math.isnan(shown(instrument, 1, 32)[0].scalars[quantities.TAIL_INDEX])
    reading = instrument.on_step(0, ParameterStep(step, step))
    assert math.isnan(reading.scalars[quantities.TAIL_TRAJECTORY_XI])


def test_the_window_can_be_chosen() -> None:
    instrument = TailIndex(window=512)
    shown(instrument, 40, 32)
    noise = torch.cat([(rows(32, s) - rows(32, s).mean(0)) @ DIRECTIONS for s in range(24, 40)])
    assert instrument._pools[""].held == 512
    assert float(alpha_ecf(noise, projections=None).index) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"window": 511}, {"coordinates": -1}])
def test_wrong_arguments_raise(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        TailIndex(**wrong)
