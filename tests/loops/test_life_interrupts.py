"""A fit that breaks off leaves nothing behind: no hook, no mute, no file; and what was logged is there."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import CALLBACKS, ours
from _life import Complete, trainer
from _resuming import Memory
from _tensorboard import read_events
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from lightning_cx import ComplexityEarlyStopping

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


@pytest.fixture(autouse=True)
def _control_c() -> Iterator[None]:
    """Lightning takes the signal off for the rest of the process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


class Broken(Complete):
    """Breaks off in its eighth step: in the forward, or just before the backward."""

    def __init__(self, error: BaseException, where: str) -> None:
        super().__init__()
        self.error, self.where = error, where

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.where == "training_step" and self.training and self.trainer.global_step == 7:
            raise self.error
        return super().training_step(batch, batch_idx)

    def on_before_backward(self, loss: Tensor) -> None:
        if self.where == "backward" and self.trainer.global_step == 7:
            raise self.error


ERRORS: dict[str, tuple[BaseException, type[BaseException]]] = {
    "KeyboardInterrupt": (KeyboardInterrupt(), SystemExit),  # into which Lightning turns it
    "an error": (ValueError("of the user"), ValueError),
}


@pytest.mark.parametrize("where", ["training_step", "backward"])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit_that_breaks_off_leaves_nothing_behind(name: str, kind: str, where: str, tmp_path: Path) -> None:
    error, raised = ERRORS[kind]

    def run(callbacks: list[Any]) -> tuple[dict[str, Tensor], list[Any]]:
        pl.seed_everything(1)
        module = Broken(error, where)
        with pytest.raises(raised):
            trainer(callbacks, tmp_path, max_epochs=4).fit(module)
        modules = list(module.modules())
        left = [sorted(m.__dict__) for m in modules], [len(m._forward_hooks) + len(m._backward_hooks) for m in modules]
        gradients = [p.grad for p in module.parameters()]
        return dict(module.state_dict()), [*left, [m.training for m in modules], str(gradients), torch.get_rng_state()]

    weights, left = run([ours(name, strict=True)])
    expected_weights, expected = run([])
    assert all(torch.equal(weights[key], expected_weights[key]) for key in expected_weights)
    assert [str(part) for part in left] == [str(part) for part in expected]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_what_was_measured_before_the_break_is_in_the_log(name: str, kind: str, tmp_path: Path) -> None:
    error, raised = ERRORS[kind]
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")]
    with pytest.raises(raised):
        trainer([ours(name)], tmp_path, logger=loggers).fit(Broken(error, "training_step"))
    tag = "stopping/risk" if name == "ComplexityEarlyStopping" else "complexity/residual_energy"
    with (Path(loggers[0].log_dir) / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get(tag)]
    last = 7 if name == "ComplexityEarlyStopping" else 6
    assert steps == list(range(last + 1))
    assert [event.step for event in read_events(loggers[1].log_dir).Scalars(tag)] == steps


@pytest.mark.parametrize(("kind", "drawn"), [("KeyboardInterrupt", True), ("an error", False)])
def test_pictures_of_a_run_that_is_ended_by_hand_are_drawn(kind: str, drawn: bool, tmp_path: Path) -> None:
    error, raised = ERRORS[kind]
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(raised):
        trainer([ours("ComplexityMonitor")], tmp_path, logger=logger).fit(Broken(error, "training_step"))
    assert bool(read_events(logger.log_dir).Tags()["images"]) == drawn


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit_after_one_that_broke_off_is_measured(name: str, tmp_path: Path) -> None:
    callback = ours(name, strict=True)
    with pytest.raises(ValueError, match="of the user"):
        trainer([callback], tmp_path).fit(Broken(ValueError("of the user"), "backward"))
    again = trainer([callback], tmp_path)
    again.fit(Complete())
    assert again.global_step == 10
    assert {"stopping/risk", "complexity/residual_energy"} & set(again.callback_metrics)


def test_after_a_break_the_best_weights_can_be_put_back_by_hand(tmp_path: Path) -> None:
    stopping = ours("ComplexityEarlyStopping", strict=True)
    module = Broken(ValueError("of the user"), "backward")
    with pytest.raises(ValueError, match="of the user"):
        trainer([stopping], tmp_path).fit(module)
    assert isinstance(stopping, ComplexityEarlyStopping)
    assert stopping.best_step == stopping.kept.step == 7
    stopping.kept.restore(module)


@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last")  # beside this callback Lightning looks for one by itself
@pytest.mark.filterwarnings("ignore:.*was called without a model")
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_checkpoint_written_at_an_exception_can_be_resumed_from(name: str, tmp_path: Path) -> None:
    saving, module = OnExceptionCheckpoint(tmp_path), Broken(ValueError("of the user"), "training_step")
    with pytest.raises(ValueError, match="of the user"):
        trainer([ours(name), saving], tmp_path, enable_checkpointing=True).fit(module)
    state = torch.load(saving.ckpt_path, weights_only=True)
    callback = ours(name, strict=True)
    assert callback.state_key in state["callbacks"]
    memory = Memory()
    resumed = trainer([callback], tmp_path, logger=memory)
    with pytest.warns(UserWarning, match="dataloader is not resumable"):  # Lightning's, of a plain loader
        resumed.fit(Complete(), ckpt_path=saving.ckpt_path)
    assert resumed.global_step == 10
    if isinstance(callback, ComplexityEarlyStopping):
        assert [point[0] for point in callback.watch.state_dict()["record"]["points"]["entries"]] == list(range(11))
    else:
        # The step that failed counts in Lightning's own log: after it, every logger's steps are one higher.
        assert sorted({step for step, tag, _ in memory.rows if tag == "loss_step"}) == [8, 9, 10]
        assert [step for step, _ in callback.instruments[2].state_dict()["columns"]["entries"]] == [*range(7), 8, 9, 10]
