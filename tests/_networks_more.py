"""More networks: convolutions, recurrences, graphs, and losses that are more than a mean over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _architectures import CLASSES, Network, drawn
from _transformers import CausalLm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

# Convolutions


class Residual(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs))
        self.way_round = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.way_round(x))


class ResNet(Network):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Residual(1, 4, norm=norm),
            Residual(4, 8, 2, norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UNet(Network):
    """Skip connections, a transposed convolution, and a loss of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.norm, self.up = nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.out = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = F.relu(self.down(x))
        return self.out(torch.cat([skipped, self.up(F.relu(self.norm(self.deep(skipped))))], 1))

    def loss(self, batch: Any) -> Tensor:
        x, _ = batch
        return F.cross_entropy(self(x), (x[:, 0] > 0).long() + (x[:, 0] > 1).long())


class DenseNet(Network):
    """Each layer sees all layers before it."""

    def __init__(self, norm: Callable[[int], nn.Module] = lambda width: nn.GroupNorm(1, width)) -> None:
        super().__init__()
        widths = [4, 7, 10]
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(norm(w), nn.ReLU(), nn.Conv2d(w, 3, 3, padding=1, bias=False)) for w in widths
        )
        self.head = nn.Linear(13, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Normed(Network):
    """Parametrizations: a weight norm, a spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(1, 4, 3)),
            nn.ReLU(),
            parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
            nn.Flatten(),
            parametrizations.weight_norm(nn.Linear(64, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


# Recurrences


class LstmLm(Network):
    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(11, 8), nn.LSTM(8, 12, 2, batch_first=True)
        self.head, self.packed = nn.Linear(12, 11), packed

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.table(input_ids)
        if lengths is None:
            return self.head(self.lstm(x)[0])
        x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(x)[0], batch_first=True)
        return self.head(out)

    def loss(self, batch: Any) -> Tensor:
        ids, labels = batch["input_ids"], batch["labels"]
        lengths = batch["attention_mask"].sum(1) if self.packed else None
        scores = self(ids, lengths)
        return F.cross_entropy(scores[:, :-1].transpose(1, 2), labels[:, 1 : scores.shape[1]])


# Graphs


class Messages(nn.Module):
    """Nodes gather from their neighbours: `index_add` over edges."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.own, self.message = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sent = self.message(x).index_select(-2, edges[0])
        return self.own(x) + torch.zeros_like(self.own(x)).index_add(-2, edges[1], sent)


class GraphNet(Network):
    """Message passing with a label for each node: nodes [N, V, d] of graphs alike, or all nodes of one big graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Messages(6, 8), Messages(8, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edges)), edges)

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch["x"], batch.get("edges", RING))
        return F.cross_entropy(scores.flatten(0, -2), batch["label"].flatten())


RING = torch.stack([torch.arange(5), (torch.arange(5) + 1) % 5])


class PooledGraphs(GraphNet):
    """A label for each graph of one big graph: nodes are added up by the graph they belong to."""

    def loss(self, batch: Any) -> Tensor:
        scores = self(batch["x"], batch["edges"])
        sums = scores.new_zeros(len(batch["label"]), CLASSES).index_add(0, batch["graph"], scores)
        return F.cross_entropy(sums, batch["label"])


def big_graph(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Nodes of all graphs in a row, with edges that count through, as graph libraries batch them."""
    counts = [len(row["x"]) for row in rows]
    starts = np.cumsum([0, *counts])
    return {
        "x": torch.cat([row["x"] for row in rows]),
        "edges": torch.cat([row["edges"] + int(start) for row, start in zip(rows, starts, strict=False)], 1),
        "graph": torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)),
        "label": torch.cat([row["label"].reshape(-1) for row in rows]),
    }


# Losses that are more than a mean over rows


class Vae(Network):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + (log_variance / 2).exp() * self.draws(torch.randn_like, mean)
        return self.decoder(code), mean, log_variance

    def loss(self, batch: Any) -> Tensor:
        found, mean, log_variance = self(batch[0])
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1).mean()
        return F.mse_loss(found, batch[0], reduction="none").sum(1).mean() + 0.1 * divergence


class Contrastive(Network):
    """SimCLR: two noisy views of each example have to find each other among all others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=1)

    def loss(self, batch: Any) -> Tensor:
        x = batch[0]
        views = [self(x + 0.1 * self.draws(torch.randn_like, x)) for _ in range(2)]
        z = torch.cat(views)
        scores = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(scores, torch.arange(len(z)).roll(len(x)))


class LowRank(nn.Module):
    """LoRA: a frozen layer and a trained product of two thin matrices."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(drawn(rank, base.in_features))
        self.b = nn.Parameter(0.1 * drawn(base.out_features, rank, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * x @ self.a.T @ self.b.T


class Adapted(CausalLm):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        for layer in self.h:
            layer.attention.q, layer.attention.v = LowRank(layer.attention.q), LowRank(layer.attention.v)


class Diffusion(Network):
    """Learns the noise that was added at a random time; both are drawn inside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.times = nn.Embedding(10, 8)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.last(F.silu(self.first(x) + self.times(time)[:, :, None, None]))

    def loss(self, batch: Any) -> Tensor:
        x, _ = batch
        time = self.draws(torch.randint, 10, (len(x),))
        noise = self.draws(torch.randn_like, x)
        kept = torch.linspace(0.95, 0.05, 10).to(x.dtype)[time][:, None, None, None]
        return F.mse_loss(self(kept.sqrt() * x + (1 - kept).sqrt() * noise, time), noise)


class SparseTable(Network):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, CLASSES, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).mean(1)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["input_ids"]), batch["input_ids"][:, 0] % CLASSES)


class Siamese(Network):
    """One tower twice under two names, compared pair by pair."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.right = nn.Sequential(self.left[0], nn.Tanh(), self.left[2])

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x[:, :3]) - self.right(x[:, 3:])).pow(2).sum(1)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        distance = self(x)
        alike = (y % 2).to(x.dtype)
        return (alike * distance + (1 - alike) * F.relu(2 - distance)).mean()
