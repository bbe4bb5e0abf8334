"""Where the examples lie: read rightly, asked for, or refused by name; the sum check passes on a wrong axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _layouts import Model, N, p, tapped
from _models import Computing, mean_square, naive_rows, relative_error
from torch import Tensor, nn
from torch.nn import functional as F


def assert_reads_the_truth(module: nn.Module, x: Tensor, **options: Any) -> None:
    module, x = module.double(), x.double() if x.is_floating_point() else x
    truth = naive_rows(module, mean_square, x, torch.zeros(len(x)))
    sample = tapped(module, x, **options)
    assert relative_error(sample.gram, truth @ truth.T) < 1e-10
    assert sample.status == "exact"


def of_frames(layer: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.layer(x.flatten(0, 1)).tanh().unflatten(0, (len(x), x.shape[1]))


def last_of_each(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh()[torch.arange(len(x)), 1])


READ: dict[str, Model] = {
    "a Linear on [N, T, S, d]": lambda: (nn.Linear(5, 3), torch.randn(N, 2, 4, 5)),
    "a Linear on [T, N, S, d]": lambda: (
        Computing(lambda m, x: m.layer(x.transpose(0, 1).contiguous()).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
        torch.randn(N, 2, 4, 5),
    ),
    "a Linear on [T, S, N, d]": lambda: (
        Computing(
            lambda m, x: m.layer(x.permute(1, 2, 0, 3).contiguous()).permute(2, 0, 1, 3),
            layer=nn.Linear(5, 3, bias=False),
        ),
        torch.randn(N, 2, 4, 5),
    ),
    "frames stacked before a Linear and parted after it": lambda: (
        Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer),
        torch.randn(N, 2, 4, 5),
    ),
    "frames of [N*T, d]": lambda: (Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer), torch.randn(N, 4, 5)),
    "a LayerNorm on stacked frames": lambda: (
        Computing(of_frames(layer := nn.LayerNorm([4, 5])), layer=layer),
        torch.randn(N, 2, 4, 5),
    ),
    "sequence-first tokens": lambda: (
        Computing(lambda m, x: m.head(m.table(x.t()).tanh().mean(0)), table=nn.Embedding(9, 5), head=nn.Linear(5, 3)),
        torch.randint(9, (N, 4)),
    ),
    "sequence-first tokens, T a multiple of N": lambda: (
        Computing(lambda m, x: m.head(m.table(x.t()).tanh().mean(0)), table=nn.Embedding(9, 5), head=nn.Linear(5, 3)),
        torch.randint(9, (N, 12)),
    ),
    "sequence-first Linear, T a multiple of N": lambda: (
        Computing(lambda m, x: m.layer(x.transpose(0, 1)).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
        torch.randn(N, 12, 5),
    ),
    "tokens on [N, T, S]": lambda: (nn.Embedding(9, 5), torch.randint(9, (N, 3, 2))),
    "tokens on [N]": lambda: (nn.Embedding(9, 5), torch.randint(9, (N,))),
    "a scalar on [T, N]": lambda: (Computing(lambda m, x: (x.t() * m.p).t().tanh(), p=p()), torch.randn(N, 4)),
    "a scalar on [N, N]": lambda: (Computing(lambda m, x: (x * m.p).tanh(), p=p()), torch.randn(N, N)),
    "a table [T, d] on [N, T, d] with T = N": lambda: (
        Computing(lambda m, x: (x + m.p).tanh(), p=p(N, 5)),
        torch.randn(N, N, 5),
    ),
    "a table [T, 1, d] on [T, N, d] with T = N": lambda: (
        Computing(lambda m, x: (x.transpose(0, 1) * m.p).transpose(0, 1).tanh(), p=p(N, 1, 5)),
        torch.randn(N, N, 5),
    ),
    "one step of each sequence picked by an index": lambda: (
        Computing(last_of_each, a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
        torch.randn(N, 4, 5),
    ),
    "one long example without an axis of its own": lambda: (
        Computing(lambda m, x: m.b(m.a(x[0]).tanh())[None], a=nn.Linear(5, 4), b=nn.Linear(4, 3)),
        torch.randn(1, 4, 5),
    ),
    "a Linear on [T, N, d] with T = N": lambda: (
        Computing(lambda m, x: m.layer(x.transpose(0, 1)).tanh().transpose(0, 1), layer=nn.Linear(5, 3)),
        torch.randn(N, N, 5),
    ),
    "tokens on [T, N] with T = N": lambda: (
        Computing(lambda m, x: m.table(x.t()).tanh().mean(0), table=nn.Embedding(9, 5)),
        torch.randint(9, (N, N)),
    ),
    "tokens on [N, T] with T = N": lambda: (nn.Embedding(9, 5), torch.randint(9, (N, N))),
    "frames on [N*T, L, d] with L = N": lambda: (
        Computing(of_frames(layer := nn.Linear(5, 3)), layer=layer),
        torch.randn(N, 2, N, 5),
    ),
    "LayerNorm on [N*T, L, d] with L = N": lambda: (
        Computing(of_frames(layer := nn.LayerNorm(5)), layer=layer),
        torch.randn(N, 2, N, 5),
    ),
    "two views of each example, one batch after the other": lambda: (
        Computing(
            lambda m, x: torch.stack(m.layer(torch.cat([x[:, :5], x[:, 5:]])).tanh().chunk(2), 1).mean(1),
            layer=nn.Linear(5, 3),
        ),
        torch.randn(N, 10),
    ),
    "[T, S, N, d] with T = N": lambda: (
        Computing(lambda m, x: m.layer(x.permute(1, 2, 0, 3)).permute(2, 0, 1, 3), layer=nn.Linear(5, 3)),
        torch.randn(N, N, 4, 5),
    ),
    "a weight scaled from a constant": lambda: (
        Computing(lambda m, x: F.linear(x, m.c * m.p), c=torch.randn(N, 5), p=p(5)),
        torch.randn(N, 5),
    ),
    "a row repeated into a weight": lambda: (
        Computing(lambda m, x: F.linear(x, m.p.expand(N, 5)), p=p(5)),
        torch.randn(N, 5),
    ),
    "a kernel scaled from a constant": lambda: (
        Computing(lambda m, x: F.conv1d(x, m.c * m.p), c=torch.randn(N, 3, 2), p=p(2)),
        torch.randn(N, 3, 7),
    ),
    "an embedding of all classes as a weight": lambda: (
        Computing(lambda m, x: F.linear(x, m.table(torch.arange(N))), table=nn.Embedding(N, 5)),
        torch.randn(N, 5),
    ),
    "positions through dropout": lambda: (
        Computing(lambda m, x: x + m.table(torch.arange(N)) * m.c, table=nn.Embedding(N, 5), c=torch.rand(N, 5)),
        torch.randn(N, N, 5),
    ),
    "positions through a Linear": lambda: (
        Computing(lambda m, x: x + m.a(m.c), c=torch.randn(N, 4), a=nn.Linear(4, 5)),
        torch.randn(N, N, 5),
    ),
    "positions [1, T, d] through an MLP": lambda: (
        Computing(
            lambda m, x: x * m.a(m.c),
            c=torch.randn(1, N, 4),
            a=nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 5)),
        ),
        torch.randn(N, N, 5),
    ),
    "a fixed table and a shift": lambda: (
        Computing(lambda m, x: x + (m.c + m.p), c=torch.randn(1, N, 5), p=p(5)),
        torch.randn(N, N, 5),
    ),
    "a scalar repeated for each class": lambda: (Computing(lambda m, x: x * m.p.expand(N), p=p(1)), torch.randn(N, N)),
    "frames before a convolution": lambda: (
        Computing(of_frames(layer := nn.Conv2d(1, 2, 3)), layer=layer),
        torch.randn(N, 2, 1, 5, 5),
    ),
    "a weight's size as a scale": lambda: (
        Computing(lambda m, x: m.a(x) * m.a.weight.abs().mean(), a=nn.Linear(5, 3)),
        torch.randn(N, 5),
    ),
    "a shift repeated along the outputs": lambda: (
        Computing(lambda m, x: torch.addmm(m.p, x, m.w), p=p(1), w=p(5, 3)),
        torch.randn(N, 5),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_axis_of_the_examples_is_found_in(case: str) -> None:
    torch.manual_seed(len(case))
    assert_reads_the_truth(*READ[case]())
