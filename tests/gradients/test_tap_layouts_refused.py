"""Where the graph cannot tell where the examples lie the tap asks, and what only looks like examples it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _layouts import Model, N, p, tapped
from _models import Computing, mean_square, naive_rows, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import (
    AmbiguousLayoutError,
    GradientTap,
    UnsupportedGradientError,
    find_layout,
    per_example_gram,
)


def last_of_each(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh()[torch.arange(len(x)), 1])


def mean_of_all(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Unlike `mean_square` it does not average over what belongs to one example first."""
    out = module(x)
    return (out.pow(3) + out).mean()


AMBIGUOUS: dict[str, tuple[Model, bool]] = {  # and whether the examples lead in what the loss averages
    "a Linear on [N, T, d] with T = N": (lambda: (nn.Linear(5, 3), torch.randn(N, N, 5)), True),
    "a Linear on [T, N, d] with T = N": (
        lambda: (Computing(lambda m, x: m.layer(x.transpose(0, 1)), layer=nn.Linear(5, 3)), torch.randn(N, N, 5)),
        False,
    ),
    "tokens on [N, T] with T = N": (lambda: (nn.Embedding(9, 5), torch.randint(9, (N, N))), True),
    "tokens on [T, N] with T = N": (
        lambda: (Computing(lambda m, x: m.table(x.t()), table=nn.Embedding(9, 5)), torch.randint(9, (N, N))),
        False,
    ),
    "a scalar on [N, N]": (lambda: (Computing(lambda m, x: (x * m.p).tanh(), p=p()), torch.randn(N, N)), True),
    "rows of several steps, one batch after the other": (
        lambda: (
            Computing(lambda m, x: m.layer(x.transpose(0, 1).flatten(0, 1)), layer=nn.Linear(5, 3)),
            torch.randn(N, 4, 5),
        ),
        False,
    ),
    "positions through a Linear that could as well be a sequence of examples": (
        lambda: (Computing(lambda m, x: x + m.a(m.c), c=torch.randn(N, 4), a=nn.Linear(4, 5)), torch.randn(N, N, 5)),
        True,
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_where_the_graph_cannot_tell_the_tap_asks_and_find_layout_answers(case: str) -> None:
    torch.manual_seed(len(case))
    make, examples_lead = AMBIGUOUS[case]
    module, x = make()
    module, x = module.double(), x.double() if x.is_floating_point() else x
    parameters = dict(module.named_parameters())
    with pytest.raises(AmbiguousLayoutError, match="ambiguous: use a batch of another size"):
        GradientTap(parameters.items(), N).attach(mean_of_all(module, x, x))
    assert find_layout(parameters, lambda i, j: mean_of_all(module, x[i:j], x[i:j]), N) is examples_lead
    truth = naive_rows(module, mean_of_all, x, torch.zeros(N))
    gram = per_example_gram(module, mean_of_all(module, x, x), batch_size=N, batch_first=examples_lead)
    assert relative_error(gram, truth @ truth.T) < 1e-10


def permuted(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh()[torch.tensor([3, 1, 0, 5, 2, 4])])


def some_tokens(m: Any, x: Tensor) -> Tensor:
    chosen = torch.zeros(N, 4, dtype=torch.bool)
    chosen[0], chosen[4:, 0] = True, True  # as many as there are examples, as happens to a masked language model
    return m.b(m.a(x).tanh()[chosen])


REFUSED: dict[str, tuple[Model, str]] = {
    "a batch in another order": (
        lambda: (Computing(permuted, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), torch.randn(N, 5)),
        r"of a\.bias \(IndexBackward0 picks or reorders rows",
    ),
    "a batch rolled": (
        lambda: (
            Computing(lambda m, x: m.b(m.a(x).tanh().roll(1, 0)), a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
            torch.randn(N, 5),
        ),
        r"of a\.bias \(RollBackward0 picks or reorders rows",
    ),
    "a batch cut and put together": (
        lambda: (
            Computing(lambda m, x: m.b(torch.cat([m.a(x)[3:], m.a(x)[:3]])), a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
            torch.randn(N, 5),
        ),
        r"of a\.bias \(CatBackward0 picks or reorders rows",
    ),
    "as many masked tokens as examples": (
        lambda: (Computing(some_tokens, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), torch.randn(N, 4, 5)),
        r"of a\.bias \(IndexBackward0 picks or reorders rows",
    ),
    "a norm over the whole batch": (
        lambda: (Computing(lambda m, x: F.layer_norm(x, x.shape, m.p), p=p(N, 5)), torch.randn(N, 5)),
        r"spans every axis of \(6, 5\)",
    ),
    "complex parameters": (
        lambda: (
            Computing(lambda m, x: (x * m.p).abs(), p=nn.Parameter(torch.randn(5, dtype=torch.complex64))),
            torch.randn(N, 5),
        ),
        "p is complex",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_looks_like_an_axis_of_examples_is_refused(case: str) -> None:
    torch.manual_seed(len(case))
    make, message = REFUSED[case]
    module, x = make()
    with pytest.raises(UnsupportedGradientError, match=message):
        tapped(module, x, batch_first=True)
    mean_square(module, x, x).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_products_that_compare_examples_give_contributions_and_say_so() -> None:
    torch.manual_seed(0)
    image, text, x = nn.Linear(5, 4), nn.Linear(3, 4), torch.randn(N, 8)
    logits = image(x[:, :5]) @ F.normalize(text(x[:, 5:]), dim=1).T
    loss = F.cross_entropy(logits, torch.arange(N))
    tap = GradientTap([*image.named_parameters("image"), *text.named_parameters("text")], N)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.status == "contribution"
    assert any("examples interact" in note for note in tap.sample.notes)


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_that_couples_examples_is_seen_when_it_has_nothing_to_train(affine: bool) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=affine), nn.Tanh())
    module[1].requires_grad_(False)
    assert tapped(module, torch.randn(N, 5)).status == "contribution"
    module.eval()
    assert tapped(module, torch.randn(N, 5)).status == "exact"


def test_batchnorm_without_running_statistics_couples_examples_in_eval_mode_too() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()).eval()
    assert tapped(module, torch.randn(N, 5)).status == "contribution"
    assert (
        tapped(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None)).eval(), torch.randn(N, 5)).status
        == "exact"
    )


def test_a_loss_of_another_model_is_refused() -> None:
    loss = nn.Linear(5, 2)(torch.randn(N, 5)).mean()
    with pytest.raises(UnsupportedGradientError, match="the loss reaches none of the parameters"):
        GradientTap(nn.Linear(2, 2).named_parameters(), N).attach(loss)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_over_as_many_steps_as_examples(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first).double()
    x, y = torch.randn(2, N, N, 8).double()

    def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = module(x) if batch_first else module(x.transpose(0, 1)).transpose(0, 1)
        return (out - y).pow(2).mean()

    truth = naive_rows(layer, loss_of, x, y)
    gram = per_example_gram(layer, loss_of(layer, x, y), batch_size=N, batch_first=None)
    assert relative_error(gram, truth @ truth.T) < 1e-10


def test_a_batch_size_is_not_read_off_a_loss_in_which_time_leads() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 4), nn.Linear(4, 9)
    ids = torch.randint(9, (10, 7))
    scores = head(table(ids).transpose(0, 1))  # [T, N, C]
    loss = nn.functional.cross_entropy(scores.reshape(-1, 9), ids.T.reshape(-1))
    both = nn.ModuleList([table, head])
    with pytest.raises(ValueError, match=r"candidates \[7, 10\]"):
        per_example_gram(both, loss)
    assert per_example_gram(both, loss, batch_size=10).shape == (10, 10)


def test_a_penalty_does_not_hide_the_batch_size() -> None:
    net, x = nn.Linear(5, 3), torch.randn(8, 5)
    loss = net(x).square().mean() + 0.1 * net.weight.square().sum()
    assert per_example_gram(net, loss).shape == (8, 8)
