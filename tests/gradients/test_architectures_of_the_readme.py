"""The README's table of architectures: every row of it is tried, and every row that is tried stands there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _models import BagOfWords, Computing, Convnet, Mlp, TinyGpt, Unread, Vit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

from lightning_cx.gradients import GradientTap, UnsupportedGradientError

N = 6
README = Path(__file__).parents[2] / "README.md"
Step = Callable[[], tuple[nn.Module, Tensor]]


def outputs(module: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    out = module(torch.randn(N, *shape))
    out = out[0] if isinstance(out, tuple) else out
    return module, out.pow(2).flatten(1).mean(1).mean()


def tokens(module: nn.Module, length: int = 8) -> tuple[nn.Module, Tensor]:
    return module, module(torch.randint(9, (N, length))).pow(2).flatten(1).mean(1).mean()


def classified(weight: Tensor | None = None, ignored: bool = False) -> tuple[nn.Module, Tensor]:
    net, y = Mlp(), torch.randint(5, (N,))
    return net, F.cross_entropy(
        net(torch.randn(N, 20)), y.index_fill(0, torch.tensor([0]), -100) if ignored else y, weight
    )


def contrasted() -> tuple[nn.Module, Tensor]:
    net = Mlp()
    a, b = net(torch.randn(N, 20)), net(torch.randn(N, 20))
    return net, F.cross_entropy(F.normalize(a) @ F.normalize(b).T, torch.arange(N))


def penalised() -> tuple[nn.Module, Tensor]:
    net, loss = outputs(Mlp(), 20)
    return net, loss + 0.1 * net[1].weight.pow(2).sum()


def packed() -> tuple[nn.Module, Tensor]:
    net = nn.GRU(4, 5, batch_first=True)
    lengths = torch.tensor([7, 6, 5, 4, 3, 2])
    return net, net(rnn.pack_padded_sequence(torch.randn(N, 7, 4), lengths, batch_first=True))[0].data.pow(2).mean()


def time_first() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    return layer, layer(torch.randn(N, N, 8).transpose(0, 1)).transpose(0, 1).pow(2).flatten(1).mean(1).mean()


def low_rank() -> nn.Module:
    base = nn.Linear(20, 20).requires_grad_(False)
    return Computing(
        lambda m, x: m.base(x) + x @ m.a @ m.b,
        base=base,
        a=nn.Parameter(torch.randn(20, 2)),
        b=nn.Parameter(torch.randn(2, 20)),
    )


def frames() -> nn.Module:
    return Computing(lambda m, x: m.net(x.flatten(0, 1)).unflatten(0, (len(x), -1)), net=Convnet())


def checkpointed() -> nn.Module:
    return Computing(lambda m, x: checkpoint(m.net, x, use_reentrant=False), net=Mlp())


ROWS: dict[str, tuple[str, list[Step]]] = {
    "linear layers, `Bilinear`, `matmul`, `bmm`, `einsum` with a weight": (
        "exact",
        [
            lambda: outputs(Mlp(), 20),
            lambda: outputs(Computing(lambda m, x: m.f(x, x.sin()), f=nn.Bilinear(4, 4, 3)), 4),
            lambda: outputs(
                Computing(lambda m, x: torch.einsum("ntd,hde->nhte", x, m.w), w=nn.Parameter(torch.randn(2, 4, 3))),
                5,
                4,
            ),
        ],
    ),
    "convolutions over 1 to 3 axes, transposed, grouped, dilated, any padding": (
        "exact",
        [
            lambda: outputs(Convnet(), 1, 10, 10),
            lambda: outputs(nn.Conv3d(2, 4, 2, groups=2, padding_mode="circular", padding=1), 2, 4, 4, 4),
            lambda: outputs(nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=2), 2, 4, 4),
        ],
    ),
    "videos: frames folded into the batch": ("exact", [lambda: outputs(frames(), 3, 1, 10, 10)]),
    "`Embedding`, `EmbeddingBag`, tied input and output": (
        "exact",
        [
            lambda: tokens(TinyGpt(vocabulary=9)),
            lambda: tokens(BagOfWords()),
            lambda: tokens(nn.EmbeddingBag(9, 4, mode="max")),
        ],
    ),
    "`LayerNorm`, `RMSNorm`, `GroupNorm`, `InstanceNorm`": (
        "exact",
        [
            lambda: outputs(nn.LayerNorm(5), 3, 5),
            lambda: outputs(nn.RMSNorm(5), 3, 5),
            lambda: outputs(nn.GroupNorm(2, 4), 4, 5),
            lambda: outputs(nn.InstanceNorm1d(4, affine=True), 4, 5),
        ],
    ),
    "`BatchNorm` in eval mode": ("exact", [lambda: outputs(nn.BatchNorm1d(4).eval(), 4, 5)]),
    "`BatchNorm` in training mode": ("contribution", [lambda: outputs(nn.BatchNorm1d(4), 4, 5)]),
    "transformers: `MultiheadAttention`, `scaled_dot_product_attention`, batch or sequence first, T = N": (
        "exact",
        [lambda: outputs(Vit(), 1, 12, 12), lambda: tokens(TinyGpt(vocabulary=9), N), time_first],
    ),
    "`LSTM`, `GRU`, `RNN`, stacked and bidirectional, and their cells (CPU)": (
        "exact",
        [
            lambda: outputs(nn.LSTM(4, 5, batch_first=True), 7, 4),
            lambda: outputs(nn.GRU(4, 5, 2, batch_first=True, bidirectional=True), 7, 4),
        ],
    ),
    "`PReLU`, learned scales and shifts, temperatures": (
        "exact",
        [
            lambda: outputs(nn.Sequential(nn.Linear(4, 3), nn.PReLU(3)), 4),
            lambda: outputs(Computing(lambda m, x: x * m.t.exp(), t=nn.Parameter(torch.zeros(()))), 4),
        ],
    ),
    "`weight_norm`, `spectral_norm`, `parametrize`, any function of parameters as a weight": (
        "exact",
        [
            lambda: outputs(parametrizations.weight_norm(nn.Linear(4, 3)), 4),
            lambda: outputs(parametrizations.spectral_norm(nn.Conv1d(2, 3, 2)), 2, 5),
            lambda: outputs(parametrizations.orthogonal(nn.Linear(4, 4)), 4),
        ],
    ),
    "shared modules, frozen parts, adapters (LoRA)": ("exact", [lambda: outputs(low_rank(), 20)]),
    "a penalty on parameters in the loss": ("exact", [penalised]),
    "class weights, ignored examples, contrastive and other in-batch losses": (
        "contribution",
        [lambda: classified(torch.arange(1.0, 6)), lambda: classified(ignored=True), contrasted],
    ),
    "packed sequences": ("replay", [packed]),
    "activation checkpointing": ("replay", [lambda: outputs(checkpointed(), 20)]),
    "a custom `autograd.Function` that takes a parameter": ("replay", [lambda: outputs(nn.Sequential(Unread()), 4)]),
}


def table() -> dict[str, str]:
    lines = README.read_text().split("| architecture | rows |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cell[0]: cell[1].strip("`") for cell in cells}


def test_the_table_and_these_tests_name_the_same_rows() -> None:
    assert table() == {row: status for row, (status, _) in ROWS.items()}


@pytest.mark.parametrize("row", ROWS)
def test_what_the_table_says_of(row: str) -> None:
    torch.manual_seed(0)
    status, steps = ROWS[row]
    for step in steps:
        module, loss = step()
        tap = GradientTap(module.named_parameters(), N)
        if status == "replay":
            with pytest.raises(UnsupportedGradientError):
                tap.attach(loss)
            continue
        with tap(loss):
            loss.backward()
        assert tap.sample is not None
        assert tap.sample.status == status
