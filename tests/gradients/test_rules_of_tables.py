"""Tables that are looked up: bags of any kind and length, tables picked by index, renormalised tables."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read, cubes, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import GradientTap, UnsupportedGradientError

few = settings(max_examples=20, deadline=None, derandomize=True)


@few
@given(
    n=st.sampled_from([1, 2, 6, 64]),
    t=st.sampled_from([1, 3, 17]),
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding=st.sampled_from([None, 0, -1]),
    entries=st.sampled_from([3, 30]),
    width=st.sampled_from([1, 5, 18]),
)
def test_bags_of_one_length(n: int, t: int, mode: str, padding: int | None, entries: int, width: int) -> None:
    torch.manual_seed(t)
    table = nn.EmbeddingBag(entries, width, mode=mode, padding_idx=padding)
    assert_read(table, torch.randint(entries, (n, t)))


class Ragged(nn.Module):
    """Bags of different lengths: an example is a row of `length` and numbers, of which the first `length` count."""

    def __init__(self, last: bool = False, **options: Any) -> None:
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(9, 5, include_last_offset=last, **options), last

    def forward(self, x: Tensor) -> Tensor:
        lengths, numbers = x[:, 0], x[:, 1:]
        inside = torch.arange(numbers.shape[1]) < lengths.unsqueeze(1)
        ends = lengths.cumsum(0)
        offsets = F.pad(ends, (1, 0)) if self.last else F.pad(ends, (1, 0))[:-1]
        flat = numbers[inside]
        weights = (flat + 1).to(self.table.weight) / 3 if self.table.mode == "sum" else None
        return self.table(flat, offsets, weights)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_bags_of_any_length(n: int, mode: str, padding: int | None, last: bool) -> None:
    torch.manual_seed(n)
    x = torch.cat([torch.randint(1, 8, (n, 1)), torch.randint(9, (n, 7))], 1)
    if n > 2:
        x[2, 0] = 0  # an empty bag
    assert_read(Ragged(last, mode=mode, padding_idx=padding), x)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_sparse_bags(mode: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(9, (6, 4))
    dense = nn.EmbeddingBag(9, 5, mode=mode).double()
    sparse = copy.deepcopy(dense)
    sparse.sparse = True
    grams = []
    for table in (dense, sparse):
        tap = GradientTap(table.named_parameters(), 6)
        loss = cubes(table, ids, ids)
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        grams.append(tap.sample.gram)
    assert sparse.weight.grad is not None
    assert sparse.weight.grad.is_sparse
    torch.testing.assert_close(*grams)


def test_a_bag_in_a_model_beside_a_lookup_in_the_same_table() -> None:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(9, 5)
    module = Computing(lambda m, ids: m.f(m.t(ids).tanh() + m.t.weight[ids[:, 0]]), t=table, f=nn.Linear(5, 3))
    assert_read(module, torch.randint(9, (6, 4)))


def test_bags_refused_by_name() -> None:
    ids = torch.randint(9, (6, 4))
    table = nn.EmbeddingBag(9, 5, scale_grad_by_freq=True)
    with pytest.raises(UnsupportedGradientError, match=r"EmbeddingBagBackward0 of weight .*counts over the whole"):
        GradientTap(table.named_parameters(), 6).attach(cubes(table, ids, ids))
    learned = Computing(
        lambda m, ids: m.t(ids, per_sample_weights=m.w),
        t=nn.EmbeddingBag(9, 5, mode="sum"),
        w=nn.Parameter(torch.rand(6, 4)),
    )
    loss = cubes(learned, ids, ids)
    with pytest.raises(UnsupportedGradientError, match="EmbeddingBagBackward0 of w "):
        GradientTap(learned.named_parameters(), 6).attach(loss)
    loss.backward()
    assert learned.w.grad is not None


@few
@given(
    n=st.sampled_from([1, 2, 6]),
    lead=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    rest=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    by=st.sampled_from(["index", "index_select"]),
)
def test_rows_of_a_free_table(n: int, lead: list[int], rest: list[int], by: str) -> None:
    torch.manual_seed(len(lead))
    table = nn.Parameter(torch.randn(7, *rest))
    if by == "index":
        assert_read(Computing(lambda m, ids: m.t[ids - 7] * 1.5, t=table), torch.randint(7, (n, *lead)))
    else:
        assert_read(Computing(lambda m, ids: m.t.index_select(0, ids) * 1.5, t=table), torch.randint(7, (n,)))


def test_an_index_on_a_later_axis_is_refused_by_name() -> None:
    module = Computing(lambda m, ids: m.t[:, ids].T, t=nn.Parameter(torch.randn(5, 7)))
    loss = cubes(module, torch.randint(7, (6,)), torch.zeros(6))
    with pytest.raises(UnsupportedGradientError, match="IndexBackward0 of t "):
        GradientTap(module.named_parameters(), 6).attach(loss)
    loss.backward()
    assert module.t.grad is not None


@pytest.mark.parametrize("n", [1, 2, 6])
def test_positions_picked_by_index(n: int) -> None:
    torch.manual_seed(n)
    where = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    module = Computing(
        lambda m, x: m.f(x + m.t[m.where].sum(0)), t=nn.Parameter(torch.randn(4, 5)), f=nn.Linear(5, 3), where=where
    )
    assert_read(module, torch.randn(n, 4, 5))


def test_renormalised_tables() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(9, 5, max_norm=1.0, padding_idx=2).double()
    ids = torch.randint(9, (6, 4))
    table(torch.arange(9))  # renormalises every row, as each forward does with the rows that it meets
    losses = [cubes(table, ids[i : i + 1], ids) for i in range(6)]
    truth = torch.stack([torch.autograd.grad(loss, table.weight)[0].flatten() for loss in losses])
    tap = GradientTap(table.named_parameters(), 6)
    loss = cubes(table, ids, ids)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-10
