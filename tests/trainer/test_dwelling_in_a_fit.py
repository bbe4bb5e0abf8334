"""Dwelling in a real Trainer: with the gradients at their points, resumed, and refused by name."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fit, loader
from _models import Unread
from _tensorboard import read_events
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_cx import ComplexityMonitor
from lightning_cx.functional import dwell, one_point_convexity
from lightning_cx.gradients import ParameterSketch
from lightning_cx.instruments import Dwelling, quantities
from lightning_cx.instruments.dwelling import CONVEXITY, DWELLS

# What is not known yet is nan, and that is told once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. trajectory/")


def monitor(instrument: Dwelling | None = None, **options: Any) -> ComplexityMonitor:
    return ComplexityMonitor([instrument or Dwelling()], **{"every_n_steps": 1, "strict": True, **options})


class Recorder(pl.Callback):
    """Sketches parameters and gradients before each optimizer step, and parameters after it, by itself."""

    def __init__(self) -> None:
        self.sketch = ParameterSketch(64)
        self.points: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.after: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.points.append(self.sketch(pl_module.named_parameters()) / 8)
        gradients = ((n, nn.Parameter(p.grad)) for n, p in pl_module.named_parameters() if p.grad is not None)
        self.gradients.append(self.sketch(gradients) / 8)

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after.append(self.sketch(pl_module.named_parameters()) / 8)


def test_gradients_stand_beside_the_points_at_which_they_were_taken(tmp_path: Path) -> None:
    instrument, recorder = Dwelling(), Recorder()
    fit(Classifier(), [monitor(instrument), recorder], tmp_path, max_epochs=4)
    pairs = list(instrument._pairs)
    assert len(pairs) == len(recorder.points) == 20
    for (_, gradient, point), expected, at in zip(pairs, recorder.gradients, recorder.points, strict=True):
        torch.testing.assert_close(point, at, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_where_gradients_are_accumulated_each_step_has_one(tmp_path: Path) -> None:
    instrument, recorder = Dwelling(), Recorder()
    fit(Classifier(), [monitor(instrument), recorder], tmp_path, max_epochs=4, accumulate_grad_batches=5)
    points = [point for _, _, point in instrument._pairs]
    assert len(points) == 4
    torch.testing.assert_close(torch.stack(points), torch.stack(recorder.points), rtol=1e-9, atol=1e-9)


class Resting(pl.LightningModule):
    """A regression whose truth is 0, then 3 in each of 30 weights: two places, under plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(30, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.steps = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x, noise = batch[0].flatten(1).split([30, 70], dim=1)
        truth = (0.0 if self.steps < 90 else 3.0) * x.sum(1) + noise[:, 0]
        self.steps += 1
        return 0.25 * (self.net(x).squeeze(1) - truth).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def test_numbers_are_those_of_an_independent_computation(tmp_path: Path) -> None:
    instrument, recorder = Dwelling(), Recorder()
    logger = TensorBoardLogger(tmp_path / "board", name="run", version="one")
    trainer = fit(Resting(), [monitor(instrument), recorder], tmp_path, logger=logger, max_epochs=44)
    expected = dwell(torch.stack(recorder.after), block=1)
    assert [(e.start, e.end, e.escaped) for e in instrument.report().episodes] == [
        (e.start, e.end, e.escaped) for e in expected.episodes
    ]
    assert expected.escapes == 1
    assert expected.episodes[0].end == pytest.approx(90, abs=6)
    found = trainer.callback_metrics
    assert (found[quantities.DWELL_COUNT], found[quantities.DWELL_ESCAPES]) == (2, 1)
    assert float(found[quantities.DWELL_DISTANCE]) == pytest.approx(
        3 * math.sqrt(30), rel=0.3
    )  # the sketch has an error
    events = read_events(logger.log_dir)
    assert set(events.Tags()["images"]) == {quantities.DWELLS}
    last = events.Scalars(quantities.ONE_POINT_CONVEXITY)[-1]
    begin = dwell(torch.stack(recorder.after[: last.step + 1]), block=1).episodes[-1].start  # as it was known then
    gradients, points = (torch.stack(kept[begin : last.step + 1]) for kept in (recorder.gradients, recorder.points))
    # The newest gradient is shown after the point beside it, so the reading does not have it yet.
    assert last.value == pytest.approx(one_point_convexity(gradients[:-1], points[:-1]).value, rel=1e-3)
    assert last.value > 3 * events.Scalars(quantities.ONE_POINT_CONVEXITY_ERROR)[-1].value


def test_a_resumed_run_goes_on_with_the_path_that_it_had(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> pl.Trainer:
        pl.seed_everything(3)
        data = loader(shuffle=False)
        return fit(Classifier(), [monitor()], tmp_path, data=data, max_epochs=epochs, ckpt_path=ckpt)

    first = run(6)
    first.save_checkpoint(tmp_path / "six.ckpt")
    resumed, whole = run(12, str(tmp_path / "six.ckpt")), run(12)
    for tag in (*DWELLS, *CONVEXITY, quantities.DIFFUSION_EXPONENT):
        expected = float(whole.callback_metrics[tag])
        assert float(resumed.callback_metrics[tag]) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    one, other = resumed.callbacks[0].instruments[0].report(), whole.callbacks[0].instruments[0].report()
    torch.testing.assert_close(one.distances, other.distances)


def test_where_gradients_cannot_be_read_only_convexity_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.BatchNorm1d(16), Unread(), nn.Linear(16, 5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(net), [monitor()], tmp_path, max_epochs=8)
    told = [str(w.message) for w in caught]
    assert any("per-example gradients are off" in words for words in told)
    assert any(quantities.ONE_POINT_CONVEXITY in words for words in told)
    assert math.isfinite(trainer.callback_metrics[quantities.DIFFUSION_EXPONENT])
    assert math.isfinite(trainer.callback_metrics[quantities.DWELL_COUNT])
    assert math.isnan(trainer.callback_metrics[quantities.ONE_POINT_CONVEXITY])


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

    trainer = fit(Manual(), [monitor()], tmp_path, max_epochs=6)
    assert math.isfinite(trainer.callback_metrics[quantities.DWELL_COUNT])
