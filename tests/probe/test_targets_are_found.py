"""The targets of a batch are found by name or place, and what cannot be compared is refused with what to do."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx import batch as anatomy

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([2, 0, 2, 5])
ONE_HOT = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

Named = namedtuple("Named", ["image", "label", "weight"])


def targets_of(batch: Any, examples: int) -> Tensor:
    return anatomy.targets_of(batch, anatomy.anatomy_of(batch, expected=examples))


@dataclass
class Sample:
    image: Tensor
    target: Tensor
    note: str = "none"


@pytest.mark.parametrize(
    "batch",
    [
        (X, CLASSES),
        [X, CLASSES],
        [X, CLASSES.numpy()],
        {"x": X, "y": CLASSES},
        {"pixel_values": X, "Labels": CLASSES, "idx": torch.arange(4)},
        {"inputs": {"ids": X, "mask": torch.ones(4, 3)}, "labels": CLASSES},
        Named(X, CLASSES, torch.ones(4)),
        Sample(X, CLASSES),
        (X, CLASSES, 7, "a note", torch.zeros(9)),  # what is not per example does not count
        (X, CLASSES[:, None]),
        (X, CLASSES.to(torch.uint8)),
        (X, X, CLASSES),
    ],
    ids=str,
)
def test_classes_become_one_hot_rows_wherever_the_batch_carries_them(batch: Any) -> None:
    found = targets_of(batch, 4)
    assert found.dtype == torch.float64
    assert found.tolist() == ONE_HOT


def test_a_name_goes_before_a_place() -> None:
    decoy = torch.ones(4, 2)
    assert targets_of({"target": CLASSES, "x": X, "aux": decoy}, 4).tolist() == ONE_HOT
    assert targets_of((CLASSES, decoy), 4).tolist() == decoy.tolist()


def test_numbers_stay_numbers_and_are_laid_out_flat() -> None:
    y = torch.tensor([1.5, -2.0, torch.nan, 4.0])
    assert targets_of((X, y), 4).shape == (4, 1)
    torch.testing.assert_close(targets_of((X, y), 4)[:, 0], y.double(), equal_nan=True)
    maps = torch.arange(24.0).reshape(4, 2, 3)
    assert targets_of((X, maps), 4).tolist() == maps.reshape(4, 6).tolist()
    assert targets_of((X, torch.tensor([True, False, True, True])), 4).tolist() == [[1.0], [0.0], [1.0], [1.0]]


def test_several_zeros_and_ones_are_labels_that_do_not_exclude_each_other() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert targets_of((X, labels), 4).tolist() == labels.tolist()


def test_the_batch_is_left_as_it_is_and_no_graph_is_kept() -> None:
    y = torch.randn(4, 2, requires_grad=True)
    before = y.detach().clone()
    found = targets_of((X, y * 1), 4)
    assert not found.requires_grad
    assert torch.equal(y.detach(), before)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"no targets were found \(4 examples; inputs batch \[4, 3\]; no targets found\)"),
        ((X,), 'under the key "target"'),
        ((X, X, X), "no targets were found"),
        ({"image": X, "mask": CLASSES}, "no targets were found"),
        ("text", "holds no tensor"),
        ((X, torch.randint(9, (4, 7))), "7 whole numbers for each example, a sequence of tokens"),
        ((X, torch.zeros(4, 2000)), "2000 numbers for each example, more than 1024"),
        ((X, torch.tensor([0, 1, 2, 40000])), "4 different whole numbers between 0 and 40000, hardly classes"),
        ((X, torch.zeros(4, 0)), r"shape \[4, 0\], which holds no numbers"),
        ((X, torch.zeros(4, dtype=torch.complex64)), "complex numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets_of(batch, 4)


def test_more_than_a_thousand_different_whole_numbers_are_no_classes() -> None:
    codes = torch.from_numpy(np.random.default_rng(0).permutation(1001))
    with pytest.raises(ValueError, match="1001 different whole numbers between 0 and 1000"):
        targets_of((torch.zeros(1001, 1), codes), 1001)
    assert targets_of((torch.zeros(1000, 1), codes.clamp_max(999)[:1000]), 1000).shape[0] == 1000
