"""PyTorch's own attention and transformers, tied weights, modules used twice, frozen parameters, penalties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _models import Computing, TinyGpt, naive_rows
from _rule_checks import assert_read, cubes, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_cx.gradients import GradientTap, UnsupportedGradientError

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "without bias": {"bias": False},
    "bias_kv and zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("case", OPTIONS)
def test_self_attention(case: str, weights: bool, n: int) -> None:
    torch.manual_seed(n)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **OPTIONS[case])
    _not_zero(attention)
    assert_read(Computing(lambda m, x: m.f(x, x, x, need_weights=weights)[0], f=attention), torch.randn(n, 5, 8))


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("case", OPTIONS)
def test_attention_to_another_width(case: str, weights: bool, n: int) -> None:
    torch.manual_seed(n)
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=3, batch_first=True, **OPTIONS[case])
    _not_zero(attention)
    module = Computing(lambda m, x: m.f(x, x[:, :4, :4], x[:, :4, 5:], need_weights=weights)[0], f=attention)
    assert_read(module, torch.randn(n, 5, 8))


@pytest.mark.parametrize("weights", [True, False])
def test_attention_with_time_first(weights: bool) -> None:
    torch.manual_seed(0)
    module = Computing(
        lambda m, x: m.f(*[x.transpose(0, 1)] * 3, need_weights=weights)[0].transpose(0, 1),
        f=nn.MultiheadAttention(8, 2),
    )
    assert_read(module, torch.randn(6, 5, 8))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("mask", ["attention", "padding", "both"])
def test_masked_attention(mask: str, weights: bool) -> None:
    torch.manual_seed(0)
    causal = torch.ones(5, 5).triu(1).bool() if mask != "padding" else None

    def attend(m: Computing, x: Tensor) -> Tensor:
        padding = (x[..., 0] > 1) & (torch.arange(5) > 0) if mask != "attention" else None
        return m.f(x, x, x, key_padding_mask=padding, attn_mask=causal, need_weights=weights)[0]

    assert_read(Computing(attend, f=nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(6, 5, 8))


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_and_decoder(batch_first: bool, norm_first: bool, n: int) -> None:
    torch.manual_seed(n)
    options: dict[str, Any] = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, **options), 2)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, activation="gelu", **options), 1)

    def run(m: Computing, x: Tensor) -> Tensor:
        x = x if batch_first else x.transpose(0, 1)
        first, second = x.split([3, 4], int(batch_first))
        out = m.d(second, m.e(first), tgt_mask=nn.Transformer.generate_square_subsequent_mask(4).to(x))
        return out if batch_first else out.transpose(0, 1)

    assert_read(Computing(run, e=encoder, d=decoder), torch.randn(n, 7, 8))


def test_learned_queries() -> None:
    torch.manual_seed(0)
    module = Computing(
        lambda m, x: m.f(m.q.expand(len(x), -1, -1), x, x)[0],
        f=nn.MultiheadAttention(8, 2, batch_first=True),
        q=nn.Parameter(torch.randn(1, 3, 8)),
    )
    assert_read(module, torch.randn(6, 5, 8))


def test_tied_weights_under_a_norm() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 6), parametrizations.weight_norm(nn.Linear(6, 9))
    head.parametrizations.weight.original1 = table.weight
    assert_read(Computing(lambda m, ids: m.h(m.t(ids).tanh()), t=table, h=head), torch.randint(9, (6, 4)))


def test_a_normalised_layer_used_twice() -> None:
    torch.manual_seed(0)
    for layer in (parametrizations.weight_norm(nn.Linear(5, 5)), nn.Linear(5, 5), nn.RMSNorm(5), nn.PReLU(4)):
        assert_read(Computing(lambda m, x: m.f(m.f(x).tanh()), f=layer), torch.randn(6, 4, 5))


def test_frozen_halves_of_a_reparametrisation() -> None:
    torch.manual_seed(0)
    for half in ("original0", "original1"):
        layer = parametrizations.weight_norm(nn.Linear(5, 4))
        getattr(layer.parametrizations.weight, half).requires_grad_(False)
        assert_read(layer, torch.randn(6, 3, 5))


def test_low_rank_adapters_beside_frozen_weights() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 4).requires_grad_(False)
    module = Computing(
        lambda m, x: m.base(x) + F.linear(x, m.up @ m.down) * 0.5 + F.linear(F.linear(x, m.down), m.up),
        base=base,
        up=nn.Parameter(torch.randn(4, 2)),
        down=nn.Parameter(torch.randn(2, 5)),
    )
    assert_read(module, torch.randn(6, 3, 5))


def test_a_language_model_with_tied_tables() -> None:
    torch.manual_seed(0)
    assert_read(TinyGpt(), torch.randint(11, (6, 8)))


PENALTIES = {
    "squares": lambda m: m.weight.pow(2).sum(),
    "a norm": lambda m: 0.1 * torch.linalg.vector_norm(m.weight),
    "of a product": lambda m: (m.weight @ m.weight.T).square().sum() / 7,
    "two terms": lambda m: m.weight.abs().sum() * 0.1 + 0.2 * m.bias.square().mean(),
    "an exponential": lambda m: m.weight.exp().mean().log(),
}


@pytest.mark.parametrize("case", PENALTIES)
def test_penalties_are_named_and_left_out(case: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(5, 5).double(), torch.randn(6, 5, dtype=torch.float64)
    rows = naive_rows(module, cubes, x, x)
    loss = (cubes(module, x, x) + PENALTIES[case](module)) * 0.5
    tap = GradientTap(module.named_parameters(), 6, loss_scale=0.5)
    with tap(loss):
        loss.backward()
    assert tap.sample is not None
    assert relative_error(tap.sample.gram, rows @ rows.T) < 1e-10
    assert any(note.startswith("penalty on parameters alone, left out: ") for note in tap.sample.notes)


def test_a_penalty_on_a_distance_is_refused_since_data_may_be_what_it_is_taken_from() -> None:
    module, x = nn.Linear(5, 5), torch.randn(6, 5)
    for constant in (torch.eye(5), x.T @ x):
        loss = cubes(module, x, x) + (module.weight - constant).square().sum()
        with pytest.raises(UnsupportedGradientError, match="SubBackward0 of weight"):
            GradientTap(module.named_parameters(), 6).attach(loss)


def test_a_learned_weight_of_the_whole_loss_is_refused_by_name() -> None:
    module = Computing(lambda m, x: m.f(x), f=nn.Linear(5, 3), s=nn.Parameter(torch.tensor(0.3)))
    x = torch.randn(6, 5)
    loss = cubes(module, x, x) * (-module.s).exp() + module.s
    with pytest.raises(UnsupportedGradientError, match="MulBackward0 of s"):
        GradientTap(module.named_parameters(), 6).attach(loss)
    loss.backward()
    assert module.s.grad is not None


def _not_zero(attention: nn.MultiheadAttention) -> None:
    for parameter in attention.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
