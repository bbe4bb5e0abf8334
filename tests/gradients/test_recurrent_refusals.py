"""Recurrent layers that are not read say so by name, before the backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_cx.gradients import GradientTap, UnsupportedGradientError
from lightning_cx.gradients.graph.nodes import Site, capture_of
from lightning_cx.gradients.graph.weights import Operand

KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


@pytest.mark.parametrize("batch_first", [None, True, False])
@pytest.mark.parametrize("trained", ["_", "_ih_"])  # with inputs alone, only the number of rows is left to tell
@pytest.mark.parametrize("lengths", [[4, 4, 3, 2, 1], [4, 4, 2, 2], [3, 1]])  # 14 rows of 5 examples, 12 of 4, 4 of 2
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind: str, lengths: list[int], trained: str, batch_first: bool | None) -> None:
    layer = KINDS[kind](3, 4, batch_first=True)
    for name, p in layer.named_parameters():
        p.requires_grad_(trained in name)
    packed = pack_padded_sequence(torch.randn(len(lengths), 4, 3), torch.tensor(lengths), batch_first=True)
    loss = layer(packed)[0].data.pow(2).mean()
    tap = GradientTap(layer.named_parameters(), len(lengths), batch_first=batch_first)
    with pytest.raises(UnsupportedGradientError, match=r"of (weight|bias)_"):
        tap.attach(loss)


def test_examples_that_lie_along_time() -> None:
    layer = nn.LSTM(3, 4)  # without batch_first, what is meant as examples is time
    with pytest.raises(UnsupportedGradientError, match=r"steps follow the first axis of \(5, 7, 4\)"):
        GradientTap(layer.named_parameters(), 5).attach(layer(torch.randn(5, 7, 3))[0].pow(2).mean())
    with pytest.raises(UnsupportedGradientError, match=r"of weight_ih_l0"):  # as long as there are sequences
        GradientTap(layer.named_parameters(), 5).attach(layer(torch.randn(5, 5, 3))[0].mean(1).pow(2).mean())


def test_an_initial_state_of_its_own_for_every_example() -> None:
    layer, state = nn.LSTM(3, 4), nn.Parameter(torch.randn(1, 5, 4))
    loss = layer(torch.randn(7, 5, 3), (state, torch.zeros(1, 5, 4)))[0].pow(2).mean()
    with pytest.raises(UnsupportedGradientError, match=r"MkldnnRnnLayerBackward0 of state .*axis of its own"):
        GradientTap([("state", state)], 5).attach(loss)


def test_a_kernel_that_holds_all_layers_names_the_way_that_reads_it() -> None:
    node, operand = SimpleNamespace(name=lambda: "CudnnRnnBackward0"), Operand("lstm.weight_ih_l0", 1, (16, 3), ())
    axis: Any = None
    with pytest.raises(UnsupportedGradientError, match=r"CudnnRnnBackward0 of lstm.weight_ih_l0 .*replay_gradients"):
        capture_of(Site(node, operand, axis))
