"""What averaging, a larger batch or SVRG would gain, beside a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.functional import averaging_gain, noise_scale, pool_noise_scales, svrg_gain
from lightning_cx.gradients import CONTRIBUTION, Calibration, GradientSample, UnsupportedGradientError
from lightning_cx.instruments import Averaging, Reading, VarianceReduction, quantities
from lightning_cx.instruments.averaging import GAIN, MIN_WEIGHTS
from lightning_cx.instruments.averaging import TAGS as AVERAGING
from lightning_cx.instruments.variance_reduction import SPEEDUP, SVRG
from lightning_cx.probe import ProbePasses

CHUNK = 32


def problem(count: int = 128) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(count, 4))
    y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.5 * draw.normal(size=(count, 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def net_for(batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8) if batch_norm else nn.Identity(), nn.Tanh(), nn.Linear(8, 1)
    )


def view_of(net: nn.Module, chunk: int = CHUNK, calibration: Calibration | None = None) -> ProbePasses:
    x, y = problem()
    chunks = [((x[i : i + chunk], y[i : i + chunk]), len(x[i : i + chunk])) for i in range(0, len(x), chunk)]
    found = calibration or Calibration()
    return ProbePasses(net, chunks, lambda b: F.mse_loss(net(b[0]), b[1]), calibration=found)


def parameters_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def train(net: nn.Module, steps: int = 60, start: int = 0, lr: float = 0.3) -> Iterator[int]:
    """SGD in small batches; yields the number of each step after it was made."""
    x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr)
    for step in range(start, start + steps):
        chosen = np.random.default_rng(step).integers(0, len(x), 4)
        optimizer.zero_grad()
        F.mse_loss(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
        yield step


def follow(net: nn.Module, instrument: Averaging, **options: Any) -> list[dict[str, Tensor]]:
    """Train beside the instrument; the weights after each step."""
    kept = []
    for step in train(net, **options):
        assert instrument.on_parameters(step, parameters_of(net)) == Reading()
        kept.append(deepcopy(parameters_of(net)))
    return kept


def refused(reading: Reading, wanted: tuple[str, ...], words: str) -> None:
    for tag in wanted:
        assert math.isnan(reading.scalars[tag])
        assert words in reading.refusals[tag]


# --- averaging


def test_the_gain_is_that_of_a_plain_average_of_the_weights_on_the_whole_probe():
    net, instrument = net_for(), Averaging()
    kept = follow(net, instrument)
    reading = instrument.on_model(59, view_of(net))
    window = int(reading.scalars[quantities.AVERAGING_WINDOW])
    assert window == 60 - 16 + 1  # of 60 steps, from the 16th
    mean = {name: torch.stack([w[name].double() for w in kept[-window:]]).mean(0).float() for name in kept[0]}
    x, y = problem()
    last = F.mse_loss(net(x), y).item()
    other = deepcopy(net)
    other.load_state_dict(mean, strict=False)
    average = F.mse_loss(other(x), y).item()
    assert reading.scalars[quantities.AVERAGING_LOSS_LAST] == pytest.approx(last, rel=1e-5)
    assert reading.scalars[quantities.AVERAGING_LOSS_AVERAGE] == pytest.approx(average, rel=1e-5)
    assert reading.scalars[quantities.AVERAGING_GAIN] == pytest.approx(last - average, rel=1e-4)
    losses = [
        torch.tensor([[F.mse_loss(n(x[i : i + CHUNK]), y[i : i + CHUNK]).item(), CHUNK] for i in range(0, 128, CHUNK)])
        for n in (net, other)
    ]
    assert reading.scalars[quantities.AVERAGING_GAIN_LOW] == pytest.approx(float(averaging_gain(*losses).low), rel=1e-3)
    for name, values in instrument.average().items():
        torch.testing.assert_close(values.float(), mean[name])
    assert not reading.refusals
    assert "over 45 weights of 45 steps" in reading.texts[quantities.AVERAGING_GAIN]


def test_large_steps_gain_by_averaging_and_a_way_down_does_not():
    noisy, instrument = net_for(), Averaging()
    follow(noisy, instrument, steps=400, lr=0.1)
    reading = instrument.on_model(399, view_of(noisy, chunk=8))
    assert reading.scalars[quantities.AVERAGING_GAIN_LOW] > 0
    assert "The average is better" in reading.texts[quantities.AVERAGING_GAIN]
    slow, instrument = net_for(), Averaging()
    follow(slow, instrument, steps=100, lr=0.003)
    reading = instrument.on_model(99, view_of(slow))
    assert reading.scalars[quantities.AVERAGING_GAIN_HIGH] < 0
    assert "The average is worse" in reading.texts[quantities.AVERAGING_GAIN]


def test_a_measurement_leaves_no_trace_on_weights_buffers_and_modes():
    net, instrument = net_for(batch_norm=True), Averaging()
    follow(net, instrument, steps=20)
    net[2].eval()
    before, modes = deepcopy(net.state_dict()), [part.training for part in net.modules()]
    storage = [t.data_ptr() for t in (*net.parameters(), *net.buffers())]
    state = torch.get_rng_state()
    instrument.on_model(19, view_of(net))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert [t.data_ptr() for t in (*net.parameters(), *net.buffers())] == storage
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_takes_the_statistics_of_each_batch_for_both_and_says_so():
    net, instrument = net_for(batch_norm=True), Averaging()
    follow(net, instrument, steps=40)
    reading = instrument.on_model(39, view_of(net))
    x, y = problem()
    expected = np.mean(
        [F.mse_loss(deepcopy(net)(x[i : i + CHUNK]), y[i : i + CHUNK]).item() for i in range(0, 128, CHUNK)]
    )
    assert reading.scalars[quantities.AVERAGING_LOSS_LAST] == pytest.approx(expected, rel=1e-5)  # as in training mode
    assert "BatchNorm took the statistics of each batch" in reading.texts[quantities.AVERAGING_GAIN]


def test_frozen_batch_norm_keeps_its_statistics():
    net, instrument = net_for(batch_norm=True), Averaging()
    follow(net, instrument, steps=40)
    net[1].eval()
    reading = instrument.on_model(39, view_of(net))
    x, y = problem()
    expected = F.mse_loss(deepcopy(net).eval()(x), y).item()
    assert reading.scalars[quantities.AVERAGING_LOSS_LAST] == pytest.approx(expected, rel=1e-5)
    assert "BatchNorm" not in reading.texts[quantities.AVERAGING_GAIN]


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_too_few_weights_are_refused_with_their_number(steps):
    net, instrument = net_for(), Averaging()
    follow(net, instrument, steps=steps)
    count = instrument._average.count
    assert count < MIN_WEIGHTS or steps == 20
    reading = instrument.on_model(steps, view_of(net))
    assert reading.scalars[quantities.AVERAGING_WINDOW] == count
    if count < MIN_WEIGHTS:
        refused(reading, AVERAGING, f"needs at least 16 weights, so far there are {count}")
    else:
        assert not reading.refusals


def test_weights_that_broke_are_refused():
    net, instrument = net_for(), Averaging()
    follow(net, instrument)
    broken = {name: torch.full_like(p, torch.nan) for name, p in parameters_of(net).items()}
    instrument.on_parameters(60, broken)
    refused(instrument.on_model(60, view_of(net)), AVERAGING, "weights that are not finite")


def test_a_loss_that_is_not_finite_is_refused():
    net, instrument = net_for(), Averaging()
    follow(net, instrument)
    view = view_of(net)
    view.loss_of = lambda batch: net(batch[0]).sum() * torch.nan
    refused(instrument.on_model(60, view), AVERAGING, "a loss is not finite")


@pytest.mark.parametrize("error", [ValueError("no batch"), UnsupportedGradientError("a node")])
def test_a_model_that_cannot_be_read_is_refused_with_its_reason(error, monkeypatch):
    net, averaging, variance = net_for(), Averaging(), VarianceReduction()
    follow(net, averaging)
    view = view_of(net)

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(view, "losses", fail)
    monkeypatch.setattr(view, "gradients", fail)
    refused(averaging.on_model(60, view), AVERAGING, f"the loss cannot be read: {error}")
    refused(variance.on_model(60, view), SVRG, f"cannot be read: {error}")


def test_other_parameters_than_those_averaged_are_refused():
    net, instrument = net_for(), Averaging()
    follow(net, instrument)
    net[0].weight.requires_grad_(False)
    refused(instrument.on_model(60, view_of(net)), AVERAGING, "the trainable parameters have changed")


def test_a_probe_of_one_batch_has_a_gain_without_an_interval():
    net, instrument = net_for(), Averaging()
    follow(net, instrument)
    reading = instrument.on_model(60, view_of(net, chunk=128))
    assert math.isfinite(reading.scalars[quantities.AVERAGING_GAIN])
    refused(reading, GAIN[1:], "the probe is a single batch")
    assert set(reading.refusals) == set(GAIN[1:])


def test_the_average_survives_a_checkpoint_and_a_reset_forgets_it():
    net, instrument = net_for(), Averaging()
    follow(net, instrument, steps=30)
    resumed = Averaging()
    resumed.load_state_dict(deepcopy(instrument.state_dict()))
    for step in train(net, 30, start=30):
        for one in (instrument, resumed):
            one.on_parameters(step, parameters_of(net))
    readings = [one.on_model(59, view_of(net)) for one in (instrument, resumed)]
    assert readings[0] == readings[1]
    instrument.reset()
    refused(instrument.on_model(60, view_of(net)), AVERAGING, "so far there are 0")


def test_fewer_examples_may_be_compared():
    net, instrument = net_for(), Averaging(examples=40)
    follow(net, instrument)
    x, y = problem()
    reading = instrument.on_model(60, view_of(net))
    assert reading.scalars[quantities.AVERAGING_LOSS_LAST] == pytest.approx(
        F.mse_loss(net(x[:40]), y[:40]).item(), rel=1e-5
    )


def test_constructor_arguments_are_checked():
    with pytest.raises(ValueError, match="every_n_steps=0"):
        Averaging(every_n_steps=0)
    with pytest.raises(ValueError, match="examples=0"):
        Averaging(examples=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        VarianceReduction(batch_size=0)
    with pytest.raises(ValueError, match="every_n_steps=-1"):
        VarianceReduction(every_n_steps=-1)
    with pytest.raises(ValueError, match="examples=7"):
        VarianceReduction(examples=7)


# --- variance reduction


def rows_of(net: nn.Module, count: int = 64) -> Tensor:
    """Gradients of single examples, one after the other."""
    x, y = problem()
    rows = []
    for i in range(count):
        gradients = torch.autograd.grad(F.mse_loss(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows).double()


def test_the_svrg_ratio_is_that_of_all_entries_within_its_interval():
    net, instrument = net_for(), VarianceReduction(examples=64)
    first = instrument.on_model(0, view_of(net))
    refused(first, SVRG, "the first snapshot")
    older = rows_of(net)
    for _ in train(net, steps=3, lr=0.1):
        pass
    reading = instrument.on_model(3, view_of(net))
    exact = svrg_gain(rows_of(net), older, directions=False)
    assert reading.scalars[quantities.SVRG_RATIO_LOW] < float(exact.ratio) < reading.scalars[quantities.SVRG_RATIO_HIGH]
    assert reading.scalars[quantities.SVRG_RATIO] == pytest.approx(float(exact.ratio), rel=0.35)
    assert reading.scalars[quantities.SVRG_BEST] <= reading.scalars[quantities.SVRG_RATIO]
    assert reading.scalars[quantities.SNAPSHOT_AGE] == 3
    assert not reading.refusals
    assert "with a snapshot 3 steps old" in reading.texts[quantities.SVRG_RATIO]


def test_each_measurement_is_the_snapshot_of_the_next():
    net, instrument = net_for(), VarianceReduction(examples=64)
    readings = []
    for step in (0, 10, 20, 30):
        if step == 20:
            for _ in train(net, steps=5):
                pass
        readings.append(instrument.on_model(step, view_of(net)).scalars)
    ratios = [reading[quantities.SVRG_RATIO] for reading in readings]
    assert ratios[1] == ratios[3] == 0  # nothing was trained in between
    assert ratios[2] > 0
    ages = [reading[quantities.SNAPSHOT_AGE] for reading in readings]
    assert math.isnan(ages[0])  # of a comparison that was refused no age stays behind
    assert ages[1:] == [10, 10, 10]


def test_advice_to_take_or_leave_svrg_follows_the_interval():
    net, instrument = net_for(), VarianceReduction(examples=128)
    instrument.on_model(0, view_of(net))
    assert "SVRG would pay" in instrument.on_model(1, view_of(net)).texts[quantities.SVRG_RATIO]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(-30)
    instrument.on_model(2, view_of(net))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(-1 / 30)
    card = instrument.on_model(3, view_of(net)).texts[quantities.SVRG_RATIO]
    assert "SVRG would add noise" in card


@pytest.mark.parametrize(
    ("batch_norm", "calibration", "words"),
    [(True, None, "BatchNorm makes"), (False, Calibration(CONTRIBUTION), "lets examples act on each other")],
)
def test_losses_that_are_not_of_single_examples_are_refused(batch_norm, calibration, words):
    net, instrument = net_for(batch_norm), VarianceReduction(examples=64)
    for step in range(2):
        refused(instrument.on_model(step, view_of(net, calibration=calibration)), SVRG, words)


def test_a_snapshot_of_other_examples_is_refused_and_replaced():
    net, instrument = net_for(), VarianceReduction(examples=128)
    view = view_of(net)
    instrument.on_model(0, view)
    fewer = replace(view, chunks=view.chunks[:2])
    refused(instrument.on_model(1, fewer), SVRG, "of other examples")
    assert instrument.on_model(2, fewer).scalars[quantities.SVRG_RATIO] == 0


def batch(rows: np.ndarray) -> GradientSample:
    return GradientSample(len(rows), gram=torch.tensor(rows @ rows.T))


def test_the_speed_up_is_that_of_the_pooled_noise_scale():
    draw, instrument = np.random.default_rng(5), VarianceReduction()
    drawn = [math.sqrt(1 / 39.2) + draw.normal(size=(256, 20)) for _ in range(20)]
    for step, rows in enumerate(drawn):
        reading = instrument.on_gradients(step, batch(rows))
    pooled = pool_noise_scales([noise_scale(rows @ rows.T) for rows in drawn[-16:]])
    scale = float(pooled.value)
    assert scale == pytest.approx(39.2, rel=0.1)
    assert reading.scalars[quantities.BATCH_SPEEDUP] == pytest.approx(2 * (256 + scale) / (512 + scale))
    assert reading.scalars[quantities.BATCH_SPEEDUP_LOW] < reading.scalars[quantities.BATCH_SPEEDUP]
    assert reading.scalars[quantities.BATCH_SPEEDUP] < reading.scalars[quantities.BATCH_SPEEDUP_HIGH]
    assert "batches larger than" in reading.texts[quantities.BATCH_SPEEDUP]
    accumulated = VarianceReduction(batch_size=1024).on_gradients(0, batch(drawn[0]))
    assert accumulated.scalars[quantities.BATCH_SPEEDUP] < reading.scalars[quantities.BATCH_SPEEDUP]


def test_a_noise_scale_without_an_upper_end_is_refused_and_its_lower_end_kept():
    draw = np.random.default_rng(6)
    reading = VarianceReduction().on_gradients(0, batch(draw.normal(size=(32, 20))))
    refused(reading, SPEEDUP[:1], "the noise scale has no upper end")
    assert 1 <= reading.scalars[quantities.BATCH_SPEEDUP_LOW] < 2
    assert reading.scalars[quantities.BATCH_SPEEDUP_HIGH] == 2


@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.full((4, 3), np.nan)])
def test_batches_that_show_no_noise_are_refused_and_not_pooled(rows):
    instrument = VarianceReduction()
    refused(instrument.on_gradients(0, batch(rows)), SPEEDUP, "two or more finite gradients")
    assert not instrument._recent


def test_the_pool_survives_a_checkpoint_and_the_snapshot_is_taken_anew():
    draw, net, instrument = np.random.default_rng(7), net_for(), VarianceReduction(examples=64)
    drawn = [0.3 + draw.normal(size=(64, 20)) for _ in range(3)]
    for rows in drawn[:2]:
        instrument.on_gradients(0, batch(rows))
    instrument.on_model(0, view_of(net))
    resumed = VarianceReduction(examples=64)
    resumed.load_state_dict(deepcopy(instrument.state_dict()))
    readings = [one.on_gradients(1, batch(drawn[2])) for one in (instrument, resumed)]
    assert readings[0] == readings[1]
    refused(resumed.on_model(1, view_of(net)), SVRG, "the first snapshot")
    resumed.reset()
    assert not resumed._recent


@contextmanager
def unchanged(instrument: Averaging | VarianceReduction) -> Iterator[None]:
    before = deepcopy(instrument.state_dict())
    yield
    assert str(instrument.state_dict()) == str(before)


def test_gradients_without_what_is_needed_give_an_empty_reading():
    instrument = VarianceReduction()
    with unchanged(instrument):
        assert instrument.on_gradients(0, GradientSample(8)) == Reading()
