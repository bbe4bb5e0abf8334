"""torch_geometric in a LightningModule, as its users wrap it, with its own batches and its LightningDataset."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, step_of, trainer
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.data.lightning import LightningDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GIN, GCNConv, GINEConv, global_add_pool, global_mean_pool

EXAMPLES, BATCH = 192, 16


def graphs(double: bool, regression: bool = False) -> list[Data]:
    """Rings of 5 to 11 nodes, whose features say the class; or whose edges say the target."""
    torch.set_default_dtype(torch.float64 if double else torch.float32)  # Lightning's precision leaves such batches be
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(EXAMPLES):
        y, k = (int(torch.randint(*span, (), generator=generator)) for span in ((0, 3), (5, 12)))
        here = torch.arange(k)
        edges = torch.stack([here, (here + 1) % k])
        x = torch.randn(k, 8, generator=generator) + 0.5 * y
        lengths = torch.rand(k, 2, generator=generator)
        target = lengths.sum().reshape(1) if regression else torch.tensor([y])
        found.append(Data(x=x, edge_index=edges, edge_attr=lengths, y=target))
    return found


class GraphModule(pl.LightningModule):
    """The part that graph models share."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)

    def training_step(self, data: Batch, batch_idx: int) -> torch.Tensor:
        loss = self.loss(data)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss


class Classifier(GraphModule):
    """Graph classification as in the tutorials: convolutions, mean over the nodes, dropout, a linear layer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.one, self.two, self.dropout = GCNConv(8, 16), GCNConv(16, 16), dropout
        self.out = nn.Linear(16, 3)

    def loss(self, data: Batch) -> torch.Tensor:
        x = self.one(data.x, data.edge_index).relu()
        x = global_mean_pool(self.two(x, data.edge_index), data.batch)
        return F.cross_entropy(self.out(F.dropout(x, self.dropout, self.training)), data.y)


class Regressor(GraphModule):
    """Edges with features and a sum over the nodes, as models of molecules have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GINEConv(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16)), edge_dim=2)
        self.out = nn.Linear(16, 1)

    def loss(self, data: Batch) -> torch.Tensor:
        x = self.conv(data.x, data.edge_index, data.edge_attr).relu()
        return F.mse_loss(self.out(global_add_pool(x, data.batch)).squeeze(-1), data.y)


class WithBatchNorm(GraphModule):
    """The library's own GIN, whose BatchNorm couples the nodes of all graphs of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = GIN(8, 16, num_layers=2, norm="BatchNorm")
        self.out = nn.Linear(16, 3)

    def loss(self, data: Batch) -> torch.Tensor:
        return F.cross_entropy(self.out(global_add_pool(self.net(data.x, data.edge_index), data.batch)), data.y)


class Nodes(GraphModule):
    """Node classification on one large graph, all of it in every step, with a mask of the nodes to train on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = GCN(8, 16, num_layers=2, out_channels=3)

    def loss(self, data: Batch) -> torch.Tensor:
        return F.cross_entropy(self.net(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask])


def fit_classifier(callbacks: list[Any], double: bool) -> None:
    module = Classifier(0.0 if double else 0.5)
    trainer(callbacks, double).fit(module, datamodule=LightningDataset(graphs(double), batch_size=BATCH))


def fit_regressor(callbacks: list[Any], double: bool) -> None:
    trainer(callbacks, double).fit(Regressor(), DataLoader(graphs(double, regression=True), BATCH, shuffle=True))


def fit_batch_norm(callbacks: list[Any], double: bool) -> None:
    trainer(callbacks, double).fit(WithBatchNorm(), DataLoader(graphs(double), BATCH, shuffle=True))


def fit_nodes(callbacks: list[Any], double: bool) -> None:
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (300,), generator=generator)
    x = torch.randn(300, 8, generator=generator) + 0.5 * y[:, None]
    edges = torch.randint(300, (2, 1200), generator=generator)
    data = Data(x=x, edge_index=edges, y=y, train_mask=torch.rand(300, generator=generator) < 0.6)
    trainer(callbacks, double).fit(Nodes(), DataLoader([data], batch_size=1))


def loss_of(module: Any, batch: Batch, i: int) -> torch.Tensor:
    if i >= batch.num_graphs:
        raise IndexError(i)
    return step_of(module, Batch.from_data_list([batch.get_example(i)]))


def mean_of_nodes(data: Batch) -> torch.Tensor:
    """What our message says to pass: one row for each graph."""
    return global_mean_pool(data.x, data.batch)


CASES = [
    Case("torch_geometric:gcn", fit_classifier, loss_of),
    Case("torch_geometric:gcn-features", fit_classifier, loss_of, features=mean_of_nodes),
    Case("torch_geometric:gine-regression", fit_regressor, loss_of),
    Case("torch_geometric:gin-batchnorm", fit_batch_norm),
    Case("torch_geometric:nodes", fit_nodes, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_torch_geometric(case: Case, check: Any) -> None:
    verify(case, check)
