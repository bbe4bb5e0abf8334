"""The budget is kept on a real run, and what the monitor says it spent is what a stopwatch outside it shows."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import fit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.callbacks.sampling import GradientSampler

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")

HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end", "on_train_end")


class Larger(pl.LightningModule):
    """A convnet whose steps take tens of milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        stages = [(3, 16), (16, 32), (32, 64)]
        layers = [
            m for a, b in stages for m in (nn.Conv2d(a, b, 3, 2 if a > 3 else 1, 1), nn.GroupNorm(4, b), nn.ReLU())
        ]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stopwatch(ComplexityMonitor):
    """Measures itself from outside."""

    seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in HOOKS:
            return attribute

        def timed(*args: Any) -> None:
            start = perf_counter()
            attribute(*args)
            Stopwatch.seconds += perf_counter() - start

        return timed


@pytest.mark.timing
def test_the_budget_of_two_percent_is_kept_over_a_run_of_a_convnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[float] = []
    finish = GradientSampler.finish

    def counted(self: GradientSampler) -> None:
        inside.append(self.hook_seconds)  # spent by hooks during the backward, where no callback runs
        finish(self)

    monkeypatch.setattr(GradientSampler, "finish", counted)
    data = TensorDataset(torch.randn(640, 3, 32, 32), torch.randint(10, (640,)))
    monitor = Stopwatch(overhead_budget=0.02)
    start = perf_counter()
    trainer = fit(Larger(), [monitor], tmp_path, DataLoader(data, batch_size=64), max_epochs=-1, max_steps=600)
    elapsed = perf_counter() - start
    assert trainer.callback_metrics["gradient/norm"] > 0  # it did measure
    spent = Stopwatch.seconds + sum(inside)
    assert spent / elapsed < 0.03
    assert monitor.overhead < 0.03
    assert monitor._session is not None
    logged = float(trainer.callback_metrics["complexity/overhead"])
    assert logged == pytest.approx(spent / monitor._session.ledger.elapsed, abs=0.003)
