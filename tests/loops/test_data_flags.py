"""The Trainer's flags that cut a fit short or arrange it differently, and what a training step may return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import (
    CALLBACKS,
    Reading,
    assert_rows_are_the_examples,
    assert_undisturbed,
    checks,
    ours,
    plain,
    told,
    watched,
)
from _lightning import fit, images
from _noisy import Weights, same
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.functional.stopping import Decision
from lightning_cx.rules import StoppingRule
from lightning_cx.rules.base import Curve

LIMITS: dict[str, tuple[dict[str, Any], int]] = {
    "limit_train_batches=4": ({"limit_train_batches": 4}, 8),
    "limit_train_batches=.9": ({"limit_train_batches": 0.9}, 8),
    "overfit_batches=4": ({"overfit_batches": 4}, 8),
    "overfit_batches=.8": ({"overfit_batches": 0.8}, 8),
    "max_steps": ({"max_steps": 7}, 7),
    "min_epochs": ({"min_epochs": 2, "max_epochs": 2}, 10),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limited_fit_is_measured_to_its_end(limit: str, tmp_path: Path) -> None:
    options, steps = LIMITS[limit]
    seen, truth = watched(Reading, plain, tmp_path, **options)
    assert_rows_are_the_examples(seen, truth, list(range(steps)))
    callback = ours("ComplexityEarlyStopping", strict=True)
    assert_undisturbed(lambda callbacks: fit(Reading(), callbacks, tmp_path, data=plain(), **options), callback)
    assert checks(callback) == list(range(steps + 1))


@pytest.mark.parametrize("limit", ["limit_train_batches=4", "overfit_batches=4"])
def test_the_probe_is_drawn_from_what_a_limited_fit_trains_on(limit: str, tmp_path: Path) -> None:
    monitor = ours("ComplexityMonitor", strict=True)
    fit(Reading(), [monitor], tmp_path, data=plain(), **LIMITS[limit][0])
    assert monitor.probe.indices == list(range(128))


@pytest.mark.parametrize("name", CALLBACKS)
def test_too_few_examples_behind_a_limit_are_named(name: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> pl.Trainer:
        return fit(Reading(), callbacks, tmp_path, data=plain(), limit_train_batches=2)

    _, words = told(lambda: assert_undisturbed(run, ours(name)))
    assert len(words) == 1
    assert "needs at least 128 examples to tell noise from target, got a training set of 64" in words[0]


NOTHING: dict[str, dict[str, Any]] = {
    "limit_train_batches=0": {"limit_train_batches": 0},
    "limit_train_batches=0.": {"limit_train_batches": 0.0},
    "max_steps=0": {"max_steps": 0},
    "max_epochs=0": {"max_epochs": 0},
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit_of_no_batch_measures_nothing_and_says_nothing(name: str, case: str, tmp_path: Path) -> None:
    callback = ours(name, strict=True)  # a warning would be an error
    trainer = fit(Reading(), [callback], tmp_path, data=plain(), **NOTHING[case])
    assert trainer.global_step == 0
    assert not trainer.callback_metrics


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batches", [True, 3])
@pytest.mark.parametrize("name", CALLBACKS)
def test_fast_dev_run_tries_what_the_real_run_will_do(
    name: str, batches: bool | int, shuffle: bool, tmp_path: Path
) -> None:
    """Its few batches hold fewer examples than a probe needs; the real run will have them."""
    callback = ours(name, strict=True)
    if isinstance(callback, ComplexityMonitor):
        callback = ComplexityMonitor(probe=ProbeSet(size=128), strict=True)  # of a budget, which a smoke test overrides

    def run(callbacks: list[Any]) -> pl.Trainer:
        data = DataLoader(images(), batch_size=32, shuffle=shuffle)
        return fit(Reading(), callbacks, tmp_path, data=data, fast_dev_run=batches)

    trainer = assert_undisturbed(run, callback)
    tag = "stopping/risk" if name == "ComplexityEarlyStopping" else "complexity/residual_median"
    assert {tag} <= set(trainer.callback_metrics)
    if name == "ComplexityMonitor":
        assert "gradient/norm" in trainer.callback_metrics


class AtOnce(StoppingRule):
    """Says stop at the second check."""

    def __init__(self) -> None:
        self.checks = 0

    def check(self, coefficients: Tensor, step: int) -> Decision:
        self.checks += 1
        return Decision(self.checks > 1, self.checks - 1, "at once", 0.0, 0.0)

    def reset(self) -> None:
        self.checks = 0

    @property
    def curve(self) -> Curve:
        return Curve("stopping/mine", "mine", "Mine", "Read it.")


@pytest.mark.parametrize(
    ("flag", "steps"), [({"fast_dev_run": 3}, 3), ({}, 1), ({"min_steps": 7}, 7), ({"min_epochs": 1}, 6)]
)
def test_a_smoke_test_is_not_stopped_and_min_steps_come_first(flag: dict[str, int], steps: int, tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(AtOnce(), every_n_steps=1, probe=ProbeSet(size=128), restore_best=False)
    trainer = fit(Reading(), [stopping], tmp_path, data=plain(), **flag)
    assert trainer.global_step == steps
    assert stopping.stopped_step == (None if "fast_dev_run" in flag else steps)


@pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")  # after so many steps
@pytest.mark.parametrize("name", CALLBACKS)
def test_max_time_ends_a_fit_that_is_the_beginning_of_one_without_us(name: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any], **options: Any) -> dict[int, dict[str, Tensor]]:
        pl.seed_everything(3)
        weights = Weights()
        fit(Reading(), [*callbacks, weights], tmp_path, data=plain(), max_epochs=-1, **options)
        return weights.after

    callback = ours(name, strict=True)
    timed = run([callback], max_time={"seconds": 1})
    alone = run([], max_steps=max(timed))
    assert timed.keys() == alone.keys()
    assert all(same(timed[step], alone[step]) for step in timed)


class Validated(Reading):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]) + torch.rand(()))


class Halves(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(images(), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(images(64, seed=1), batch_size=32)


VALIDATED: dict[str, dict[str, Any]] = {
    "sanity check": {"num_sanity_val_steps": 2},
    "no sanity check": {"num_sanity_val_steps": 0},
    "val_check_interval=2": {"val_check_interval": 2},
    "val_check_interval=.5": {"val_check_interval": 0.5},
    "check_val_every_n_epoch=2": {"check_val_every_n_epoch": 2},
    "limit_val_batches=0": {"limit_val_batches": 0},
}


@pytest.mark.parametrize("case", VALIDATED)
def test_validation_in_between_is_not_looked_at_and_not_changed(case: str, tmp_path: Path) -> None:
    seen, truth = watched(Validated, Halves, tmp_path, **VALIDATED[case])  # val_loss is among what has to be the same
    assert_rows_are_the_examples(seen, truth, list(range(10)))
    assert len([o for o in seen if o.probe is not None]) == 10
    callback = ours("ComplexityEarlyStopping", strict=True)
    run = lambda callbacks: fit(Validated(), callbacks, tmp_path, data=Halves(), **VALIDATED[case])  # noqa: E731
    assert_undisturbed(run, callback)
    assert checks(callback) == list(range(11))


class Reloaded(pl.LightningDataModule):
    """Other images in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def train_dataloader(self) -> DataLoader:
        self.epoch += 1
        return DataLoader(images(160, seed=self.epoch), batch_size=32)


def test_the_probe_stays_what_it_was_where_loaders_are_reloaded(tmp_path: Path) -> None:
    options = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}
    seen, truth = watched(Reading, Reloaded, tmp_path, **options)
    assert_rows_are_the_examples(seen, truth, list(range(15)))
    probes = [o.probe for o in seen if o.probe is not None]
    assert len(probes) == 15
    assert all(torch.equal(probe.features, probes[0].features) for probe in probes)
    callback = ours("ComplexityEarlyStopping", strict=True)
    assert_undisturbed(lambda callbacks: fit(Reading(), callbacks, tmp_path, data=Reloaded(), **options), callback)
    assert checks(callback) == list(range(16))


class SkipsTheRest(Reading):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class SkipsSome(Reading):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


class InADictionary(Reading):
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"loss": super().training_step(batch, batch_idx), "note": ["of the user"]}


STEPS: dict[str, tuple[Callable[[], Reading], list[int], list[int]]] = {
    # An epoch that is left at its fourth batch: that one was begun, has no gradients, and its step comes in the next.
    "on_train_batch_start returns -1": (SkipsTheRest, [0, 1, 2, 4, 5], list(range(7))),
    # Batches 1 and 4 of an epoch have no backward; the optimizer steps all the same, without gradients.
    "training_step returns None": (SkipsSome, [0, 2, 3, 5, 7, 8], list(range(11))),
    "training_step returns a dict": (InADictionary, list(range(10)), list(range(11))),
}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("case", STEPS)
def test_steps_that_are_left_out_are_not_measured_and_hold_nothing_up(case: str, tmp_path: Path) -> None:
    module, sampled, checked = STEPS[case]
    seen, truth = watched(module, plain, tmp_path)
    assert_rows_are_the_examples(seen, truth, sampled)
    callback = ours("ComplexityEarlyStopping", strict=True)
    assert_undisturbed(lambda callbacks: fit(module(), callbacks, tmp_path, data=plain()), callback)
    assert checks(callback) == checked
