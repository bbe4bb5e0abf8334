"""The probe is the same examples every time, drawn without touching anybody's random numbers."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from lightning_cx.batch.take import map_batch, take
from lightning_cx.probe import ProbeReading, ProbeSet

X = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(300) % 4


def drawn(probe: ProbeSet, dataset: Any, size: int = 50, collate: Callable[[Any], Any] = default_collate) -> ProbeSet:
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, collate, size)
    return probe


def read(probe: ProbeSet, key: Callable[[Any], tuple[Tensor, Tensor]] = lambda b: (b[0], b[1])) -> ProbeReading:
    torch.manual_seed(1)
    module = nn.Linear(6, 4)

    def loss_of(batch: Any) -> Tensor:
        x, y = key(batch)
        return F.cross_entropy(module(x), y)

    return probe.read(module, loss_of)


def test_the_draw_depends_on_the_seed_alone_and_survives_a_checkpoint() -> None:
    one, two, other = ProbeSet(128, seed=3), ProbeSet(128, seed=3), ProbeSet(128, seed=4)
    torch.manual_seed(0)
    first = one.choose(300)
    torch.manual_seed(1)
    assert two.choose(300) == first
    assert other.choose(300) != first
    assert len(set(first)) == 128
    resumed = ProbeSet(128, seed=9)
    resumed.load_state_dict(one.state_dict())
    assert resumed.choose(300) == first
    assert torch.equal(read(drawn(resumed, TensorDataset(X, Y))).outputs, read(drawn(one, TensorDataset(X, Y))).outputs)
    shrunk = resumed.choose(150)
    assert max(shrunk) < 150
    assert len(shrunk) == 128


class Augmented(Dataset):
    """Draws from every stream there is, its own included, as transforms do."""

    def __init__(self) -> None:
        self.rng, self.torch_rng, self.python = np.random.default_rng(0), torch.Generator(), random.Random(0)
        self.transforms = [{"inner": (np.random.RandomState(0),)}]

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.rng.random(), self.python.random(), torch.rand(1, generator=self.torch_rng)
        self.transforms[0]["inner"][0].rand()
        return X[index] + torch.rand(6) + float(np.random.rand()) + random.random(), Y[index]

    def states(self) -> list[str]:
        return [
            repr(self.rng.bit_generator.state),
            repr(self.torch_rng.get_state()),
            repr(self.python.getstate()),
            repr(self.transforms[0]["inner"][0].get_state()),
            repr(torch.get_rng_state().sum()),
            repr(np.random.get_state()),
            repr(random.getstate()),
        ]


def test_random_augmentations_neither_disturb_nor_depend_on_other_streams_or_the_batch_size() -> None:
    dataset = Augmented()
    before = dataset.states()
    probe = drawn(ProbeSet(128), dataset, 50)
    assert dataset.states() == before
    one = read(probe)
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    two = read(drawn(ProbeSet(128), dataset, 32))
    torch.testing.assert_close(one.outputs, two.outputs)
    other = read(drawn(ProbeSet(128, seed=1), dataset, 50))
    assert not torch.allclose(one.outputs, other.outputs)


def test_items_are_fetched_together_where_the_data_set_can() -> None:
    calls: list[int] = []

    class Together(Dataset):
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("one by one")

        def __getitems__(self, indices: list[int]) -> Any:
            calls.append(len(indices))
            return [(X[i], Y[i]) for i in indices]

    expected = read(drawn(ProbeSet(128), TensorDataset(X, Y)))
    assert torch.equal(read(drawn(ProbeSet(128), Together())).outputs, expected.outputs)
    assert calls == [50, 1, 50, 28]  # one of them twice: is it the same each time?
    assert len(read(drawn(ProbeSet(128), Subset(TensorDataset(X, Y), range(10, 200)))).outputs) == 128


class Pair(NamedTuple):
    x: Tensor
    label: Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    x: Tensor
    label: Tensor
    note: str = "a note"
    count: int = dataclasses.field(init=False, default=3)


class Items(dict):
    def __init__(self, x: Tensor, label: Tensor) -> None:
        super().__init__(x=x, label=label)


KINDS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "tuple": (lambda x, y: (x, y), lambda b: (b[0], b[1])),
    "label first": (lambda x, y: (y, {"inputs": [x]}), lambda b: (b[1]["inputs"][0], b[0])),
    "dict": (lambda x, y: {"x": x, "label": y}, lambda b: (b["x"], b["label"])),
    "defaultdict": (lambda x, y: collections.defaultdict(list, label=y, x=x), lambda b: (b["x"], b["label"])),
    "own mapping": (Items, lambda b: (b["x"], b["label"])),
    "UserDict": (lambda x, y: collections.UserDict(label=y, x=x), lambda b: (b["x"], b["label"])),
    "namedtuple": (Pair, lambda b: (b.x, b.label)),
    "dataclass": (Record, lambda b: (b.x, b.label)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_every_kind_and_of_unequal_size_from_a_stream(kind: str) -> None:
    make, parts = KINDS[kind]
    probe = ProbeSet(128, features=lambda b: parts(b)[0])
    start = 0
    for size in (1, 40, 7, 100, 30):
        batch = make(X[start : start + size].clone(), Y[start : start + size].clone())
        probe.keep(batch, size)
        parts(batch)[0].zero_()  # the loader may use the memory again
        start += size
    reading = read(probe, parts)
    expected = read(drawn(ProbeSet(128, features=lambda b: b[0]), TensorDataset(X[:128], Y[:128])))
    torch.testing.assert_close(reading.residuals, expected.residuals)
    assert torch.equal(reading.features, expected.features)
    assert not reading.coupled


def test_lists_of_texts_and_of_images_of_all_sizes_are_cut_with_the_tensors() -> None:
    images = [torch.zeros(2, 2 + i) for i in range(5)]
    batch = {"text": list("abcde"), "images": images, "x": X[:5], "scale": torch.ones(3), "array": np.arange(5)}
    taken = take(batch, 1, 3, 5)
    assert taken["text"] == ["b", "c"]
    assert [i.shape[1] for i in taken["images"]] == [3, 4]
    assert torch.equal(taken["x"], X[1:3])
    assert len(taken["scale"]) == 3
    assert taken["array"].tolist() == [1, 2]
    assert [len(t) for t in take((X[:2], Y[:2]), 0, 1, 2)] == [1, 1]  # a pair of two examples is no list of examples
    with pytest.raises(TypeError, match="cannot take single examples out of a batch of type dict"):
        take({"scale": torch.ones(3)}, 0, 1, 5)
    assert map_batch(Record(X, Y), type).note is str


def test_features_of_images_and_token_ids_with_padding() -> None:
    images = drawn(ProbeSet(128), TensorDataset((X[:, :4] * 50).abs().to(torch.uint8).view(300, 1, 2, 2), Y))
    assert images.feature_matrix().shape == (128, 4)
    assert float(images.feature_matrix().mean()) == pytest.approx(0, abs=1e-9)
    ids = ProbeSet(128)
    ids.keep([torch.randint(5, (100, 6)), Y[:100]], 100)
    ids.keep([torch.randint(5, (28, 9)), Y[:28]], 28)
    counts = ids.feature_matrix()
    assert counts.shape == (128, 6)  # five words and the padding
    assert torch.equal(counts.sum(1), torch.full((128,), 9.0).double())


@pytest.mark.parametrize(
    ("features", "shape"),
    [
        (lambda b: b[0][:3], r"\(3, 6\)"),
        (lambda b: b[0].mean(), r"\(\)"),
        (lambda b: "text", "str"),
        (lambda b: None, "NoneType"),
    ],
)
def test_features_of_another_shape_are_named(features: Callable[[Any], Any], shape: str) -> None:
    probe = drawn(ProbeSet(128, features=features), TensorDataset(X, Y))
    with pytest.raises(ValueError, match=rf"features must return a tensor \[50, d\], got {shape}"):
        read(probe)


def test_labels_only_and_nan_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"no inputs were found .* or ProbeSet\(features"):
        drawn(ProbeSet(128), [{"label": y} for y in Y]).feature_matrix()
    with pytest.raises(ValueError, match="one label or id per example"):
        drawn(ProbeSet(128), TensorDataset(Y)).feature_matrix()
    broken = X.clone()
    broken[:, 2] = torch.nan
    with pytest.raises(ValueError, match="128 of 768 features are NaN or infinite"):
        read(drawn(ProbeSet(128), TensorDataset(broken, Y)))


def test_nan_outputs_are_passed_on_for_the_instrument_to_name() -> None:
    broken = X.clone()
    broken[:, 2] = torch.nan
    probe = drawn(ProbeSet(128, features=lambda b: b[0][:, :2]), TensorDataset(broken, Y))
    assert not read(probe).residuals.isfinite().any()  # a run that recovers is measured again


def test_too_few_examples_are_refused_and_a_small_data_set_is_taken_whole() -> None:
    with pytest.raises(ValueError, match=r"at least 128 examples .* got 127: pass a larger size"):
        ProbeSet(127)
    with pytest.raises(ValueError, match="got a training set of 127"):
        ProbeSet(512).choose(127)
    assert ProbeSet(512).choose(130) == list(range(130))
    probe = ProbeSet(512)
    probe.keep([X[:20], Y[:20]], 20)
    assert not probe.complete


def test_forgetting_keeps_the_indices() -> None:
    probe = drawn(ProbeSet(128), TensorDataset(X, Y))
    indices = probe.indices
    probe.forget()
    assert probe.examples == 0
    assert probe.choose(300) == indices


def test_no_way_to_a_loss_is_named() -> None:
    with pytest.raises(ValueError, match=r"with dataloader_iter: pass ProbeSet\(loss_fn"):
        drawn(ProbeSet(128), TensorDataset(X, Y)).read(nn.Linear(6, 4), None)
    wrong = drawn(ProbeSet(128, loss_fn=lambda m, b: m(b[0])), TensorDataset(X, Y))
    with pytest.raises(ValueError, match=r"the loss has shape \(50, 4\)"):
        wrong.read(nn.Linear(6, 4), None)
