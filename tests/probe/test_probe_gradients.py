"""Gradients on the probe: the Gram matrix of all its examples, whatever batches they come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from _models import Unread
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, default_collate

from lightning_cx.batch.take import join
from lightning_cx.gradients import UnsupportedGradientError, per_example_gram
from lightning_cx.probe import ProbeSet
from lightning_cx.probe.derivatives import MAX_CHUNKS, passes_of, some_chunks

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 4


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))


def drawn(size: int, loss_fn: Any = None) -> ProbeSet:
    probe = ProbeSet(128, loss_fn=loss_fn)
    dataset = TensorDataset(X, Y)
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, default_collate, size)
    return probe


def expected_gram(module: nn.Module, probe: ProbeSet, examples: int) -> Tensor:
    indices = probe.indices[:examples]
    module.eval()
    gram = per_example_gram(module, F.cross_entropy(module(X[indices]), Y[indices], reduction="none"))
    module.train()
    return gram


@pytest.mark.parametrize("size", [200, 50, 17])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gram_of_all_examples_comes_out_whatever_the_batches(size, reduction):
    module = network()

    def loss_of(batch: Any) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1], reduction=reduction)

    probe = drawn(size, loss_fn=(lambda m, b: loss_of(b)) if reduction == "none" else None)
    sample = probe.passes(module, loss_of).gradients(100, per_layer=True)
    torch.testing.assert_close(sample.gram, expected_gram(module, probe, 100), rtol=1e-4, atol=1e-6)
    layers = sum(layer.gram for layer in sample.layers.values())
    torch.testing.assert_close(layers, sample.gram, rtol=1e-5, atol=1e-7)
    assert sample.batch_size == 100
    assert sample.status == "exact"


def test_reading_gradients_leaves_no_trace():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.random.get_rng_state()
    probe = drawn(50)

    def loss_of(batch: Any) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    probe.passes(module, loss_of).gradients()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_small_batches_are_limited_in_number():
    chunks = [(torch.zeros(10, 2), 10)] * 30
    assert [count for _, count in some_chunks(chunks, 256)] == [10] * MAX_CHUNKS
    assert [count for _, count in some_chunks(chunks, 25)] == [10, 10, 5]
    assert len(some_chunks(chunks, 25)[-1][0]) == 5
    assert passes_of([10, 10, 5]) == 50
    assert passes_of([64]) == 64


def test_a_layer_that_the_tap_cannot_read_is_refused_by_name():
    module = nn.Sequential(nn.Linear(6, 4), Unread())

    def loss_of(batch: Any) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    passes = drawn(50).passes(module, loss_of)
    with pytest.raises(UnsupportedGradientError, match="UnreadFunctionBackward"):
        passes.gradients()


def test_batches_of_any_make_are_joined():
    def batch(start: int, count: int) -> dict[str, Any]:
        return {
            "x": torch.arange(start, start + count),
            "more": (np.arange(count), [str(i) for i in range(count)]),
            "rate": 3,
        }

    whole = join(batch(0, 4), batch(4, 3), (4, 3))
    assert whole["x"].tolist() == list(range(7))
    assert whole["more"][0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert whole["more"][1] == ["0", "1", "2", "3", "0", "1", "2"]
    assert whole["rate"] == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(4, 5), torch.zeros(3, 6, 2)),
        ([torch.zeros(4, 5), torch.zeros(4)], [torch.zeros(3, 5), np.zeros(3)]),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(one, other):
    with pytest.raises(ValueError, match="cannot be joined"):
        join(one, other, (4, 3))
