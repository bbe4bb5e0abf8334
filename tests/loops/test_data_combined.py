"""Several loaders side by side: an example is what stands in one row of all of them, and where none does, we say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import CALLBACKS, Pair, Reading, Truth, assert_undisturbed, loader_of, ours, told, watched
from _lightning import fit, images
from _models import relative_error
from lightning.pytorch.utilities import CombinedLoader
from test_monitor import Watch
from torch.utils.data import DataLoader

from lightning_cx import ComplexityMonitor, ProbeSet

MODES = ["min_size", "max_size", "max_size_cycle"]


def plain(count: int, size: int, seed: int = 0) -> DataLoader:
    return DataLoader(images(count, seed), batch_size=size)


def first(batch: Any) -> Pair:
    return tuple(batch["a"])


def second(batch: Any) -> Pair:
    return tuple(batch["b"])


def both(batch: Any) -> Pair:
    """The images of all loaders one after the other."""
    parts = [part for part in batch.values() if part is not None]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("read", [first, second])
def test_of_loaders_side_by_side_the_one_that_the_loss_is_of_is_measured(
    read: Callable[[Any], Pair], mode: str, tmp_path: Path
) -> None:
    def data() -> CombinedLoader:
        return CombinedLoader({"a": plain(160, 32), "b": plain(160, 32, seed=1)}, mode)

    seen, truth = watched(lambda: Reading(read), data, tmp_path)
    samples = {o.step: o.gradients for o in seen if o.gradients is not None}
    assert list(samples) == list(range(10))
    assert all(relative_error(sample.gram, truth[step]) < 1e-5 for step, sample in samples.items())
    assert {o.probe.residuals.shape for o in seen if o.probe is not None} == {(128, 5)}


@pytest.mark.parametrize("make", [dict, CombinedLoader])
def test_examples_of_loaders_side_by_side_are_pairs_where_the_loss_is_of_both(make: Any, tmp_path: Path) -> None:
    def data() -> Any:
        return make({"a": plain(160, 32), "b": plain(160, 32, seed=1)})

    def run() -> Any:
        return watched(lambda: Reading(both), data, tmp_path, strict=False)

    (seen, truth), words = told(run)
    samples = {o.step: o.gradients for o in seen if o.gradients is not None}
    assert list(samples) == list(range(1, 10))  # the first settles which axis holds the examples
    for step, sample in samples.items():
        blocks = truth[step].reshape(2, 32, 2, 32)
        assert relative_error(sample.gram, blocks.sum((0, 2)) / 4) < 1e-5  # the loss of a pair is the mean of two
    assert len(words) == 1
    assert "the probe is off: no output of a submodule with the examples along its first axis" in words[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CALLBACKS)
def test_loaders_of_different_batch_sizes_are_refused_by_name(name: str, mode: str, tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> pl.Trainer:
        loaders = {"a": plain(160, 32), "b": plain(200, 20, seed=1)}
        return fit(Reading(both), callbacks, tmp_path, data=CombinedLoader(loaders, mode))

    callback = ours(name)
    trainer, words = told(lambda: assert_undisturbed(run, callback))
    assert words[0] == (
        "lightning_cx: batches in which loaders side by side give 20 and 32 examples are skipped, since nothing "
        "says which of them belong together: give the loaders one batch size and drop_last=True, and combine them with "
        '"min_size" or "max_size_cycle"'
    )
    assert len(words) == 2
    assert "one epoch of the stream showed 0" in words[1]
    assert not {tag for tag in trainer.callback_metrics if "/" in tag} - {"complexity/overhead"}


def test_batches_in_which_a_loader_is_exhausted_are_passed_over(tmp_path: Path) -> None:
    def data() -> CombinedLoader:
        return CombinedLoader({"a": plain(160, 32), "b": plain(224, 32, seed=1)}, "max_size")

    def rest(batch: Any) -> Pair:
        return tuple(batch["b"])

    (seen, truth), words = told(lambda: watched(lambda: Reading(rest), data, tmp_path))
    samples = {o.step: o.gradients for o in seen if o.gradients is not None}
    assert list(samples) == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]  # five batches are whole in each epoch of seven
    assert all(relative_error(sample.gram, truth[step]) < 1e-5 for step, sample in samples.items())
    assert len(words) == 1
    assert "give 32 and no examples are skipped" in words[0]


def test_a_short_batch_beside_a_full_one_is_passed_over(tmp_path: Path) -> None:
    def data() -> CombinedLoader:
        return CombinedLoader([plain(160, 32), plain(150, 32, seed=1)], "max_size_cycle")

    watch, truth = Watch(), Truth()

    def run(callbacks: list[Any]) -> pl.Trainer:
        read = Reading(lambda batch: tuple(batch[0]))
        return fit(read, callbacks + [truth] * bool(callbacks), tmp_path, data=data())

    _, words = told(
        lambda: assert_undisturbed(run, ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(128), strict=True))
    )
    samples = {o.step: o.gradients for o in watch.seen if o.gradients is not None}
    assert list(samples) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert all(relative_error(sample.gram, truth.grams[step]) < 1e-5 for step, sample in samples.items())
    assert len(words) == 1
    assert "give 22 and 32 examples are skipped" in words[0]


def test_the_stopping_rule_looks_at_pairs_of_which_the_loss_reads_one(tmp_path: Path) -> None:
    def run(callbacks: list[Any]) -> pl.Trainer:
        loaders = {"a": plain(160, 32), "b": plain(160, 32, seed=1)}
        return fit(Reading(first), callbacks, tmp_path, data=CombinedLoader(loaders))

    callback = ours("ComplexityEarlyStopping", strict=True)
    assert_undisturbed(run, callback)
    assert [point[0] for point in callback.watch.state_dict()["record"]["points"]["entries"]] == [0, *range(4, 11)]


def test_one_loader_inside_a_collection_is_read_as_a_stream(tmp_path: Path) -> None:
    seen, truth = watched(lambda: Reading(first), lambda: {"a": loader_of()}, tmp_path)
    samples = {o.step: o.gradients for o in seen if o.gradients is not None}
    assert all(relative_error(sample.gram, truth[step]) < 1e-5 for step, sample in samples.items())
    assert len([o for o in seen if o.probe is not None]) == 7


@pytest.mark.parametrize("name", CALLBACKS)
def test_sequential_loaders_are_refused_by_lightning_itself(name: str, tmp_path: Path) -> None:
    data = CombinedLoader([plain(160, 32), plain(160, 32, seed=1)], "sequential")
    with pytest.raises(ValueError, match="does not support the `CombinedLoader"):
        fit(Reading(), [ours(name)], tmp_path, data=data)
