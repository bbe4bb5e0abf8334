"""What the rows mean follows from the loss: sums over examples are exact, whatever else is said to be contributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Computing, Mlp, cross_entropy, naive_rows, relative_error
from _rule_checks import assert_read
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_cx.gradients import AmbiguousLayoutError, GradientTap, UnsupportedGradientError, per_example_gram

N = 5
Loss = Callable[[Tensor, Tensor], Tensor]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def status_of(module: nn.Module, loss: Tensor, n: int = N) -> str:
    tap = GradientTap(module.named_parameters(), n)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    return tap.sample.status


SUMS: dict[str, Loss] = {
    "two heads": lambda h, y: F.cross_entropy(h, y) + 0.5 * h.pow(2).mean(),
    "stacked": lambda h, y: torch.stack([F.cross_entropy(h, y), h.pow(2).mean(), h.abs().mean()]).mean(),
    "weighed": lambda h, y: (F.cross_entropy(h, y, reduction="none") * torch.rand(N)).sum() / N,
    "smoothed": lambda h, y: F.cross_entropy(h, y, label_smoothing=0.1),
    "halved": lambda h, y: -(-F.cross_entropy(h, y) / 2),
    "binary": lambda h, y: F.binary_cross_entropy_with_logits(h, h.detach().sigmoid()),
    "Huber": lambda h, y: F.huber_loss(h, torch.zeros_like(h)),
}


@pytest.mark.parametrize("case", SUMS)
def test_sums_over_examples_are_exact(case: str) -> None:
    module = net()
    assert status_of(module, SUMS[case](module(torch.randn(N, 6)), torch.randint(3, (N,)))) == "exact"


INTERACTING: dict[str, Loss] = {
    "load balancing": lambda h, y: F.cross_entropy(h, y) + (h.softmax(1).mean(0) ** 2).sum(),
    "variance": lambda h, y: F.cross_entropy(h, y) + h.var(0).mean(),
    "covariance": lambda h, y: F.cross_entropy(h, y) + (h.T @ h).pow(2).mean(),
    "neighbours": lambda h, y: F.cross_entropy(h, y) + (h[1:] - h[:-1]).pow(2).mean(),
    "largest": lambda h, y: F.cross_entropy(h, y) + h.max(0)[0].mean(),
    "root": lambda h, y: h.pow(2).mean().sqrt(),
    "logarithm": lambda h, y: h.pow(2).mean().log10(),
    "ratio": lambda h, y: h.abs().sum() / (h.pow(2).sum() + 1),
    "norm": lambda h, y: h.norm(),
    "square": lambda h, y: h.mean() ** 2,
    "the worst": lambda h, y: F.cross_entropy(h, y, reduction="none").max(),
    "the middle": lambda h, y: F.cross_entropy(h, y, reduction="none").median(),
    "an adjacency": lambda h, y: (torch.rand(N, N) @ h).pow(2).mean(),
    "some ignored": lambda h, y: F.cross_entropy(h, y.index_fill(0, torch.tensor([1]), -100)),
}


@pytest.mark.parametrize("case", INTERACTING)
def test_losses_in_which_examples_act_on_each_other_give_contributions(case: str) -> None:
    module = net()
    assert status_of(module, INTERACTING[case](module(torch.randn(N, 6)), torch.randint(3, (N,)))) == "contribution"


def test_the_mean_of_another_pass_over_the_batch_couples_the_examples() -> None:
    module, x, other = net(), torch.randn(N, 6), torch.randn(N, 6)
    assert status_of(module, (module(x) - module(other).mean(0)).pow(2).mean()) == "contribution"


def test_tokens_that_are_ignored_make_shares_uneven() -> None:
    layer, x, y = nn.Linear(6, 5), torch.randn(4, 7, 6), torch.randint(5, (4, 7))
    y[0, 1] = y[1, 1:3] = -100
    assert status_of(layer, F.cross_entropy(layer(x).flatten(0, 1), y.flatten()), 4) == "contribution"


ONE_BY_ONE: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "picked": lambda m, x, y: sum(F.cross_entropy(o, t) for o, t in zip(m(x), y, strict=True)) / len(x),  # type: ignore[return-value]
    "passed": lambda m, x, y: sum(F.cross_entropy(m(e), t) for e, t in zip(x, y, strict=True)) / len(x),  # type: ignore[return-value]
    "stacked": lambda m, x, y: torch.stack([m(x)[i].pow(2).mean() for i in range(len(x))]).mean(),
}


@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_a_loss_summed_one_by_one_over_as_many_as_there_are_examples_is_not_guessed(case: str) -> None:
    torch.manual_seed(0)
    module, x, y = net(), torch.randn(N, N, 6), torch.randint(3, (N, N))
    with pytest.raises(AmbiguousLayoutError, match=r"one by one|may hold"):
        GradientTap(module.named_parameters(), N).attach(ONE_BY_ONE[case](module, x, y))


def test_a_loss_summed_over_steps_is_read() -> None:
    def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = module(x)
        return sum((out[:, t].pow(3) + out[:, t]).mean() for t in range(4)) / 4  # type: ignore[return-value]

    assert_read(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(N, 4, 6), loss_of)


IN_PLACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an activation": lambda m, x: m.b(F.relu_(m.a(x))),
    "a sum": lambda m, x: m.b(m.a(x).add_(x)),
    "a mask": lambda m, x: m.b(m.a(x).masked_fill_(x > 1, 0.0)),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_work_in_place_on_sequences(case: str) -> None:
    torch.manual_seed(0)
    assert_read(Computing(IN_PLACE[case], a=nn.Linear(6, 6), b=nn.Linear(6, 3)), torch.randn(4, 3, 6))


def test_a_shift_in_time_with_time_first() -> None:
    torch.manual_seed(0)

    def shifted(m: Any, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1)).tanh()
        return m.b(F.pad(h, (0, 0, 0, 0, 1, 0))[:-1]).transpose(0, 1)

    assert_read(Computing(shifted, a=nn.Linear(6, 4), b=nn.Linear(4, 3)), torch.randn(4, 7, 6))


def test_a_bilinear_layer_with_as_many_outputs_as_examples() -> None:
    torch.manual_seed(0)
    assert_read(Computing(lambda m, x: m.f(x, x.sin()), f=nn.Bilinear(6, 6, N)), torch.randn(N, 6))


def test_positions_stacked_for_the_loss_where_they_are_a_multiple_of_the_examples() -> None:
    torch.manual_seed(0)
    module, x, y = net().double(), torch.randn(4, 8, 6).double(), torch.randint(3, (4, 8))

    def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x).flatten(0, 1), y.flatten())

    rows = naive_rows(module, loss_of, x, y)
    gram = per_example_gram(module, loss_of(module, x, y), 4, batch_first=None)
    assert relative_error(gram, rows @ rows.T) < 1e-10


def test_a_checkpointed_graph_is_refused_though_one_built_alike_is_remembered() -> None:
    module, x = net(), torch.randn(N, 6)
    tap = GradientTap(module.named_parameters(), N)
    loss = module(x).pow(2).mean()
    with tap(loss):
        loss.backward()
    loss = checkpoint(module, x, use_reentrant=False).pow(2).mean()
    with pytest.raises(UnsupportedGradientError, match="checkpoint"):
        tap.attach(loss)
    loss.backward()


def test_a_parameter_that_was_frozen_since() -> None:
    module, x, y = Mlp(), torch.randn(6, 20), torch.randint(5, (6,))
    tap = GradientTap(module.named_parameters(), 6)
    module[1].weight.requires_grad_(False)
    loss = cross_entropy(module, x, y)
    with tap(loss):
        loss.backward()
    rows = naive_rows(module, cross_entropy, x, y)
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < 1e-5


def test_a_norm_that_adds_up_its_own_gradient_in_16_bits_is_no_reason_to_fail() -> None:
    torch.manual_seed(0)
    layer = nn.LayerNorm(16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(64, 32, 16).bfloat16())
        loss = (out + 1).mean()
    tap = GradientTap(layer.named_parameters(), 64)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert tap.sample.gram is not None


def test_a_consumer_of_complex_numbers_is_refused_before_the_backward() -> None:
    filtered = Computing(
        lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.w), n=8),
        w=nn.Parameter(torch.randn(5, 2)),
    )
    with pytest.raises(UnsupportedGradientError, match="complex"):
        GradientTap(filtered.named_parameters(), N).attach(filtered(torch.randn(N, 8)).pow(2).mean())
