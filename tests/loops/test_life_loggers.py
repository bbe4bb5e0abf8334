"""Where our values go, and what other callbacks can do with them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from _batch_kinds import CALLBACKS, ours, told
from _life import Complete, measured, trainer
from _resuming import Memory
from _tensorboard import read_events
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cx import ComplexityMonitor, ProbeSet

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")

RISING = {"ComplexityMonitor": "complexity/residual_energy", "ComplexityEarlyStopping": "stopping/risk"}


class Failing(Memory):
    """Has no room for our values."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any("/" in tag for tag in metrics):
            raise OSError("disk full")
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_logger_gets_the_same_values_at_the_same_steps(name: str, tmp_path: Path) -> None:
    memory, table, board = Memory(), CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")
    trainer([ours(name, strict=True)], tmp_path, logger=[memory, table, board]).fit(Complete())
    tag = RISING[name]
    rows = [(step, value) for step, found, value in memory.rows if found == tag]
    assert len(rows) >= 10
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        written = [(int(row["step"]), float(row[tag])) for row in csv.DictReader(file) if row.get(tag)]
    assert written == rows
    events = read_events(board.log_dir).Scalars(tag)
    assert [(event.step, event.value) for event in events] == [(step, pytest.approx(value)) for step, value in rows]


@pytest.mark.parametrize("name", CALLBACKS)
def test_without_a_logger_values_are_still_there_for_other_callbacks(name: str, tmp_path: Path) -> None:
    around = trainer([ours(name, strict=True)], tmp_path, logger=False)
    around.fit(Complete())
    assert RISING[name] in measured(around)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_logger_that_fails_is_named_and_others_get_their_values(name: str, tmp_path: Path) -> None:
    sound = Memory()
    around = trainer([ours(name)], tmp_path, logger=[sound, Failing()])
    _, words = told(lambda: around.fit(Complete()))
    assert around.state.finished
    assert words[0] == "lightning_cx: logging to Failing failed, training continues: OSError: disk full"
    assert "logging to Failing is disabled after 3 failures in a row" in words[1]
    assert len(words) == 2
    assert RISING[name] in measured(around)
    assert len([row for row in sound.rows if row[1] == RISING[name]]) >= 10


@pytest.mark.parametrize("name", CALLBACKS)
def test_model_checkpoint_keeps_the_best_by_our_value_and_names_the_file_after_it(name: str, tmp_path: Path) -> None:
    tag, memory = RISING[name], Memory()
    saving = ModelCheckpoint(
        tmp_path / "best",
        monitor=tag,
        mode="min",
        save_top_k=2,
        every_n_train_steps=1,
        filename="{step}-{" + tag + ":.4f}",
        auto_insert_metric_name=False,
    )
    around = trainer([ours(name, strict=True), saving], tmp_path, logger=memory, enable_checkpointing=True)
    around.fit(Complete())
    last = {}
    for step, found, value in memory.rows:
        if found == tag:
            last[step + (name == "ComplexityMonitor")] = value  # by the steps done when the checkpoint is written
    best = sorted((last[step], step) for step in range(1, 11))[:2]
    assert sorted(float(score) for score in saving.best_k_models.values()) == pytest.approx([v for v, _ in best])
    assert float(saving.best_model_score) == pytest.approx(best[0][0])
    assert saving.best_model_path.endswith(f"{best[0][1]}-{best[0][0]:.4f}.ckpt")
    assert Path(saving.best_model_path).exists()


@pytest.mark.parametrize("name", CALLBACKS)
def test_lightnings_early_stopping_stops_by_our_value(name: str, tmp_path: Path) -> None:
    limit = EarlyStopping(RISING[name], stopping_threshold=1e9, check_on_train_epoch_end=True)
    around = trainer([ours(name, strict=True), limit], tmp_path, max_epochs=4)
    around.fit(Complete())
    assert around.global_step == 5


def rarely() -> ComplexityMonitor:
    """Has a budget of which a fit of a second can afford nothing."""
    return ComplexityMonitor(overhead_budget=1e-9, probe=ProbeSet(size=128))


def test_lightnings_early_stopping_needs_strict_false_where_nothing_was_measured_yet(tmp_path: Path) -> None:
    tag = "complexity/residual_energy"
    demanding = EarlyStopping(tag, check_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="conditioned on metric `complexity/residual_energy` which is not available"):
        trainer([rarely(), demanding], tmp_path).fit(Complete())
    patient = EarlyStopping(tag, check_on_train_epoch_end=True, strict=False, verbose=True)
    around = trainer([rarely(), patient], tmp_path)
    with pytest.warns(RuntimeWarning, match="`complexity/residual_energy` which is not available"):
        around.fit(Complete())
    assert around.global_step == 10


class Unvalidated(Complete):
    """Without a validation loop."""

    validation_step = pl.LightningModule.validation_step  # type: ignore[assignment]
    val_dataloader = pl.LightningModule.val_dataloader  # type: ignore[assignment]


def test_model_checkpoint_needs_a_value_before_it_saves_for_the_first_time(tmp_path: Path) -> None:
    def saving(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="complexity/residual_energy")

    words = r"`ModelCheckpoint\(monitor='complexity/residual_energy'\)` could not find the monitored key"
    with pytest.raises(MisconfigurationException, match=words):
        trainer([rarely(), saving("a")], tmp_path, enable_checkpointing=True).fit(Complete())
    around = trainer([rarely(), saving("b")], tmp_path, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=words):  # without validation Lightning warns, and saves
        around.fit(Unvalidated())
    assert around.global_step == 10
    sure = saving("c")
    every = ours("ComplexityMonitor", strict=True)
    trainer([every, sure], tmp_path, enable_checkpointing=True).fit(Complete())
    assert sure.best_model_path


def test_a_value_that_is_nan_stops_lightnings_early_stopping_unless_told_otherwise(tmp_path: Path) -> None:
    """The spectral bias index is nan in the first readings."""
    tag = "complexity/spectral_bias_index"

    def steps(**options: Any) -> tuple[int, float]:
        limit = EarlyStopping(tag, check_on_train_epoch_end=True, patience=10, **options)
        monitor = ComplexityMonitor(every_n_steps=5, probe=ProbeSet(size=128), strict=True)
        around = trainer([monitor, limit], tmp_path)
        around.fit(Complete())
        return around.global_step, float(around.callback_metrics[tag])

    stopped, value = steps()
    assert math.isnan(value)
    assert stopped == 5
    assert steps(check_finite=False)[0] == 10
