"""Batches of every make are read as they are, and residuals are measured on 128 of their examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _batch_kinds import Pair, Reading, assert_rows_are_the_examples, assert_undisturbed, loader_of, stopping, watched
from _lightning import Classifier, Stream, fit, images
from _models import relative_error
from lightning import LightningDataModule
from test_monitor import Watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from lightning_cx import ComplexityMonitor, ProbeSet

# Lightning's own, where a user logs from batches that hold words.
pytestmark = pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    y: Tensor
    split: str

    def to(self, device: torch.device, non_blocking: bool = False) -> Record:
        return Record(self.x.to(device), self.y.to(device), self.split)


def with_company(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Beside inputs and labels, what users put into batches: nothing, words, and names of examples."""
    names = [f"image {i}" for i in range(len(y))]
    return {"nothing": None, "empty": {}, "none": [], "split": "train", "names": names, "x": x, "y": y}


class BatchStream(IterableDataset):
    """Whole batches, without an index."""

    def __iter__(self) -> Iterator[Any]:
        return iter([images()[start : start + 32] for start in range(0, 160, 32)])


class Whole(Dataset):
    """Gives several examples for a list of indices, as tables of libraries do."""

    def __len__(self) -> int:
        return 160

    def __getitem__(self, indices: list[int]) -> list[Tensor]:
        return list(images()[indices])


class Images(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(images(), batch_size=32)


def workers() -> DataLoader:
    return DataLoader(images(), batch_size=32, num_workers=2, persistent_workers=True)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Pair]]] = {
    "dict": (lambda: loader_of(lambda x, y: {"image": x, "label": y}), lambda b: (b["image"], b["label"])),
    "tuple": (loader_of, tuple),
    "nested": (
        lambda: loader_of(lambda x, y: {"in": {"images": [x]}, "out": (y,)}),
        lambda b: (b["in"]["images"][0], b["out"][0]),
    ),
    "named tuple": (lambda: loader_of(Named), tuple),
    "dataclass": (lambda: loader_of(lambda x, y: Record(x, y, "train")), lambda b: (b.x, b.y)),
    "None, empty and strings": (lambda: loader_of(with_company), lambda b: (b["x"], b["y"])),
    "LightningDataModule": (Images, tuple),
    "two workers that persist": (workers, tuple),
    "IterableDataset": (lambda: DataLoader(Stream(), batch_size=32), tuple),
    "IterableDataset of batches": (lambda: DataLoader(BatchStream(), batch_size=None), tuple),
    "batch_size=None": (
        lambda: DataLoader(Whole(), batch_size=None, sampler=BatchSampler(SequentialSampler(Whole()), 32, False)),
        tuple,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_residuals_are_read_from_batches_of_any_make(kind: str, tmp_path: Path) -> None:
    data, read = KINDS[kind]
    seen, truth = watched(lambda: Reading(read), data, tmp_path)
    assert_rows_are_the_examples(seen, truth, steps=list(range(10)))
    probes = [o.probe for o in seen if o.probe is not None]
    assert {probe.residuals.shape for probe in probes} == {(128, 5)}
    assert not any(probe.coupled for probe in probes)
    streamed = "Iterable" in kind or ("None" in kind and "batch" in kind)
    assert len(probes) == (7 if streamed else 10)  # a stream has shown 128 examples after four batches


@pytest.mark.parametrize("kind", KINDS)
def test_the_stopping_rule_looks_at_batches_of_any_make(kind: str, tmp_path: Path) -> None:
    data, read = KINDS[kind]
    callback = stopping(strict=True)
    assert_undisturbed(lambda callbacks: fit(Reading(read), callbacks, tmp_path, data=data()), callback)
    steps = [point[0] for point in callback.watch.state_dict()["record"]["points"]["entries"]]
    streamed = "Iterable" in kind or ("None" in kind and "batch" in kind)
    assert steps == ([0, *range(4, 11)] if streamed else list(range(11)))


SIZES: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "a last batch of 22": (lambda: DataLoader(images(150), batch_size=32), list(range(10))),
    "a last batch of 2 is passed over": (
        lambda: DataLoader(images(130), batch_size=32),
        [0, 1, 2, 3, 5, 6, 7, 8],
    ),
    "custom batch_sampler": (
        lambda: DataLoader(images(), batch_sampler=[list(range(60)), list(range(60, 100)), list(range(100, 160))]),
        list(range(6)),
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_batches_of_unequal_size_are_measured_each_by_itself(case: str, tmp_path: Path) -> None:
    data, steps = SIZES[case]
    seen, truth = watched(Reading, data, tmp_path)
    assert_rows_are_the_examples(seen, truth, steps)
    assert {len(o.probe.residuals) for o in seen if o.probe is not None} == {128}
    callback = stopping(strict=True)
    assert_undisturbed(lambda callbacks: fit(Reading(), callbacks, tmp_path, data=data()), callback)
    assert callback.watch.begun


class Transfers(Reading):
    """Changes its batches in every hook on their way to the device; the probe goes the same way."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": 2 * batch[0], "y": batch[1]}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return {"x": batch["x"].to(device) + 1, "y": batch["y"].to(device)}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": (batch["x"] - 1) / 2, "y": batch["y"], "passed": True}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch["passed"]
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("streamed", [False, True])
def test_transfer_hooks_are_applied_to_the_probe_once(streamed: bool, tmp_path: Path) -> None:
    def data() -> DataLoader:
        return DataLoader(Stream() if streamed else images(), batch_size=32)

    def read(batch: Any) -> Pair:
        return batch["x"], batch["y"]

    seen, truth = watched(lambda: Transfers(read), data, tmp_path)
    assert_rows_are_the_examples(seen, truth, steps=list(range(10)))
    last = [o.probe for o in seen if o.probe is not None][-1]
    plain, _ = watched(Reading, data, tmp_path)
    expected = [o.probe for o in plain if o.probe is not None][-1]
    torch.testing.assert_close(last.residuals, expected.residuals, rtol=1e-4, atol=1e-6)  # half of twice rounds
    callback = stopping(strict=True)
    assert_undisturbed(lambda callbacks: fit(Transfers(read), callbacks, tmp_path, data=data()), callback)
    assert callback.watch.begun


class Sequences(Dataset):
    """Walks of 3 to 8 steps; the label says where they lead."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.walks = [
            torch.tensor(draw.normal(size=(length, 4)), dtype=torch.float32) for length in draw.integers(3, 9, 160)
        ]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.walks[index], (self.walks[index].mean(0)[0] > 0).long()


def packed(items: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    walks, labels = zip(*items, strict=True)
    return {"walks": pack_sequence(list(walks), enforce_sorted=False), "labels": torch.stack(labels)}


class Recurrent(Classifier):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleList([nn.GRU(4, 8), nn.Linear(8, 2)])

    def losses(self, walks: PackedSequence, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net[1](self.net[0](walks)[1][-1]), labels, reduction="none")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.calls += 1
        return self.losses(batch["walks"], batch["labels"]).mean()


@pytest.mark.filterwarnings("ignore:lightning_cx.*unsupported.*AddmmBackward0 of net.0")
def test_packed_sequences_are_taken_apart_into_examples(tmp_path: Path) -> None:
    """Told: the tap cannot read a recurrence over packed sequences, so sampled steps replay example by example."""
    module, watch, data = Recurrent(), Watch(), Sequences()
    rows = []
    for walk, label in (data[i] for i in range(32, 64)):
        loss = module.losses(pack_sequence([walk]), label[None]).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]).double())
    truth = torch.stack(rows)

    def run(callbacks: list[Any]) -> Any:
        still = Recurrent()
        still.configure_optimizers = lambda: torch.optim.SGD(still.parameters(), lr=0.0)
        return fit(still, callbacks, tmp_path, data=DataLoader(data, batch_size=32, collate_fn=packed), max_epochs=1)

    assert_undisturbed(run, ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(size=128), strict=True))
    samples = {o.step: o.gradients for o in watch.seen if o.gradients is not None}
    assert samples[1].gram is not None
    assert relative_error(samples[1].gram, truth @ truth.T) < 1e-5
    probes = [o.probe for o in watch.seen if o.probe is not None]
    assert {probe.residuals.shape for probe in probes} == {(128, 2)}
    callback = stopping()
    assert_undisturbed(run, callback)
    assert callback.watch.begun


def test_a_walk_is_left_as_it_was_packed(tmp_path: Path) -> None:
    from lightning_cx.batch.take import join, leaves, take, to_cpu

    batch = packed([Sequences()[i] for i in range(8)])
    some, rest = take(batch, 0, 3, 8), take(batch, 3, 8, 8)
    whole = join(some, rest, (3, 5))
    for (_, one), (_, other) in zip(leaves(whole), leaves(to_cpu(batch)), strict=True):
        assert torch.equal(one, other)
