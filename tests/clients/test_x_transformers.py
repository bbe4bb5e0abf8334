"""x-transformers in a LightningModule, with its own wrappers, which return the loss."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, cut, step_of, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from x_transformers import AutoregressiveWrapper, ContinuousTransformerWrapper, Decoder, Encoder, TransformerWrapper

EXAMPLES, BATCH, WORDS = 192, 16, 50


class Module(pl.LightningModule):
    """The part that both share."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Language(Module):
    """Next-token prediction; the batch is the tokens alone, as in the library's examples."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        (tokens,) = batch
        loss = self.net(tokens)
        self.log("train_loss", loss)
        return loss


class Padded(Module):
    """The same with the lengths of the texts."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        tokens, lengths = batch
        return self.net(tokens, lens=lengths)


class Continuous(Module):
    """Regression of a sequence on a sequence of vectors."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.mse_loss(self.net(x).squeeze(-1), y)


def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    first, by = (torch.randint(*span, (EXAMPLES, 1), generator=generator) for span in ((5, 15), (1, 4)))
    return first + by * torch.arange(12)


def language_model(double: bool) -> AutoregressiveWrapper:
    rate = 0.0 if double else 0.1
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True, ff_dropout=rate, attn_dropout=rate)
    return AutoregressiveWrapper(TransformerWrapper(num_tokens=WORDS, max_seq_len=16, attn_layers=layers))


def fit_language(callbacks: list[Any], double: bool) -> None:
    loader = DataLoader(TensorDataset(tokens()), BATCH, shuffle=True)
    trainer(callbacks, double).fit(Language(language_model(double)), loader)


def fit_padded(callbacks: list[Any], double: bool) -> None:
    lengths = torch.randint(6, 13, (EXAMPLES,), generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(tokens(), lengths), BATCH, shuffle=True)
    trainer(callbacks, double).fit(Padded(language_model(double)), loader)


def fit_continuous(callbacks: list[Any], double: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 10, 4, generator=generator)
    y = x.cumsum(1).mean(2) + 0.1 * torch.randn(EXAMPLES, 10, generator=generator)
    layers = Encoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    net = ContinuousTransformerWrapper(dim_in=4, dim_out=1, max_seq_len=10, attn_layers=layers)
    trainer(callbacks, double).fit(Continuous(net), DataLoader(TensorDataset(x, y), BATCH, shuffle=True))


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


def tokens_of(batch: Any) -> torch.Tensor:
    """How many of the predicted tokens are each text's, over the mean."""
    counts = (batch[1] - 1).double()
    return counts / counts.mean()


CASES = [
    Case("x-transformers:language", fit_language, loss_of),
    Case("x-transformers:padded", fit_padded, loss_of, tokens_of),
    Case("x-transformers:continuous", fit_continuous, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_x_transformers(case: Case, check: Any) -> None:
    verify(case, check)
