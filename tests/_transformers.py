"""Transformers as people write them: tied embeddings, class tokens, stochastic depth, experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from _architectures import CLASSES, Draws, Network, drawn
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Config:
    vocabulary: int = 11
    length: int = 12
    width: int = 16
    heads: int = 2
    layers: int = 2


class ModelOutput(dict):
    """A dictionary with attributes, as Hugging Face's models return it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores if bias is None else scores + bias
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config: Config, mlp: nn.Module | None = None) -> None:
        super().__init__()
        d = config.width
        self.norm1, self.norm2, self.attention = nn.LayerNorm(d), nn.LayerNorm(d), Attention(config)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) if mlp is None else mlp

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class CausalLm(Network):
    """Written like Hugging Face's: `model(**batch)` returns a ModelOutput with loss and logits; tied embeddings."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = Config() if config is None else config
        self.wte, self.wpe = nn.Embedding(config.vocabulary, config.width), nn.Embedding(config.length, config.width)
        self.h = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> ModelOutput:
        positions = torch.arange(input_ids.shape[1])
        x = self.wte(input_ids) + self.wpe(positions)
        seen = (positions[:, None] >= positions)[None, None] & attention_mask[:, None, None, :].bool()
        bias = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)
        for layer in self.h:
            x = layer(x, bias)
        logits = self.lm_head(self.ln_f(x))
        if labels is None:
            return ModelOutput(logits=logits)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return ModelOutput(loss=loss, logits=logits)

    def loss(self, batch: Any) -> Tensor:
        return self(**batch).loss


class DropPath(nn.Module):
    """Stochastic depth: the whole branch of an example is left out."""

    def __init__(self, draws: Draws, share: float = 0.5) -> None:
        super().__init__()
        self.__dict__["draws"], self.share = draws, share

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        kept = self.draws(torch.rand, len(branch), 1, 1) >= self.share
        return branch * kept.to(branch.dtype) / (1 - self.share)


class Vit(Network):
    """A vision transformer with a class token, and stochastic depth of each example."""

    def __init__(self) -> None:
        super().__init__()
        config = Config(width=12)
        self.patches, self.token = nn.Conv2d(1, 12, 4, 4), nn.Parameter(drawn(1, 1, 12))
        self.positions = nn.Parameter(drawn(1, 5, 12, seed=1))
        self.layers = nn.ModuleList(Layer(config) for _ in range(2))
        self.drop, self.norm, self.head = DropPath(self.draws), nn.LayerNorm(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = x + self.drop(layer(x) - x)
        return self.head(self.norm(x)[:, 0])


class Experts(nn.Module):
    """Every token goes to its best expert: tokens are picked, computed and scattered back."""

    def __init__(self, width: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width)) for _ in range(experts)
        )
        self.notes: list[Tensor] = []  # the load-balancing term of the last pass

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights = self.router(tokens).softmax(-1)
        best, chosen = weights.max(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            places = (chosen == number).nonzero().squeeze(1)
            out = out.index_add(0, places, best[places, None] * expert(tokens[places]))
        share = F.one_hot(chosen, len(self.experts)).to(x.dtype).mean(0)
        self.notes[:] = [len(self.experts) * (share * weights.mean(0)).sum()]
        return out.view_as(x)


class DenseExperts(Experts):
    """Every expert sees every token, and what the router did not choose counts nothing."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        chosen = weights.argmax(-1)
        kept = weights * F.one_hot(chosen, len(self.experts))
        share = F.one_hot(chosen, len(self.experts)).to(x.dtype).flatten(0, -2).mean(0)
        self.notes[:] = [len(self.experts) * (share * weights.flatten(0, -2).mean(0)).sum()]
        return (torch.stack([expert(x) for expert in self.experts], -1) * kept.unsqueeze(-2)).sum(-1)


class MixtureLm(CausalLm):
    """A causal language model with a mixture of experts, and a load-balancing term over the batch."""

    def __init__(self, experts: type[Experts] = Experts, balance: float = 0.0, only_training: bool = False) -> None:
        super().__init__(Config(layers=1))
        self.mixture = experts()
        self.h[0].mlp = self.mixture
        self.balance, self.only_training = balance, only_training

    def loss(self, batch: Any) -> Tensor:
        loss = self(**batch).loss
        if self.balance and (self.training or not self.only_training):
            loss = loss + self.balance * self.mixture.notes[0]
        self.mixture.notes.clear()
        return loss
