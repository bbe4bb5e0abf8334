"""A tuner before a fit leaves no trace in us, and we leave none in what it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from _batch_kinds import CALLBACKS, ours
from _life import Complete, trainer
from _lightning import fingerprint
from _resuming import Memory
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lightning_cx import ComplexityEarlyStopping
from lightning_cx.instruments import quantities

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = [
    pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal"),
    pytest.mark.filterwarnings("ignore:.*reached.*max_epochs"),
]


def learning_rate(around: pl.Trainer, module: Complete) -> Any:
    found = Tuner(around).lr_find(module, num_training=8, update_attr=False)
    return None if found is None else found.results


def batch_size(around: pl.Trainer, module: Complete) -> Any:
    return Tuner(around).scale_batch_size(module, batch_arg_name="size", max_trials=2, steps_per_trial=2)


TUNERS: dict[str, Callable[[pl.Trainer, Complete], Any]] = {"lr_find": learning_rate, "scale_batch_size": batch_size}


class Run:
    """A fit, with or without a tuner before it."""

    def __init__(self, callbacks: list[Any], folder: Path, tune: Callable[..., Any] | None = None) -> None:
        pl.seed_everything(1)
        self.memory, module = Memory(), Complete(size=8)
        self.trainer = trainer(callbacks, folder, logger=self.memory)
        self.found = None if tune is None else tune(self.trainer, module)
        self.logged_by_tuner = list(self.memory.rows)
        self.memory.rows.clear()
        self.should_stop = self.trainer.should_stop
        module.size, module.calls = 32, 0
        module.seen.clear()
        pl.seed_everything(2)
        self.trainer.fit(module)
        self.logged = [row for row in self.memory.rows if row[1] != quantities.OVERHEAD]
        self.state = fingerprint(self.trainer)


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_the_fit_after_a_tuner_is_the_fit_without_one(name: str, tuner: str, tmp_path: Path) -> None:
    tuned = Run([ours(name, strict=True)], tmp_path, TUNERS[tuner])
    untuned = Run([ours(name, strict=True)], tmp_path)
    assert not tuned.logged_by_tuner
    assert not tuned.should_stop
    assert tuned.logged == untuned.logged
    assert tuned.state == untuned.state


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_tuner_finds_what_it_finds_without_us(name: str, tuner: str, tmp_path: Path) -> None:
    with_us = Run([ours(name, strict=True)], tmp_path, TUNERS[tuner])
    without = Run([], tmp_path, TUNERS[tuner])
    assert with_us.found is not None
    assert str(with_us.found) == str(without.found)
    assert with_us.state == without.state


def test_the_state_of_a_callback_between_two_fits_survives_a_tuner(tmp_path: Path) -> None:
    pl.seed_everything(1)
    module, stopping = Complete(), ours("ComplexityEarlyStopping", strict=True)
    around = trainer([stopping], tmp_path)
    around.fit(module)
    before = str(stopping.state_dict())
    learning_rate(around, module)
    assert str(stopping.state_dict()) == before
    assert isinstance(stopping, ComplexityEarlyStopping)
    assert stopping.watch.begun


@pytest.mark.parametrize("finder", ["LearningRateFinder", "BatchSizeFinder"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_finders_that_are_callbacks_run_inside_a_fit_that_stays_the_same(
    name: str, finder: str, tmp_path: Path
) -> None:
    def run(callbacks: list[Any]) -> tuple[dict[str, str], list[tuple[int, str, float]]]:
        tuning: Any = LearningRateFinder(num_training_steps=8)
        if finder == "BatchSizeFinder":
            tuning = BatchSizeFinder("power", steps_per_trial=2, init_val=16, max_trials=1, batch_arg_name="size")
        pl.seed_everything(1)
        memory = Memory()
        around = trainer([tuning, *callbacks], tmp_path, logger=memory)
        around.fit(Complete())
        return fingerprint(around), memory.rows

    with_us, rows = run([ours(name, strict=True)])
    without, _ = run([])
    assert with_us == without
    own, users = ({step for step, tag, _ in rows if ("/" in tag) is of_us} for of_us in (True, False))
    assert min(users) == 0
    assert own >= users  # what is logged begins with the fit itself (of which Lightning 2.5's finder uses up a part)
