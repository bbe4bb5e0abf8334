"""An interrupted and resumed run logs what an uninterrupted one does, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _batch_kinds import CALLBACKS, stopping, told
from _lightning import Classifier, fit, images
from _resuming import Memory, Resumable
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.instruments import GradientNoise, GradientSpectrum, Interference, SpectralBias, TailIndex, quantities

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx.*nan,")

Log = dict[tuple[int, str], float]


class PowerCut(pl.Callback):
    """Ends a run by an error after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            raise RuntimeError("power cut")


def callback(name: str, every: int) -> Any:
    if name == "ComplexityEarlyStopping":
        return stopping(every_n_steps=every)
    instruments = [GradientNoise(), GradientSpectrum(), SpectralBias(per_band=True), Interference(), TailIndex()]
    return ComplexityMonitor(instruments, every_n_steps=every, probe=ProbeSet(size=128))


def ours_in(memory: Memory) -> Log:
    return {(step, tag): value for step, tag, value in memory.rows if "/" in tag and tag != quantities.OVERHEAD}


class Runs:
    """Runs of the same model on the same data in the same order, interrupted or not.

    Args:
        name: Of the callback.
        every: Its period.
        examples: In the data set.
        folder: Of the checkpoints.
        options: Of the Trainer.
    """

    def __init__(self, name: str, every: int, examples: int, folder: Path, **options: Any) -> None:
        self.name, self.every, self.examples, self.folder, self.options = name, every, examples, folder, options

    def run(self, callbacks: list[Any], ckpt_path: str | None = None, **options: Any) -> tuple[Log, pl.Trainer]:
        memory = Memory()
        torch.manual_seed(0)
        module, data = Classifier(), Resumable(images(self.examples))
        chosen = {"max_epochs": -1, "enable_checkpointing": True, "logger": memory, **self.options, **options}
        everyone = [callback(self.name, self.every), *callbacks]
        try:
            trainer = fit(module, everyone, self.folder, data=data, ckpt_path=ckpt_path, **chosen)
        except RuntimeError as error:
            assert str(error) == "power cut"  # noqa: PT017 - where none was asked for, the trainer below is missing
            return ours_in(memory), module.trainer
        return ours_in(memory), trainer

    def saving(self, folder: str, every: int) -> ModelCheckpoint:
        return ModelCheckpoint(self.folder / folder, every_n_train_steps=every, save_top_k=-1)

    def compare(self, cut: int, power_cut: int) -> None:
        """The log of a run that was cut after a checkpoint and went on from it, beside that of a whole one."""
        whole, finished = self.run([self.saving("whole", cut)])
        first, _ = self.run([self.saving("parts", cut), PowerCut(power_cut)])
        (path,) = (self.folder / "parts").glob(f"*step={cut}.ckpt")
        second, resumed = self.run([self.saving("parts", cut)], ckpt_path=str(path))
        assert first
        assert second
        assert set(first) != set(whole) != set(second)
        # What was logged after the checkpoint is logged again: the same.
        assert all(first[entry] == second[entry] for entry in first.keys() & second.keys())
        assert {**first, **second} == whole
        weights = [t.lightning_module.state_dict() for t in (finished, resumed)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


CUTS: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    # period, examples in batches of 32, checkpoint after, power cut after
    "in the middle of an epoch": (1, 160, 7, 9, {"max_steps": 13}),
    "between two samples": (3, 160, 7, 9, {"max_steps": 13}),
    "at the end of an epoch": (2, 160, 10, 11, {"max_steps": 15}),
    "after a short batch that was passed over": (4, 130, 5, 6, {"max_steps": 13}),
    "before a short batch": (1, 130, 4, 5, {"max_steps": 11}),
    "under accumulation": (4, 160, 3, 4, {"max_steps": 7, "accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_the_stitched_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(name: str, cut: str, tmp_path: Path) -> None:
    every, examples, saved, power_cut, options = CUTS[cut]
    Runs(name, every, examples, tmp_path, **options).compare(saved, power_cut)


class Endless(IterableDataset):
    """Batches without an index, in an order that a checkpoint keeps."""

    def __init__(self) -> None:
        self.batches = Resumable(images())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class ResumableStream(DataLoader):
    def __init__(self) -> None:
        super().__init__(Endless(), batch_size=None)

    def state_dict(self) -> dict[str, int]:
        return self.dataset.batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.dataset.batches.load_state_dict(state)


@pytest.mark.parametrize("name", CALLBACKS)
def test_on_a_stream_a_resumed_run_says_that_its_probe_starts_afresh(name: str, tmp_path: Path) -> None:
    """Checkpoints hold no examples of a stream; its gradients are measured on as before."""

    def run(callbacks: list[Any], ckpt_path: str | None = None) -> Log:
        memory = Memory()
        torch.manual_seed(0)
        options = {"max_steps": 15, "max_epochs": -1, "enable_checkpointing": True, "logger": memory}
        data = ResumableStream()
        fit(Classifier(), [callback(name, 1), *callbacks], tmp_path, data=data, ckpt_path=ckpt_path, **options)
        return ours_in(memory)

    saving = ModelCheckpoint(tmp_path / "a", every_n_train_steps=5, save_top_k=-1)
    whole = run([saving])
    (path,) = (tmp_path / "a").glob("*step=5.ckpt")
    resumed, words = told(lambda: run([], ckpt_path=str(path)))
    afresh = "the stopping rule starts afresh" if name == "ComplexityEarlyStopping" else "residual spectra start afresh"
    assert len([text for text in words if afresh in text]) == 1
    of_gradients = {e: v for e, v in whole.items() if e[1].startswith(("gradient/", "tail/")) and e[0] >= 5}
    assert all(resumed[entry] == value for entry, value in of_gradients.items())
    assert bool(of_gradients) == (name == "ComplexityMonitor")
    tag = "stopping/risk" if name == "ComplexityEarlyStopping" else quantities.RESIDUAL_ENERGY
    assert min(step for step, found in resumed if found == tag) in (8, 9)  # four batches later
