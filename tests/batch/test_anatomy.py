"""What a batch is taken to be: number of examples, inputs, targets, and what is neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_cx import BatchSpec
from lightning_cx.batch import Anatomies, alike, anatomy_of, as_features, choose, join, raw_inputs, take, targets_of


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high + sum(shape)))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    image: Tensor
    label: Tensor
    name: list[str]


class Plain:
    def __init__(self) -> None:
        self.x, self.y, self.note = floats(6, 2), floats(6), "as some libraries have them"


RAGGED = pack_sequence([floats(n, 3) for n in (5, 3, 2)], enforce_sorted=False)
NESTED = torch.nested.nested_tensor([floats(4, 3), floats(2, 3)], layout=torch.jagged)
FORECAST: dict[str, Any] = {
    "encoder_cat": ids(5, 32, 24, 2),
    "encoder_cont": floats(32, 24, 4),
    "encoder_lengths": torch.full((32,), 24),
    "decoder_cat": torch.zeros(32, 6, 0),
    "decoder_cont": floats(32, 6, 4),
    "decoder_target": floats(32, 6),
    "decoder_lengths": torch.full((32,), 6),
    "decoder_time_idx": ids(100, 32, 6),
}
GRAPHS = {
    "x": floats(20, 4),
    "edge_index": torch.stack([torch.arange(20), torch.arange(20).reshape(4, 5).roll(1, 1).reshape(-1)]),
    "batch": torch.arange(4).repeat_interleave(5),
    "y": floats(4, 1),
}

BATCHES: dict[str, tuple[Any, int, list[str], list[str]]] = {
    "a pair": ((floats(64, 5), floats(64, 1)), 64, ["batch[0]"], ["batch[1]"]),
    "a named tuple": (Pair(floats(8, 5), floats(8)), 8, ["x"], ["y"]),
    "a dataclass": (Record(floats(8, 3, 4, 4), ids(3, 8), list("abcdefgh")), 8, ["image"], ["label"]),
    "a plain object": (Plain(), 6, ["x"], ["y"]),
    "arrays": ({"x": np.random.default_rng(0).normal(size=(12, 3)), "y": np.arange(12.0)}, 12, ["x"], ["y"]),
    "one tensor": (floats(16, 8), 16, ["batch"], []),
    "an autoencoder's": ([floats(16, 8)], 16, ["batch[0]"], []),
    "two images and whether they are alike": (
        (floats(16, 8), floats(16, 8), ids(2, 16)),
        16,
        ["batch[0]", "batch[1]"],
        ["batch[2]"],
    ),
    "an image, its number, its label": (
        (floats(16, 3, 8, 8), torch.randperm(16) + 40, ids(4, 16)),
        16,
        ["batch[0]"],
        ["batch[2]"],
    ),
    "positions first": ({"position_ids": torch.arange(24), "input_ids": ids(50, 16, 24)}, 16, ["input_ids"], []),
    "token classification": (
        {"input_ids": ids(50, 8, 20), "attention_mask": torch.ones(8, 20), "labels": ids(5, 8, 20)},
        8,
        ["input_ids"],
        ["labels"],
    ),
    "an empty tensor first": (
        ({"encoder_cat": torch.zeros(64, 3, 0), "encoder_cont": floats(64, 5)}, floats(64, 1)),
        64,
        ["encoder_cont"],
        ["batch[1]"],
    ),
    "a forecast": (
        (FORECAST, (floats(32, 6), None)),
        32,
        ["encoder_cat", "encoder_cont", "decoder_cont"],
        ["batch[1][0]"],
    ),
    "the past is an input": (
        {"past_target": floats(9, 48), "past_observed_values": torch.ones(9, 48), "future_target": floats(9, 12)},
        9,
        ["past_target"],
        ["future_target"],
    ),
    "weighted": (
        {"features": floats(9, 4), "weight": floats(9).abs(), "target": floats(9)},
        9,
        ["features"],
        ["target"],
    ),
    "packed sequences": ({"x": RAGGED, "y": floats(3)}, 3, ["x"], ["y"]),
    "nested sequences": ({"x": NESTED, "y": floats(2)}, 2, ["x"], ["y"]),
    "texts": ({"text": ["a", "b", "c", "d"], "label": ids(2, 4)}, 4, [], ["label"]),
    "graphs": (GRAPHS, 4, ["x"], ["y"]),
    "a table": (
        {"continuous": floats(64, 6), "categorical": ids(9, 64, 3), "target": floats(64, 1)},
        64,
        ["continuous", "categorical"],
        ["target"],
    ),
    "constant inputs": ((torch.ones(16, 3), floats(16)), 16, [], ["batch[1]"]),
}


def named(paths: Any, shapes: Any) -> list[str]:
    return [dict(shapes)[path].split(" [")[0] for path in paths]


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_what_its_structure_and_its_names_show(name: str) -> None:
    batch, examples, inputs, targets = BATCHES[name]
    found = anatomy_of(batch)
    assert found.examples == examples
    assert named(found.inputs, found.shapes) == inputs
    assert named(found.targets, found.shapes) == targets
    assert str(found).startswith(f"{examples} examples; ")


@pytest.mark.parametrize("name", BATCHES)
def test_examples_are_cut_out_and_joined_whatever_a_batch_is_made_of(name: str) -> None:
    batch, examples, _, _ = BATCHES[name]
    one, two = choose(batch, range(1), examples), choose(batch, range(1, 2), examples)
    assert alike(join(one, two, (1, 1)), choose(batch, [0, 1], examples))
    if not isinstance(batch, dict) or "text" not in batch:
        assert anatomy_of(one, expected=1).count(one) == 1


@pytest.mark.parametrize("name", [name for name, (_, _, inputs, _) in BATCHES.items() if inputs])
def test_inputs_become_one_finite_row_for_each_example(name: str) -> None:
    batch, examples, _, _ = BATCHES[name]
    features = as_features(raw_inputs(batch, anatomy_of(batch)))
    assert features.shape[0] == examples
    assert features.dtype == torch.float64
    assert bool(features.isfinite().all())
    assert float(features.square().sum()) > 0


def test_why_a_tensor_is_no_input_is_said() -> None:
    found = str(anatomy_of((FORECAST, (floats(32, 6), None))))
    assert "decoder_cat [32, 6, 0] (empty)" in found
    assert "encoder_lengths [32] (lengths)" in found
    assert "decoder_target [32, 6] (named as targets are)" in found
    assert "batch[0] [16, 3] (the same in every example)" in str(anatomy_of((torch.ones(16, 3), floats(16))))


def test_where_nothing_is_an_input_it_is_said_what_to_pass() -> None:
    batch = torch.ones(16, 3), floats(16)
    with pytest.raises(ValueError, match=r"no inputs were found \(16 examples;.*pass BatchSpec\(inputs=...\)"):
        raw_inputs(batch, anatomy_of(batch))


@pytest.mark.parametrize("nothing", [[], {}, {"a": 1}, "text", None])
def test_a_batch_without_a_tensor_is_refused_with_advice(nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"holds no tensor: pass BatchSpec\(size=...\)"):
        anatomy_of(nothing)


def test_the_size_that_the_loader_states_counts_where_tensors_disagree() -> None:
    batch = {"a": floats(24), "b": floats(24), "c": floats(16, 24)}
    assert anatomy_of(batch).examples == 16  # a vector as long as sequences are says little
    assert anatomy_of({"a": floats(24, 2), "b": floats(16, 3)}, expected=16).examples == 16


def test_a_later_batch_is_counted_by_what_had_one_entry_for_each_example() -> None:
    known = Anatomies()
    assert known.of({"position_ids": torch.arange(8), "ids": ids(9, 16, 8), "y": floats(16)}).examples == 16
    assert known.of({"position_ids": torch.arange(8), "ids": ids(9, 8, 8), "y": floats(8)}).examples == 8
    assert known.of({"position_ids": torch.arange(8), "ids": ids(9, 5, 8), "y": floats(5)}).examples == 5
    assert known.of({"position_ids": torch.arange(8), "ids": ids(9, 0, 8), "y": floats(0)}).examples == 0


def test_several_inputs_count_alike_however_many_columns_they_have() -> None:
    wide, narrow = floats(40, 300), floats(40, 2)
    features = as_features([wide, narrow])
    assert float(features[:, :300].square().sum()) == pytest.approx(float(features[:, 300:].square().sum()))


def test_ids_are_counted_and_never_coordinates() -> None:
    codes = torch.tensor([[7], [7], [9], [9]])
    features = as_features([codes, floats(4, 1)])
    assert torch.equal(features[0, :2], features[1, :2])
    assert not torch.equal(features[0, :2], features[2, :2])
    names = torch.arange(40)[:, None]
    assert as_features([names, floats(40, 1)]).shape == (40, 1)  # another number each time orders nothing


def test_targets_are_numbers_or_one_hot_rows() -> None:
    batch = floats(3, 2), torch.tensor([4, 7, 4])
    assert targets_of(batch, anatomy_of(batch)).tolist() == [[1, 0], [0, 1], [1, 0]]
    spec = BatchSpec(targets=lambda b: b[0][:, :1])
    assert torch.equal(targets_of(batch, anatomy_of(batch, spec), spec), batch[0][:, :1].double())


def test_padding_that_longer_examples_needed_is_trimmed() -> None:
    x, lengths = torch.zeros(3, 6, 2), torch.tensor([2, 6, 4])
    for row, length in zip(x, lengths.tolist(), strict=True):
        row[:length] = floats(length, 2)
    assert take({"x": x, "lengths": lengths}, 0, 1, 3, trim=True)["x"].shape == (1, 2, 2)
    mask = torch.arange(6) < lengths[:, None]
    assert take({"x": x, "mask": mask}, 2, 3, 3, trim=True)["mask"].shape == (1, 4)
    left = {"ids": torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8], [0, 0, 0, 9]])}
    assert take(left, 2, 3, 3, trim=True)["ids"].tolist() == [[9]]


@pytest.mark.parametrize(
    "batch",
    [
        {"categories": torch.tensor([[1, 2, 0], [0, 1, 0], [2, 0, 1]])},  # 0 is a category like others
        {"ordinal": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])},  # as ordinal regression codes its classes
        {"x": floats(3, 5), "kind": torch.tensor([5, 2, 3])},  # whose largest happens to be the width
        {"time_idx": torch.tensor([[36, 37], [38, 39], [37, 38]])},
    ],
)
def test_what_only_looks_padded_stays_whole(batch: dict[str, Tensor]) -> None:
    assert alike(take(batch, 0, 1, 3, trim=True), take(batch, 0, 1, 3))


def test_batches_of_different_width_are_padded_as_the_wider_is() -> None:
    narrow = {"ids": torch.tensor([[1, 2]]), "mask": torch.ones(1, 2), "labels": torch.tensor([[1, 2]])}
    wide = {
        "ids": torch.tensor([[1, 2, 3], [4, 0, 0], [5, 0, 0]]),
        "mask": torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 0, 0]]),
        "labels": torch.tensor([[1, 2, 3], [4, -100, -100], [5, -100, -100]]),
    }
    joined = join(narrow, wide, (1, 3))
    assert joined["ids"][0].tolist() == [1, 2, 0]
    assert joined["mask"][0].tolist() == [1, 1, 0]
    assert joined["labels"][0].tolist() == [1, 2, -100]


def test_graphs_keep_their_nodes_and_edges() -> None:
    some = choose(GRAPHS, [2, 0], 4)
    assert torch.equal(some["x"], torch.cat([GRAPHS["x"][10:15], GRAPHS["x"][:5]]))
    assert some["batch"].tolist() == [0] * 5 + [1] * 5
    ring = torch.stack([torch.arange(10), torch.arange(10).reshape(2, 5).roll(1, 1).reshape(-1)])
    assert torch.equal(some["edge_index"], ring)
