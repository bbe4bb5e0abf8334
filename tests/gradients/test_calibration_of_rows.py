"""A few examples replayed alone tell what the rows of a tap mean, and where the examples lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Computing, Unread, mean_square, naive_rows, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import (
    GradientTap,
    UnsupportedGradientError,
    calibrate,
    calibrate_rows,
    find_layout,
    replay_gradients,
)

N = 8
torch.manual_seed(0)
LAYER, X, Y = nn.Linear(5, 3), torch.randn(N, 5), torch.randint(3, (N,))
PARAMETERS = dict(LAYER.named_parameters())

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, str, bool]] = {
    "mean": (lambda x, y: F.cross_entropy(LAYER(x), y), "exact", False),
    "sum": (lambda x, y: F.cross_entropy(LAYER(x), y, reduction="sum"), "exact", True),
    "two means": (lambda x, y: F.cross_entropy(LAYER(x), y) + LAYER(2 * x).pow(2).mean(), "exact", False),
    "class weights": (
        lambda x, y: F.cross_entropy(LAYER(x), y, weight=torch.tensor([1.0, 2.0, 4.0])),
        "contribution",
        False,
    ),
    "contrastive": (
        lambda x, _: F.cross_entropy(LAYER(x) @ LAYER(2 * x).T, torch.arange(len(x))),
        "contribution",
        False,
    ),
    "pairs": (lambda x, _: (LAYER(x)[:, None] - LAYER(x)[None]).pow(2).mean(), "contribution", False),
    "centred": (lambda x, _: (LAYER(x) - LAYER(x).mean(0)).pow(2).mean(), "contribution", False),
}


@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_is_found_out(case: str) -> None:
    loss, status, sums = LOSSES[case]
    found = calibrate(PARAMETERS, lambda start, stop: loss(X[start:stop], Y[start:stop]), N)
    assert (found.status, found.sums) == (status, sums)
    assert bool(found.note) == (case not in ("mean", "two means"))


ALONE = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SHARES: dict[str, tuple[Tensor, str, bool, bool]] = {  # in company of four: status, a sum, another direction
    "a mean": (ALONE / 4, "exact", False, False),
    "a sum": (ALONE, "exact", True, False),
    "a mean that is rounded": (
        ALONE / 4 * (1 + 0.02 * torch.tensor([[1.0], [-1.0], [1.0]]).double()),
        "exact",
        False,
        False,
    ),
    "a mean with weights": (ALONE / 4 * torch.tensor([[1.05], [0.95], [1.05]]).double(), "contribution", False, False),
    "a sum with weights": (ALONE * torch.tensor([[1.1], [0.9], [1.1]]).double(), "contribution", True, False),
    "a mixture": ((ALONE + 0.5 * ALONE.roll(1, 0)) / 4, "contribution", False, True),
}


@pytest.mark.parametrize("case", SHARES)
@pytest.mark.parametrize("widths", [(), (1, 3, 2)], ids=["each row", "each part"])
def test_shares_in_company_tell_how_a_loss_adds_up(case: str, widths: tuple[int, ...]) -> None:
    shares, status, sums, mixed = SHARES[case]
    found = calibrate_rows(shares, ALONE, 4, widths)
    assert (found.status, found.sums, found.mixed) == (status, sums, mixed)


def test_a_part_that_is_nothing_but_rounding_agrees_and_one_that_counts_has_to() -> None:
    alone = ALONE.clone()
    alone[:, :2] *= 0.15 * alone[:, 2:].norm() / alone[:, :2].norm()
    company = alone / 4
    company[:, :2] *= 1.15
    assert calibrate_rows(company, alone, 4, (6,)).status == "exact"  # all in all
    assert calibrate_rows(company, alone, 4, (2, 4)).status == "contribution"
    alone[:, :2] *= 1e-4
    company = alone / 4
    company[:, :2] = 1e-4
    assert calibrate_rows(company, alone, 4, (2, 4)).status == "exact"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_examples_without_a_gradient_tell_nothing(reduction: str) -> None:
    """Zero agrees with whatever it is multiplied by, as of hinge losses that are met or labels that are ignored."""
    found = calibrate(PARAMETERS, lambda i, j: getattr(F.relu(LAYER(X[i:j]) - 100), reduction)(), N)
    assert not found.conclusive  # another batch may tell
    assert "a sum over examples cannot be distinguished from a mean" in found.note


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_example_is_its_own_batch(reduction: str) -> None:
    found = calibrate(PARAMETERS, lambda i, j: F.cross_entropy(LAYER(X[i:j]), Y[i:j], reduction=reduction), 1)
    assert (found.status, found.sums) == ("exact", False)


@pytest.mark.parametrize("add_up", [torch.mean, torch.sum])
def test_where_one_example_alone_has_no_loss_two_pairs_are_compared(add_up: Any) -> None:
    def loss(start: int, stop: int) -> Tensor:
        if stop - start < 2:
            raise ValueError("needs a pair")
        return add_up(LAYER(X[start:stop]).pow(2).sum(1))

    found = calibrate(PARAMETERS, loss, N)
    assert found.status == "exact"
    assert found.sums == (add_up is torch.sum)


def test_where_pairs_have_no_loss_either_nothing_is_claimed() -> None:
    def loss(start: int, stop: int) -> Tensor:
        if stop - start < 4:
            raise ValueError("needs four")
        return LAYER(X[start:stop]).pow(2).mean()

    found = calibrate(PARAMETERS, loss, N)
    assert found.status == "unverified"
    assert "one example alone: ValueError: needs four; two: ValueError: needs four" in found.note


def test_examples_of_a_pair_that_act_on_each_other_are_seen_in_company() -> None:
    def loss(start: int, stop: int) -> Tensor:
        if stop - start < 2:
            raise ValueError("needs a pair")
        shown = LAYER(X[start:stop])
        return (shown - shown.mean(0)).pow(2).mean()

    found = calibrate(PARAMETERS, loss, N)
    assert found.status == "contribution"
    assert "the other examples of a batch change an example's gradient" in found.note


def test_examples_that_are_not_finite_tell_nothing() -> None:
    bad = X.clone()
    bad[1] = float("nan")
    found = calibrate(PARAMETERS, lambda i, j: F.cross_entropy(LAYER(bad[i:j]), Y[i:j]), N)
    assert found.status == "contribution"
    assert "not finite" in found.note
    assert not found.conclusive  # another batch may tell


@pytest.mark.parametrize("length", [3, 4, 8, 12])
@pytest.mark.parametrize("examples_lead", [True, False])
def test_sequences_of_any_length_are_calibrated(length: int, examples_lead: bool) -> None:
    x = torch.randn(N, length, 5)

    def loss(start: int, stop: int) -> Tensor:
        some = x[start:stop]
        return LAYER(some if examples_lead else some.transpose(0, 1)).tanh().pow(2).mean()

    assert calibrate(PARAMETERS, loss, N).status == "exact"


@pytest.mark.parametrize("examples_lead", [True, False])
def test_rows_that_are_stacked_before_the_model_are_told_apart(examples_lead: bool) -> None:
    x = torch.randn(N, 4, 5)

    def loss(start: int, stop: int) -> Tensor:
        some = x[start:stop] if examples_lead else x[start:stop].transpose(0, 1)
        return LAYER(some.reshape(-1, 5)).tanh().pow(2).mean()

    assert find_layout(PARAMETERS, loss, N) is examples_lead
    assert calibrate(PARAMETERS, loss, N).status == "exact"


def test_where_examples_act_on_each_other_neither_reading_is_taken() -> None:
    x = torch.randn(N, N, 5)

    def loss(start: int, stop: int) -> Tensor:
        out = LAYER(x[start:stop])
        return (out - out.mean(0)).tanh().pow(2).mean() + 1.0 * out.mean(1).mean(0).exp().mean()

    with pytest.raises(UnsupportedGradientError):
        find_layout(PARAMETERS, loss, N)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "an encoder layer that turns time first inside": lambda: (
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        torch.randn(N, N, 4),
    ),
    "sequence-first tokens": lambda: (
        Computing(lambda m, x: m.head(m.table(x.t()).tanh().mean(0)), table=nn.Embedding(9, 5), head=nn.Linear(5, 3)),
        torch.randint(9, (N, N)),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_as_many_positions_as_examples_are_told_apart_by_two_replays(case: str) -> None:
    torch.manual_seed(1)
    module, x = MODELS[case]()
    module, x = module.double(), x.double() if x.is_floating_point() else x
    layout = find_layout(dict(module.named_parameters()), lambda i, j: mean_square(module, x[i:j], x[i:j]), N)
    tap = GradientTap(module.named_parameters(), N, batch_first=layout)
    loss = mean_square(module, x, x)
    with tap(loss):
        loss.backward()
    truth = naive_rows(module, mean_square, x, torch.zeros(N))
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-10


def test_what_the_tap_refuses_calibration_refuses_by_the_same_name() -> None:
    module = nn.Sequential(nn.Linear(5, 3), Unread())
    with pytest.raises(UnsupportedGradientError, match=r"UnreadFunctionBackward of 1\.weight"):
        calibrate(dict(module.named_parameters()), lambda i, j: module(X[i:j]).mean(), N)


def test_replay_reads_sparse_tables_and_one_example_and_says_when_there_is_none() -> None:
    table = nn.Embedding(9, 5, sparse=True)
    sample = replay_gradients(lambda i: table(torch.tensor([i, i])).sum(), table.named_parameters(), 2)
    torch.testing.assert_close(sample.gram, 20 * torch.eye(2, dtype=torch.float64))
    assert replay_gradients(lambda i: LAYER(X[i]).sum(), LAYER.named_parameters(), 1).gram.shape == (1, 1)
    with pytest.raises(ValueError, match="at least one example, got examples=0"):
        replay_gradients(lambda i: LAYER(X[i]).sum(), LAYER.named_parameters(), 0)


def test_replay_lets_a_loss_that_fails_say_so_and_touches_nothing() -> None:
    def loss(i: int) -> Tensor:
        if i == 2:
            raise ValueError("example 2 is broken")
        return LAYER(X[i]).sum()

    with pytest.raises(ValueError, match="example 2 is broken"):
        replay_gradients(loss, LAYER.named_parameters(), 4)
    assert all(p.grad is None for p in LAYER.parameters())
