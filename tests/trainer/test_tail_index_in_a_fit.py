"""The tail index in a real Trainer: with curves, pictures and card, resumed, and refused by name."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fit, loader
from _models import Mlp, Unread
from _tensorboard import read_events, serve
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample, ParameterSketch, per_example_gradients
from lightning_cx.instruments import (
    BatchView,
    GradientNoise,
    Instrument,
    Needs,
    ParameterStep,
    Reading,
    TailIndex,
    quantities,
)
from lightning_cx.instruments.tail_index import BATCH, COORDINATES, NORMS, SINGLE, TRAJECTORY


def monitor(*instruments: Instrument, **options: Any) -> ComplexityMonitor:
    instruments = instruments or (TailIndex(per_layer=True, coordinates=50),)
    return ComplexityMonitor(list(instruments), **{"every_n_steps": 1, "strict": True, **options})


def test_curves_pictures_card_and_margin_charts_reach_the_board(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "board", name="run", version="one")
    fit(Classifier(), [monitor()], tmp_path, logger=logger, max_epochs=30)  # 150 batches of 32
    events = read_events(logger.log_dir)
    found = events.Tags()
    layers = {tag for tag in found["scalars"] if tag.startswith(f"{quantities.TAIL_INDEX}_layers/")}
    wanted = {*SINGLE, *BATCH, *NORMS, *COORDINATES, *TRAJECTORY, quantities.TAIL_VERDICT}
    assert wanted <= set(found["scalars"])
    assert len(layers) >= 2
    assert set(found["images"]) == {quantities.TAIL_QUANTILES, quantities.TAIL_SURVIVAL}
    for value, low, high in (SINGLE, BATCH, NORMS[:3], TRAJECTORY[:3]):
        for curve, below, above in zip(*(events.Scalars(tag) for tag in (value, low, high)), strict=True):
            assert below.value <= curve.value <= above.value
            assert below.step == curve.step
    assert {event.value for event in events.Scalars(quantities.TAIL_VERDICT)} <= {-1.0, 0.0, 1.0, 2.0}
    with serve(tmp_path / "board") as get:
        layout = get("data/plugin/custom_scalars/layout")
        texts = get("data/plugin/text/text?run=run/one&tag=tail/verdict/text_summary")
    charts = {chart["title"]: chart for category in layout["category"] for chart in category["chart"]}
    margin = charts["tail index of single examples with 95% interval (2: Gaussian)"]["margin"]["series"][0]
    assert (margin["value"], margin["lower"], margin["upper"]) == SINGLE
    assert any("waiting" in card["text"] for card in texts)
    assert "Verdicts: -1 indeterminate" in texts[-1]["text"]


class Watch(Instrument):
    """Keeps the steps of the parameters that it is shown."""

    def __init__(self) -> None:
        self.seen: list[ParameterStep] = []

    def reset(self) -> None:
        self.seen = []

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        self.seen.append(change)
        return Reading()


class Rows(Instrument):
    """Keeps the gradients that it is shown."""

    needs = Needs()

    def __init__(self, needs: Needs) -> None:
        self.needs, self.seen = needs, []

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        self.seen.append(gradients)
        return Reading()


class KeepWeights(pl.Callback):
    """Sketches the parameters before and after each batch, by itself."""

    def __init__(self) -> None:
        self.sketch, self.sketches = ParameterSketch(64), []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        self.sketches.append(self.sketch(pl_module.named_parameters()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sketches.append(self.sketch(pl_module.named_parameters()))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_each_sampled_step_is_followed_to_the_optimizer_step_that_it_belongs_to(
    accumulate: int, tmp_path: Path
) -> None:
    watch, keep = Watch(), KeepWeights()
    fit(Classifier(), [monitor(watch), keep], tmp_path, accumulate_grad_batches=accumulate)
    steps = watch.seen
    assert all(step is not None for step in steps)
    # An epoch has five batches; its last ones step even if they are fewer.
    ends = [b for b in range(1, 11) if b % 5 == 0 or (b % 5) % accumulate == 0]
    starts = [0, *ends[:-1]]
    assert len(steps) == len(ends)
    for step, start, end in zip(steps, starts, ends, strict=True):
        torch.testing.assert_close(step.sketch, keep.sketches[end])
        torch.testing.assert_close(step.increment, keep.sketches[end] - keep.sketches[start], rtol=0, atol=1e-12)


def test_steps_are_followed_where_gradients_cannot_be_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.BatchNorm1d(16), Unread(), nn.Linear(16, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(net), [monitor(TailIndex())], tmp_path, max_epochs=30)
    assert sum("per-example gradients are off" in str(w.message) for w in caught) == 1
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_TRAJECTORY_XI])
    assert quantities.TAIL_INDEX not in trainer.callback_metrics


def test_replayed_examples_give_the_same_projections_and_coordinates(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(Classifier(net), [monitor()], tmp_path, max_epochs=6)
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_INDEX])
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_COORDINATE_INDEX_CONTROL])


def test_projections_are_shown_only_where_they_are_asked_for(tmp_path: Path) -> None:
    plain = Rows(Needs())
    fit(Classifier(), [monitor(plain)], tmp_path, max_epochs=1)
    assert all(seen.projections is None and seen.coordinates is None for seen in plain.seen)
    projected = Rows(Needs(projections=4, coordinates=30))
    fit(Classifier(), [monitor(projected)], tmp_path, max_epochs=1)
    for seen in projected.seen:
        assert seen.projections.shape == (32, 4)
        assert seen.gram is None
        assert seen.coordinates.shape[0] == 32


def test_the_pooled_noise_is_that_of_the_training_steps(tmp_path: Path) -> None:
    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.norms = Mlp(), []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            losses = nn.functional.cross_entropy(self.net(x.flatten(1)[:, :20]), y, reduction="none")
            gradients = per_example_gradients(self.net, losses)
            flat = torch.cat([g.flatten(1) for g in gradients.values()], 1).double()
            self.norms.append((flat - flat.mean(0)).norm(dim=1))
            return losses.mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    module, instrument = Regression(), TailIndex()
    fit(module, [monitor(instrument)], tmp_path)
    pool = instrument._pools[""]
    held = torch.cat([rows.view(-1, 19)[:, 16] for rows in pool.rows])
    torch.testing.assert_close(held, torch.cat(module.norms), rtol=1e-4, atol=1e-6)


def test_a_resumed_run_goes_on_with_the_pool_that_it_had(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> pl.Trainer:
        pl.seed_everything(3)
        data = loader(shuffle=False)
        return fit(Classifier(), [monitor(TailIndex())], tmp_path, data=data, max_epochs=epochs, ckpt_path=ckpt)

    first = run(20)
    first.save_checkpoint(tmp_path / "twenty.ckpt")
    resumed, whole = run(30, str(tmp_path / "twenty.ckpt")), run(30)
    for tag in (*SINGLE, *NORMS, *TRAJECTORY, quantities.TAIL_VERDICT):
        expected = float(whole.callback_metrics[tag])
        assert float(resumed.callback_metrics[tag]) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.timing
def test_under_a_budget_it_stands_beside_the_others(tmp_path: Path) -> None:
    whole = ComplexityMonitor([GradientNoise(), TailIndex()], overhead_budget=0.5, probe=ProbeSet(128), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Classifier(), [whole], tmp_path, max_epochs=40)
    assert whole.overhead < 0.6


def test_manual_optimisation_is_followed_too(tmp_path: Path) -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    trainer = fit(Manual(), [monitor(TailIndex())], tmp_path, max_epochs=30)
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_INDEX])
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_TRAJECTORY_XI])


class SameWords(Watch):
    """Says the same at every step, and something else once."""

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        self.seen.append(change)
        return Reading(texts={"words/same": "always", "words/new": "late" if len(self.seen) > 5 else "early"})


def test_a_card_is_written_again_only_where_it_changes(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name=None)
    fit(Classifier(), [monitor(SameWords())], tmp_path, logger=logger)
    events = read_events(logger.log_dir)
    assert [e.step for e in events.Tensors("words/same/text_summary")] == [0]
    assert [e.step for e in events.Tensors("words/new/text_summary")] == [0, 5]


def test_a_trajectory_that_cannot_be_followed_is_told_switched_off_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: ParameterSketch, named_parameters: Any) -> Tensor:
        calls.append(1)
        raise RuntimeError("no room")

    monkeypatch.setattr(ParameterSketch, "__call__", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(), [monitor(TailIndex(), strict=False)], tmp_path, max_epochs=6)
    ours = [str(w.message) for w in caught if "trajectory" in str(w.message)]
    assert len(ours) == 2
    assert "the trajectory failed, training continues: RuntimeError: no room" in ours[0]
    assert "disabled after 3 failures" in ours[1]
    assert len(calls) == 3
    assert math.isfinite(trainer.callback_metrics[quantities.TAIL_INDEX])  # the rest goes on
    with pytest.raises(RuntimeError, match="no room"):
        fit(Classifier(), [monitor(TailIndex())], tmp_path, max_epochs=1)


def test_only_what_is_trained_is_followed(tmp_path: Path) -> None:
    class OnlyTheInput(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.shift], lr=0.1)

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))
            self.net.requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch[0] + self.shift, batch[1]], batch_idx)

    watch = Watch()
    fit(OnlyTheInput(), [monitor(watch)], tmp_path, max_epochs=1)
    assert len(watch.seen) == 5  # the one parameter that moves is the trajectory
    assert all(bool(change.increment.abs().sum() > 0) for change in watch.seen)
