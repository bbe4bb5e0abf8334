"""The same digits from the command line: the callbacks, their rule, probe and instruments stand in a YAML file.

    python examples/command_line.py fit --config examples/command_line.yaml
    python examples/command_line.py fit --config examples/command_line.yaml --trainer.callbacks+=ComplexityMonitor
    python examples/command_line.py fit --trainer.callbacks.help=ComplexityEarlyStopping

Expect a stop after some 600 of the 3770 steps, when the 30% of wrong labels begin to be memorised, and a
`config.yaml` beside the event file from which the run can be made again. `docs/command_line.md` explains it.
"""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_cx.callbacks  # noqa: F401 - so that the command line knows our callbacks by their short names


class Digits(pl.LightningDataModule):
    """Scans of handwritten digits, some under the name of another one.

    Args:
        share_wrong: Share of the labels that are drawn anew.
        batch_size: Examples in a batch.
    """

    def __init__(self, share_wrong: float = 0.3, batch_size: int = 64) -> None:
        super().__init__()
        pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
        draw = torch.Generator().manual_seed(0)
        wrong = torch.rand(len(labels), generator=draw) < share_wrong
        labels = torch.where(wrong, torch.randint(10, labels.shape, generator=draw), labels)
        self.data, self.batch_size = TensorDataset(pixels.float() / 16, labels), batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, self.batch_size, shuffle=True)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule.

    Args:
        width: Units of each hidden layer.
        lr: Step size of Adam.
    """

    def __init__(self, width: int = 256, lr: float = 1e-3) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Do what the command line says, or the given arguments."""
    warnings.filterwarnings("ignore", message=".*many workers|.*LeafSpec")
    return LightningCLI(Classifier, Digits, args=arguments)


if __name__ == "__main__":
    main()
