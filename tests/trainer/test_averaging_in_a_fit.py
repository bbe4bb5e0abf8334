"""Averages, snapshots and advice on the batch in a real Trainer: with the numbers of plain loops."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fingerprint, fit, images, loader
from _models import Unread
from _tensorboard import read_events, serve
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.functional import svrg_gain
from lightning_cx.instruments import Averaging, GradientNoise, VarianceReduction, quantities
from lightning_cx.instruments.averaging import TAGS as AVERAGING
from lightning_cx.instruments.variance_reduction import SPEEDUP, SVRG

# What is not known yet, in the first steps of a run, is told once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. (averaging|gradient)/.* nan", "ignore:.*pin_memory")


def both() -> list[Any]:
    return [Averaging(every_n_steps=5), VarianceReduction(every_n_steps=5, examples=64)]


def monitor(*instruments: Any, **options: Any) -> ComplexityMonitor:
    return ComplexityMonitor(
        list(instruments) or both(), **{"every_n_steps": 1, "strict": True, "probe": ProbeSet(128), **options}
    )


class KeepWeights(pl.Callback):
    """Copies of the weights after each optimizer step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []
        self._seen = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.kept.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def mean(self, last: int) -> dict[str, Tensor]:
        return {name: torch.stack([w[name] for w in self.kept[-last:]]).double().mean(0) for name in self.kept[0]}


def probe_loss(module: Classifier, probe: ProbeSet) -> float:
    x, y = images().tensors
    with torch.no_grad():
        return F.cross_entropy(copy.deepcopy(module).eval().net(x[probe.indices]), y[probe.indices]).item()


@pytest.mark.filterwarnings("ignore:lightning_cx.*BatchNorm in training mode")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gains_are_known_after_six_epochs_and_advice_on_snapshots_unless_examples_meet(
    batch_norm: bool, tmp_path: Path
) -> None:
    metrics = fit(Classifier(batch_norm=batch_norm), [monitor()], tmp_path, max_epochs=6).callback_metrics
    assert all(math.isfinite(metrics[tag]) for tag in AVERAGING)
    assert all(math.isfinite(metrics[tag]) is not batch_norm for tag in SVRG)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_plain_one_of_the_weights_after_each_step(accumulate: int, tmp_path: Path) -> None:
    keep, averaging, module = KeepWeights(), Averaging(every_n_steps=4), Classifier()
    ours = monitor(averaging)
    trainer = fit(module, [keep, ours], tmp_path, max_epochs=9, accumulate_grad_batches=accumulate)
    window = int(trainer.callback_metrics[quantities.AVERAGING_WINDOW])
    steps, first = {1: (45, 16), 2: (27, 8)}[accumulate]  # of five batches the last one steps alone
    assert len(keep.kept) == steps
    assert window == steps - first + 1
    average = averaging.average()
    for name, mean in keep.mean(window).items():
        torch.testing.assert_close(average[name], mean, rtol=0, atol=1e-7)  # one block mean is kept in float32
    last = probe_loss(module, ours.probe)
    module.load_state_dict(average, strict=False)
    of_average = probe_loss(module, ours.probe)
    seen = {tag: float(trainer.callback_metrics[tag]) for tag in AVERAGING}
    assert seen[quantities.AVERAGING_LOSS_LAST] == pytest.approx(last, rel=1e-5)
    assert seen[quantities.AVERAGING_LOSS_AVERAGE] == pytest.approx(of_average, rel=1e-5)
    assert seen[quantities.AVERAGING_GAIN] == pytest.approx(last - of_average, abs=1e-5)
    assert seen[quantities.AVERAGING_GAIN_LOW] < seen[quantities.AVERAGING_GAIN] < seen[quantities.AVERAGING_GAIN_HIGH]


BESIDE: dict[str, Callable[[], pl.Callback]] = {
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(swa_lrs=3e-3, swa_epoch_start=3),
}
if hasattr(callbacks, "EMAWeightAveraging"):  # from Lightning 2.6 on
    BESIDE["WeightAveraging"] = lambda: callbacks.WeightAveraging()
    BESIDE["EMAWeightAveraging"] = lambda: callbacks.EMAWeightAveraging(decay=0.9)


class Validated(Classifier):
    """Validates within the epoch, where averages take the place of the weights for a while."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0]).mean())


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("kind", BESIDE)
def test_lightnings_own_averages_and_ours_work_side_by_side(kind: str, in_front: bool, tmp_path: Path) -> None:
    def run(ours: list) -> tuple[dict[str, str], KeepWeights]:
        keep, own = KeepWeights(), BESIDE[kind]()
        pl.seed_everything(3)
        data = pl.LightningDataModule.from_datasets(images(), images(), batch_size=32)
        order = [keep, *ours, own] if in_front else [own, keep, *ours]
        return fingerprint(fit(Validated(), order, tmp_path, data, max_epochs=6, val_check_interval=2)), keep

    ours = both()
    with_us, keep = run([monitor(*ours)])
    without, keep_without = run([])
    assert with_us == without
    assert len(keep.kept) == len(keep_without.kept) == 30
    for name, mean in keep.mean(30 - 8 + 1).items():
        torch.testing.assert_close(ours[0].average()[name], mean, rtol=0, atol=1e-7)


def test_the_snapshot_is_that_of_the_measurement_before(tmp_path: Path) -> None:
    keep, ours = KeepWeights(), monitor(VarianceReduction(every_n_steps=5, examples=64))
    module = Classifier()
    trainer = fit(module, [keep, ours], tmp_path, max_epochs=2)
    assert ours.probe.indices is not None
    x, y = images().tensors
    rows = []
    for weights in (keep.kept[5], keep.kept[0]):
        module.load_state_dict(weights, strict=False)
        net = copy.deepcopy(module).eval().net
        losses = [F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]) for i in ours.probe.indices[:64]]
        gradients = (torch.autograd.grad(loss, list(net.parameters())) for loss in losses)
        rows.append(torch.stack([torch.cat([g.flatten() for g in of_one]) for of_one in gradients]).double())
    exact = svrg_gain(*rows, directions=False)
    seen = {tag: float(trainer.callback_metrics[tag]) for tag in (*SVRG, quantities.SNAPSHOT_AGE)}
    assert seen[quantities.SNAPSHOT_AGE] == 5
    assert seen[quantities.SVRG_RATIO_LOW] < float(exact.ratio) < seen[quantities.SVRG_RATIO_HIGH]
    assert seen[quantities.SVRG_RATIO] == pytest.approx(float(exact.ratio), rel=0.4)


def test_the_speed_up_is_that_of_the_noise_scale_that_is_logged_beside_it(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name=None)
    fit(
        Classifier(),
        [monitor(GradientNoise(), VarianceReduction(every_n_steps=5, examples=64))],
        tmp_path,
        logger=logger,
        max_epochs=4,
    )
    events = read_events(logger.log_dir)
    curves = [
        {event.step: event.value for event in events.Scalars(tag)}
        for tag in (quantities.NOISE_SCALE_LOW, quantities.BATCH_SPEEDUP_LOW)
    ]
    assert len(curves[0]) == 20
    for step, low in curves[0].items():
        assert curves[1][step] == pytest.approx(2 * (32 + low) / (64 + low), rel=1e-5)


def test_a_resumed_run_goes_on_with_the_average_that_it_had(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> tuple[pl.Trainer, Averaging]:
        pl.seed_everything(3)
        averaging, data = Averaging(every_n_steps=5), loader(shuffle=False)
        trainer = fit(Classifier(), [monitor(averaging)], tmp_path, data=data, max_epochs=epochs, ckpt_path=ckpt)
        return trainer, averaging

    run(5)[0].save_checkpoint(tmp_path / "five.ckpt")
    (resumed, average), (whole, expected) = run(8, str(tmp_path / "five.ckpt")), run(8)
    for name, values in expected.average().items():
        assert torch.equal(average.average()[name], values)
    for tag in (*AVERAGING, quantities.AVERAGING_WINDOW):
        assert float(resumed.callback_metrics[tag]) == float(whole.callback_metrics[tag])


def test_curves_cards_and_margin_charts_reach_the_board(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "board", name="run", version="one")
    fit(Classifier(), [monitor()], tmp_path, logger=logger, max_epochs=6)
    found = read_events(logger.log_dir).Tags()
    assert {*AVERAGING, *SVRG, *SPEEDUP[1:], quantities.AVERAGING_WINDOW, quantities.SNAPSHOT_AGE} <= set(
        found["scalars"]
    )
    with serve(tmp_path / "board") as get:
        layout = get("data/plugin/custom_scalars/layout")
        cards = [
            get(f"data/plugin/text/text?run=run/one&tag={tag}/text_summary") for tag in (quantities.AVERAGING_GAIN,)
        ]
    charts = {chart["title"]: chart for category in layout["category"] for chart in category["chart"]}
    margin = charts["loss of the last weights less that of their average, with 95% interval (over 0: average them)"]
    series = margin["margin"]["series"][0]
    assert (series["value"], series["lower"], series["upper"]) == AVERAGING[:3]
    assert "gain" in cards[0][-1]["text"]


@pytest.mark.timing
def test_under_a_budget_both_are_measured_and_the_budget_is_kept(tmp_path: Path) -> None:
    ours = ComplexityMonitor([Averaging(), VarianceReduction(examples=64)], overhead_budget=0.5, probe=ProbeSet(128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(Classifier(), [ours], tmp_path, max_epochs=60)
    assert ours.overhead < 0.6
    assert math.isfinite(trainer.callback_metrics[quantities.AVERAGING_GAIN])
    assert math.isfinite(trainer.callback_metrics[quantities.SVRG_RATIO])


def test_where_single_gradients_cannot_be_read_averages_are_and_snapshots_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(net), [monitor()], tmp_path, max_epochs=6)
    assert math.isfinite(trainer.callback_metrics[quantities.AVERAGING_GAIN])
    assert math.isnan(trainer.callback_metrics[quantities.SVRG_RATIO])
    (told,) = (str(w.message) for w in caught if quantities.SVRG_RATIO in str(w.message))
    assert "the gradients of the probe cannot be read: unsupported: UnreadFunctionBackward" in told
