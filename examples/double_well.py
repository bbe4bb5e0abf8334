"""Does the monitor find the escapes of a parameter that must leave its valley by noise alone?

One parameter lives in V(x) = (x^2 - 1)^2 / 4, two valleys with a barrier of 1/4 between them, and its gradients are
noisy. Kramers' formula says how long it stays: 2 pi / sqrt(2) exp(1 / (4 eps)) units of time, eps the temperature.
The second model has one valley and the same noise: there is nothing to leave.

    python examples/double_well.py
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.instruments import Dwelling

RATE = 0.1  # of SGD: so much time passes in a step
BATCH = 8


class Valleys(pl.LightningModule):
    """An ordinary LightningModule; no word of the monitor."""

    def __init__(self, wells: int) -> None:
        super().__init__()
        self.x, self.wells = nn.Parameter(torch.tensor([-1.0])), wells

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        height = (self.x**2 - 1).square() / 4 if self.wells == 2 else (self.x + 1).square()
        return (height + batch[0] * self.x).mean()  # each example tilts the valleys a little

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE)


def fit(wells: int, eps: float, steps: int, seed: int) -> Dwelling:
    """Train with noise of temperature `eps` and return what followed it."""
    draw = torch.Generator().manual_seed(seed)
    # A step adds RATE times the mean of BATCH tilts, and diffusion at temperature eps sqrt(2 eps RATE) of noise.
    tilts = math.sqrt(2 * eps * BATCH / RATE) * torch.randn(steps * BATCH, 1, generator=draw)
    instrument = Dwelling()
    monitor = ComplexityMonitor([instrument], every_n_steps=5)
    options: dict[str, Any] = {"enable_checkpointing": False, "enable_model_summary": False, "logger": False}
    options |= {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 1}
    pl.Trainer(callbacks=[monitor], **options).fit(Valleys(wells), DataLoader(TensorDataset(tilts), BATCH))
    return instrument


def main(eps: float = 0.06, steps: int = 12_000, seed: int = 0) -> dict[str, Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in (".*does not have many workers", ".*LeafSpec", ".*lightning_cx: trajectory/"):
        warnings.filterwarnings("ignore", message=words)
    two, one = (fit(wells, eps, steps, seed).report() for wells in (2, 1))
    print(f"two valleys: {two}\n\none valley: {one}\n")
    kramers = 2 * math.pi / math.sqrt(2) * math.exp(0.25 / eps) / RATE
    measured = steps / two.escapes if two.escapes else math.inf
    print(f"Kramers: an escape every {kramers:,.0f} steps. Found: every {measured:,.0f} ({two.escapes} in {steps:,}).")
    print(f"One valley: {one.escapes} escapes.")
    return {"kramers": kramers, "measured": measured, "two": two, "one": one}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eps", type=float, default=0.06)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
