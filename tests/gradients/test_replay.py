"""Replay agrees with the tap where both can read, and reads what the tap refuses."""

from __future__ import annotations

import pytest
import torch
from _models import Mlp, Unread, cross_entropy, naive_rows, relative_error
from torch import nn

from lightning_cx.gradients import GradientTap, affordable_examples, replay_gradients


def test_replay_equals_tap_in_all_that_both_give() -> None:
    torch.manual_seed(0)
    module, x, y = Mlp().double(), torch.randn(7, 20).double(), torch.randint(5, (7,))
    tap = GradientTap(module.named_parameters(), 7, projections=5, seed=2, coordinates=40)
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
    module.zero_grad(set_to_none=True)
    replayed = replay_gradients(
        lambda i: cross_entropy(module, x[i : i + 1], y[i : i + 1]),
        module.named_parameters(),
        7,
        projections=5,
        seed=2,
        coordinates=40,
    )
    assert tap.sample is not None
    torch.testing.assert_close(replayed.gram, tap.sample.gram)
    torch.testing.assert_close(replayed.squared_norms, tap.sample.squared_norms)
    torch.testing.assert_close(replayed.projections, tap.sample.projections)
    torch.testing.assert_close(replayed.coordinates, tap.sample.coordinates)
    assert all(p.grad is None for p in module.parameters())


def test_replay_reads_modules_that_the_tap_has_no_rule_for() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), Unread(), nn.Linear(8, 5))
    x, y = torch.randn(6, 20), torch.randint(5, (6,))
    truth = naive_rows(module, cross_entropy, x, y)
    sample = replay_gradients(lambda i: cross_entropy(module, x[i : i + 1], y[i : i + 1]), module.named_parameters(), 6)
    assert relative_error(sample.gram, truth @ truth.T) < 1e-5


def test_memory_bounds_the_number_of_replayed_examples() -> None:
    assert affordable_examples([torch.empty(10, requires_grad=True)], 64) == 64
    huge = torch.empty(1 << 26, device="meta", requires_grad=True)
    assert affordable_examples([huge, huge], 64) == 2


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        replay_gradients(lambda i: torch.tensor(0.0), [], 3)
