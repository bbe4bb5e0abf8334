"""A callback outlives a fit: other fits, other trainers, other entry points, copies, and hooks that bring it in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import CALLBACKS, ours
from _life import Complete, measured, trainer
from _lightning import fingerprint
from _models import Convnet
from _resuming import Memory
from torch import nn

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.instruments import GradientNoise, SpectralBias, quantities

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")

FEWEST = {"ComplexityMonitor": 20, "ComplexityEarlyStopping": 5}  # tags that a fit leaves behind, at least


def logged(memory: Memory) -> list[tuple[int, str, float]]:
    return [row for row in memory.rows if "/" in row[1] and row[1] != quantities.OVERHEAD]


def fitted(callbacks: list[Any], folder: Path, module: Complete | None = None, **options: Any) -> Memory:
    memory = Memory()
    module = Complete() if module is None else module
    pl.seed_everything(1)
    trainer(callbacks, folder, logger=memory, **options).fit(module)
    return memory


ORDERS = ["fit validate test predict", "validate fit", "test predict fit validate fit test", "predict"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_entry_points_before_between_and_after_fits_give_what_they_give_without_us(
    name: str, order: str, tmp_path: Path
) -> None:
    def run(callbacks: list[Any]) -> tuple[list[str], dict[str, str]]:
        pl.seed_everything(1)
        module, around = Complete(), trainer(callbacks, tmp_path)
        given: list[str] = []
        for entry in order.split():
            if entry == "fit":
                around.fit_loop.max_epochs = around.current_epoch + 2  # a second fit goes on where the first ended
                around.fit(module)
            else:
                quiet = {} if entry == "predict" else {"verbose": False}
                given.append(str(getattr(around, entry)(module, **quiet)))
        return given, fingerprint(around)

    assert run([ours(name, strict=True)]) == run([])


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_nothing_of_ours_acts_outside_a_fit(name: str, entry: str, tmp_path: Path) -> None:
    callback, memory = ours(name), Memory()
    before = copy.deepcopy(callback.state_dict())
    getattr(trainer([callback], tmp_path, logger=memory), entry)(Complete())
    assert str(callback.state_dict()) == str(before)
    assert not logged(memory)


@pytest.mark.parametrize("name", CALLBACKS)
def test_two_fits_of_one_trainer_are_one_history(name: str, tmp_path: Path) -> None:
    whole = fitted([ours(name, strict=True)], tmp_path, max_epochs=4)
    memory, module = Memory(), Complete()
    around = trainer([ours(name, strict=True)], tmp_path, logger=memory)
    pl.seed_everything(1)
    around.fit(module)
    around.fit_loop.max_epochs = 4
    around.fit(module)
    steps = sorted({step for step, _, _ in logged(memory)})
    assert steps == sorted({step for step, _, _ in logged(whole)})


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_in_a_second_trainer_with_another_model_starts_from_nothing(name: str, tmp_path: Path) -> None:
    shared = ours(name, strict=True)
    first = fitted([shared], tmp_path)
    assert logged(fitted([shared], tmp_path)) == logged(first)


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_in_a_second_trainer_with_the_same_model_starts_its_history_anew(name: str, tmp_path: Path) -> None:
    module, shared = Complete(), ours(name, strict=True)
    fitted([shared], tmp_path, module)
    twin = copy.deepcopy(module)
    assert logged(fitted([shared], tmp_path, module)) == logged(fitted([ours(name, strict=True)], tmp_path, twin))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda callback: pickle.loads(pickle.dumps(callback)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_copy_made_before_or_after_a_fit_works_like_a_new_one(name: str, way: str, tmp_path: Path) -> None:
    original = ours(name, strict=True)
    fresh = COPIES[way](original)
    assert fresh.state_key == original.state_key
    first = logged(fitted([original], tmp_path))
    assert logged(fitted([fresh], tmp_path)) == first
    used = COPIES[way](original)
    for part in ("instruments", "watch"):  # what was seen is in the copy
        assert str(used.state_dict().get(part)) == str(original.state_dict().get(part))
    assert logged(fitted([used], tmp_path)) == first  # and forgotten where another model comes


class Lazy(Complete):
    """Makes its layers in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.net is None:
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Identity(), nn.Dropout(0.1), Convnet())


@pytest.mark.parametrize("name", CALLBACKS)
def test_layers_made_in_configure_model_are_measured(name: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> pl.Trainer:
        pl.seed_everything(1)
        around = trainer(callbacks, tmp_path)
        around.fit(Lazy())
        return around

    with_us = run([ours(name, strict=True)])
    assert fingerprint(with_us) == fingerprint(run([]))
    assert len(measured(with_us)) >= FEWEST[name]


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_that_a_module_brings_along_are_used_and_replace_the_trainers(name: str, tmp_path: Path) -> None:
    class Bringing(Complete):
        def configure_callbacks(self) -> list[Any]:
            return [ours(name, strict=True)]

    memory = fitted([], tmp_path, Bringing())
    assert logged(memory) == logged(fitted([ours(name, strict=True)], tmp_path))
    around = trainer([ours(name)], tmp_path, max_steps=1)
    around.fit(Bringing())
    assert [c.strict for c in around.callbacks if type(c).__name__ == name] == [True]


class Other(pl.Callback):
    """Stops after six steps for a reason of its own."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 6


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit_that_somebody_else_stops_is_measured_to_its_end(name: str, first: bool, tmp_path: Path) -> None:
    callback = ours(name, strict=True)
    memory = fitted([Other(), callback] if first else [callback, Other()], tmp_path)
    last = 6 if name == "ComplexityEarlyStopping" else 5  # it counts the steps behind the weights that it sees
    assert sorted({step for step, _, _ in logged(memory)}) == list(range(last + 1))
    if isinstance(callback, ComplexityEarlyStopping):
        assert callback.stopped_step is None  # it was not ours


def test_several_monitors_and_a_stopping_rule_log_what_each_logs_alone(tmp_path: Path) -> None:
    def noise() -> ComplexityMonitor:
        return ComplexityMonitor([GradientNoise()], every_n_steps=1, strict=True)

    def bias() -> ComplexityMonitor:
        return ComplexityMonitor([SpectralBias()], every_n_steps=2, probe=ProbeSet(size=144), strict=True)

    def rule() -> ComplexityEarlyStopping:
        return ours("ComplexityEarlyStopping", strict=True)

    together = logged(fitted([noise(), bias(), rule()], tmp_path))
    alone = [logged(fitted([one()], tmp_path)) for one in (noise, bias, rule)]
    assert sorted(together) == sorted(row for rows in alone for row in rows)
