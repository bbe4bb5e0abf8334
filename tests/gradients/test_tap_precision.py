"""Under autocast the tap contracts in float32: it says of half-precision gradients what a loop in float64 says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _models import Convnet, Mlp, TinyGpt, Vit, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx.gradients import GradientSample, GradientTap

N, LONG = 16, 257
LIMIT = (
    1e-2  # what issue 3 asks for; seen are .001 for the Gram matrix and .0025 for the worst single norm, in bfloat16
)
SCALE = 2.0**16  # where torch's GradScaler starts


def score(module: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Cross entropy of classes or of next tokens, computed under autocast."""
    with torch.autocast("cpu", dtype=dtype):
        return F.cross_entropy(module(x).flatten(0, -2), y.flatten())


def looped_rows(module: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """[N, P] in float64: one backward under the same autocast for each example, its loss scaled, its gradient not."""
    parameters = list(module.parameters())
    rows = []
    for i in range(len(x)):
        loss = score(module, x[i : i + 1], y[i : i + 1], dtype) * scale
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([g.double().flatten() / scale for g in gradients]))
    return torch.stack(rows)


def tapped(module: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype, scale: float = 1.0) -> GradientSample:
    loss = score(module, x, y, dtype) * scale
    tap = GradientTap(module.named_parameters(), len(x), loss_scale=scale)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    return tap.sample


def worst_norm(sample: GradientSample, rows: Tensor) -> float:
    truth = rows.square().sum(1)
    return float(((sample.squared_norms - truth) / truth).abs().max())


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "MLP": lambda: (Mlp(), torch.randn(N, 20), torch.randint(5, (N,))),
    "GroupNorm convnet": lambda: (Convnet(), torch.randn(N, 1, 10, 10), torch.randint(5, (N,))),
    "vision transformer": lambda: (Vit(), torch.randn(N, 1, 12, 12), torch.randint(5, (N,))),
    "GPT, tied": lambda: (TinyGpt(), torch.randint(11, (N, 9)), torch.randint(11, (N, 9))),
    "GPT, untied": lambda: (TinyGpt(tied=False), torch.randint(11, (N, 9)), torch.randint(11, (N, 9))),
    "GPT, long": lambda: (TinyGpt(length=LONG), torch.randint(11, (4, LONG)), torch.randint(11, (4, LONG))),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", MODELS)
def test_gram_and_norms_are_those_of_the_loop_in_the_same_autocast(case: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    module, x, y = MODELS[case]()
    rows = looped_rows(module, x, y, dtype)
    sample = tapped(module, x, y, dtype)
    assert relative_error(sample.gram, rows @ rows.T) < LIMIT
    assert worst_norm(sample, rows) < LIMIT


def test_contractions_add_up_in_float32_where_bfloat16_would_not_do() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(8, LONG, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    loss = output.float().pow(2).sum((1, 2)).mean()
    (slope,) = torch.autograd.grad(loss, output, retain_graph=True)
    assert slope.dtype == torch.bfloat16
    tap = GradientTap(layer.named_parameters(), 8)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    halves = 8 * slope, x.bfloat16()  # both products, of the gradients and of their inner products, from these numbers
    truth = torch.einsum("nti,ntj->nij", *(half.double() for half in halves)).flatten(1)
    rough = torch.stack([a.T @ b for a, b in zip(*halves, strict=True)]).flatten(1)
    assert relative_error(tap.sample.gram, truth @ truth.T) < 1e-6
    assert relative_error(rough @ rough.T, truth @ truth.T) > 1e-4


def test_small_gradients_vanish_in_float16_unless_the_loss_is_scaled() -> None:
    """Not the tap's doing: the share of one example in a mean over many is too small for the backward itself."""
    torch.manual_seed(0)
    module, x, y = Mlp(), torch.randn(64, 20), torch.randint(5, (64,))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(600):  # until all examples are known and little is left to learn from them
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    rows = looped_rows(module, x, y, torch.float16, scale=1024.0)
    assert worst_norm(tapped(module, x, y, torch.float16), rows) > LIMIT
    scaled = tapped(module, x, y, torch.float16, scale=SCALE)
    assert worst_norm(scaled, rows) < LIMIT
    assert relative_error(scaled.gram, rows @ rows.T) < LIMIT
