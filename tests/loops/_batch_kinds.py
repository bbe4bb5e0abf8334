"""A classifier that reads any batch, what its batches show by the naive loop, and both callbacks beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from _lightning import Classifier, fingerprint, fit, images
from _models import cross_entropy, naive_rows, relative_error
from test_monitor import Seen, Watch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet, SpectralRisk

Pair = tuple[Tensor, Tensor]
CALLBACKS = ["ComplexityMonitor", "ComplexityEarlyStopping"]


class Reading(Classifier):
    """Finds images and labels in a batch of any make.

    Args:
        read: Gives both of a batch.
    """

    def __init__(self, read: Callable[[Any], Pair] = tuple, **options: Any) -> None:
        super().__init__(**options)
        self.read = read

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(self.read(batch), batch_idx)


class Truth(pl.Callback):
    """The Gram matrix of each training batch by the naive loop, under the step that Lightning logs it as."""

    def __init__(self) -> None:
        self.grams: dict[int, Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rows = naive_rows(pl_module.net, cross_entropy, *pl_module.read(batch))
        self.grams[trainer.fit_loop.epoch_loop._batches_that_stepped] = rows @ rows.T


def stopping(**options: Any) -> ComplexityEarlyStopping:
    """Looks at every step and never stops: nothing is certainly worse."""
    never = SpectralRisk(patience=10**6, z=1e9)
    return ComplexityEarlyStopping(never, **{"every_n_steps": 1, "probe": ProbeSet(size=128), **options})


def ours(name: str, **options: Any) -> Any:
    """One of both callbacks, at every step."""
    if name == "ComplexityEarlyStopping":
        return stopping(**options)
    return ComplexityMonitor(**{"every_n_steps": 1, "probe": ProbeSet(size=128), **options})


def loader_of(make: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y), count: int = 160, seed: int = 0) -> Any:
    """Batches of 32 in order, which a collate function gives a make of their own."""
    return DataLoader(images(count, seed), batch_size=32, collate_fn=lambda items: make(*default_collate(items)))


def plain() -> DataLoader:
    """Five batches, in order."""
    return DataLoader(images(), batch_size=32)


def checks(callback: ComplexityEarlyStopping) -> list[int]:
    """Steps at which the stopping rule looked."""
    return [point[0] for point in callback.watch.state_dict()["record"]["points"]["entries"]]


def told(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a run gives, and what we warned of on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    words = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    return result, [w for w in words if "the signal is not distinguishable from zero" not in w]


def assert_undisturbed(make: Callable[[list[Any]], pl.Trainer], callback: Any) -> pl.Trainer:
    """A run with the callback ends as one without it; returns the former."""
    pl.seed_everything(3)
    without = fingerprint(make([]))
    pl.seed_everything(3)
    trainer = make([callback])
    assert fingerprint(trainer) == without
    return trainer


def watched(
    module: Callable[[], Reading], data: Callable[[], Any], folder: Path, **options: Any
) -> tuple[list[Seen], dict[int, Tensor]]:
    """What a monitor saw of a run, and the Gram matrices that it should have seen; with and without, both end alike."""
    watch, truth = Watch(), Truth()

    def run(callbacks: list[Any]) -> pl.Trainer:
        return fit(module(), callbacks + [truth] * bool(callbacks), folder, data=data(), **options)

    strict = options.pop("strict", True)
    assert_undisturbed(run, ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(size=128), strict=strict))
    return watch.seen, truth.grams


def assert_rows_are_the_examples(seen: list[Seen], truth: dict[int, Tensor], steps: list[int]) -> None:
    """Per-example gradients were read at these steps, and are those of the naive loop."""
    samples = {o.step: o.gradients for o in seen if o.gradients is not None}
    assert list(samples) == steps
    for step, sample in samples.items():
        assert sample.status == "exact"
        assert sample.gram is not None
        assert relative_error(sample.gram, truth[step]) < 1e-5
