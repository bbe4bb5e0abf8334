"""Weight norms are read row by row, without a backward for each example."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _models import Computing
from _rule_checks import assert_read
from torch import nn
from torch.nn.utils import parametrizations

from lightning_cx.gradients.factors import reparametrised
from lightning_cx.gradients.factors.reparametrised import Reparametrised
from lightning_cx.gradients.graph.weights import Source

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(5, 4), (5,)),
    "wide Linear": (lambda: nn.Linear(20, 18, bias=False), (20,)),
    "Linear on sequences": (lambda: nn.Linear(5, 4), (7, 5)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, dilation=2, groups=2), (4, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 2, stride=2), (3, 6, 5)),
    "Embedding": (lambda: nn.Embedding(9, 4), (-9, 5)),
}


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("case", LAYERS)
def test_no_example_is_sent_on_alone(case: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(source: Source, rows: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a backward for each example")

    monkeypatch.setattr(Source, "send_on", never)
    torch.manual_seed(n)
    make, shape = LAYERS[case]
    x = torch.randint(-shape[0], (n, *shape[1:])) if shape[0] < 0 else torch.randn(n, *shape)
    assert_read(parametrizations.weight_norm(make()), x)


def test_a_normed_layer_that_is_used_twice_or_shares_a_direction() -> None:
    torch.manual_seed(0)
    one, other = (parametrizations.weight_norm(nn.Linear(5, 5)) for _ in range(2))
    other.parametrizations.weight.original1 = one.parametrizations.weight.original1
    assert_read(Computing(lambda m, x: m.a(m.b(m.a(x).tanh()).tanh()), a=one, b=other), torch.randn(6, 3, 5))


def test_rows_made_anew_in_blocks_give_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(5, 4), dim=1)
    monkeypatch.setattr(reparametrised, "BUFFER_BYTES", 8 * 20 * 3)
    made: list[int] = []
    examples = Reparametrised.of_examples
    monkeypatch.setattr(Reparametrised, "of_examples", lambda self, a, b: made.append(b - a) or examples(self, a, b))
    assert_read(layer, torch.randn(10, 3, 5))
    assert max(made) <= 6  # single precision fits twice as many
