"""The path of the parameters in a real Trainer: the numbers of a computation by hand, runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import fit, images, loader
from _models import Mlp
from _tensorboard import read_events
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from lightning_cx import ComplexityMonitor, ProbeSet, compare_runs
from lightning_cx.functional import distance_from_start, spanning_tree_length
from lightning_cx.functional.trajectories.geometry import positive_magnitude
from lightning_cx.instruments import TrajectoryGeometry, quantities
from lightning_cx.instruments.trajectory_geometry import SHAPE

pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. trajectory/")  # what it waits for is said once
EVERY_TAG = {*SHAPE, quantities.TRAJECTORY_DISTANCE, quantities.TRAJECTORY_LOSS}


def monitor(**options: Any) -> ComplexityMonitor:
    instrument = TrajectoryGeometry(**options)
    return ComplexityMonitor([instrument], every_n_steps=1, probe=ProbeSet(160), strict=True)


class Sgd(pl.LightningModule):
    """A small network under plain SGD that keeps what its path was."""

    def __init__(self, rate: float = 0.02, momentum: float = 0.0) -> None:
        super().__init__()
        self.net, self.rate, self.momentum = Mlp(), rate, momentum
        self.path: list[Tensor] = []

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()]).double()

    def on_train_start(self) -> None:
        self.path.append(self.flat())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x.flatten(1)[:, :20]), y)

    def on_train_batch_end(self, *rest: Any) -> None:
        self.path.append(self.flat())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=self.momentum)


def test_a_run_under_sgd_is_read_as_it_is_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Sgd()
    logger = TensorBoardLogger(tmp_path, name=None)
    trainer = fit(module, [monitor()], tmp_path, data=loader(160, 16), max_epochs=20, logger=logger)
    events = read_events(logger.log_dir)
    assert set(events.Tags()["scalars"]) >= EVERY_TAG
    path = torch.stack(module.path)

    def at(tag: str) -> tuple[int, float]:
        last = events.Scalars(tag)[-1]
        return last.step, last.value

    step, distance = at(quantities.TRAJECTORY_DISTANCE)
    assert step == 199
    assert distance == pytest.approx(float((path[-1] - path[0]).norm()), rel=0.25)  # of the sketch
    assert float(trainer.callback_metrics[quantities.TRAJECTORY_DISTANCE]) == pytest.approx(distance)
    step, length = at(quantities.TRAJECTORY_TREE)
    chosen = torch.linspace(0, step + 1, 64).round().long()
    assert length == pytest.approx(float(spanning_tree_length(path[chosen])), rel=0.15)
    assert at(quantities.TRAJECTORY_MAGNITUDE)[1] == pytest.approx(
        float(positive_magnitude(path[chosen], 160**0.5)), rel=0.2
    )
    growth = distance_from_start(path[chosen], chosen)
    assert at(quantities.TRAJECTORY_GROWTH)[1] == pytest.approx(float(growth.exponent), abs=0.06)
    x, y = images(160).tensors
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(module.net(x.flatten(1)[:, :20]), y))
    assert at(quantities.TRAJECTORY_LOSS)[1] == pytest.approx(loss, rel=0.02)


def test_a_resumed_run_goes_on_with_the_path_that_it_had(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> pl.Trainer:
        torch.manual_seed(0)
        data = loader(160, 16, shuffle=False)
        return fit(Sgd(), [monitor()], tmp_path, data=data, max_epochs=epochs, ckpt_path=ckpt)

    first = run(8)
    first.save_checkpoint(tmp_path / "eight.ckpt")
    resumed, whole = run(15, str(tmp_path / "eight.ckpt")), run(15)
    for tag in EVERY_TAG:
        expected = float(whole.callback_metrics[tag])
        assert float(resumed.callback_metrics[tag]) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_two_learning_rates_are_compared_at_equal_loss_from_either_logger(tmp_path: Path) -> None:
    """Plain SGD follows nearly one path at two small rates: equal at equal loss, far apart at equal step."""
    runs = []
    for name, rate in (("slow", 0.01), ("fast", 0.03)):
        torch.manual_seed(0)
        loggers = [TensorBoardLogger(tmp_path / "board", name=name), CSVLogger(tmp_path / "table", name=name)]
        fit(Sgd(rate), [monitor()], tmp_path, data=loader(160, 16), max_epochs=24, logger=loggers)
        runs.append([logger.log_dir for logger in loggers])
    (slow, slow_table), (fast, fast_table) = runs
    found, tables = compare_runs([slow, fast]), compare_runs([slow_table, fast_table])
    assert not found.left_out
    assert len(found.losses) == 3
    for loss, of_tables in zip(found.losses, tables.losses, strict=True):
        one, other = (found.at(run, loss, quantities.TRAJECTORY_DISTANCE) for run in (slow, fast))
        assert one.value == pytest.approx(other.value, rel=0.15)
        assert one.step > 2 * other.step
        same = tables.at(slow_table, of_tables, quantities.TRAJECTORY_DISTANCE)
        assert (same.value, same.step) == pytest.approx((one.value, one.step), rel=1e-4)
    distances = {
        run: {e.step: e.value for e in read_events(run).Scalars(quantities.TRAJECTORY_DISTANCE)} for run in (slow, fast)
    }
    assert distances[fast][200] > 1.5 * distances[slow][200]
    assert quantities.TRAJECTORY_DISTANCE in str(found)
