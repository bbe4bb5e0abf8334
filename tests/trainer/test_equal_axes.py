"""As many positions as examples, and nothing in the graph that tells them apart: one replayed slice does."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from _lightning import fit
from _models import naive_rows, relative_error
from test_monitor import Watch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet


class Sequences(pl.LightningModule):
    """Reads sequences, or time steps, one after another."""

    def __init__(self, examples_lead: bool) -> None:
        super().__init__()
        self.layer, self.examples_lead = nn.Linear(8, 8), examples_lead

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch if self.examples_lead else (part.transpose(0, 1) for part in batch)
        return (self.layer(x).tanh() - y).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:lightning_cx")
@pytest.mark.parametrize("examples_lead", [True, False])
def test_the_gram_matrix_is_that_of_the_examples(examples_lead: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(128, 16, 8).cumsum(1), torch.randn(128, 16, 8))
    module = Sequences(examples_lead)
    truth = naive_rows(module.layer, lambda m, x, y: (m(x).tanh() - y).pow(2).mean(), *data[:16])
    watch = Watch()
    one_batch = DataLoader(TensorDataset(*data[:16]), batch_size=16)
    monitor = ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(128))
    fit(module, [monitor], tmp_path, data=one_batch, max_epochs=3)
    last = [o.gradients for o in watch.seen if o.gradients is not None][-1]
    assert last.notes == ()  # read by the tap
    assert relative_error(last.gram, truth @ truth.T) < 1e-5
