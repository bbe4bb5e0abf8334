"""A convnet learns scanned digits, a fifth of whose labels are wrong, and ComplexityMonitor shows what it learns.

Run it with `make demo`, or `python examples/quickstart.py`, then open TensorBoard on the folder that it prints.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor


class DigitClassifier(pl.LightningModule):
    """An ordinary LightningModule: it knows nothing of the monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 64, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-4)


def noisy_digits(share_flipped: float = 0.2) -> TensorDataset:
    """Real scans of handwritten digits, 8 x 8 pixels, with some labels replaced by random ones."""
    pixels, target = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(target)
    flipped = torch.rand(len(labels)) < share_flipped
    labels[flipped] = torch.randint(10, (int(flipped.sum()),))
    return TensorDataset(images, labels)


def main(logdir: str = "runs/quickstart", epochs: int = 40) -> ComplexityMonitor:
    """Train, and print what was found and where to look at it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec")
    pl.seed_everything(0, verbose=False)
    # A fixed period, so that every run of this example shows the same. `ComplexityMonitor()` alone keeps to 2% of the
    # wall time, which suits runs of minutes and more.
    monitor = ComplexityMonitor(every_n_steps=20)
    logger = TensorBoardLogger(logdir, name=None)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(DigitClassifier(), DataLoader(noisy_digits(), batch_size=64, shuffle=True))
    print_findings(logger.log_dir)
    print(f"\nevents:  {logger.log_dir}\nlook:    .venv/bin/tensorboard --logdir {logdir}")
    return monitor


def print_findings(log_dir: str) -> None:
    """A short table of what was measured first, in the middle and last."""
    events = EventAccumulator(log_dir, size_guidance={"scalars": 0}).Reload()
    print(f"\n{'what':<40}{'first':>10}{'middle':>10}{'last':>10}")
    for tag in sorted(tag for tag in events.Tags()["scalars"] if "/" in tag and "band" not in tag):
        values = [event.value for event in events.Scalars(tag)]
        print(f"{tag:<40}{values[0]:>10.3g}{values[len(values) // 2]:>10.3g}{values[-1]:>10.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/quickstart")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    main(arguments.logdir, arguments.epochs)
