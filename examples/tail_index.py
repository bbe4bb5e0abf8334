"""Is the gradient noise heavy-tailed? Twice the same network: on digits, and on targets with noise that is heavy.

An MLP classifies digits, then learns by squared error the digit as a number with noise added that has no variance
(Student's t with 1.2 degrees of freedom). Prints a table of each run and where to look.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.instruments import TailIndex
from lightning_cx.instruments.tail_index import CODES

TAGS = {
    "one example (95%)": "tail/index",
    "a batch of 64 (95%)": "tail/batch_index",
    "xi of norms (95%)": "tail/norm_xi",
    "pooled coords (control)": "tail/coordinate_index",
}
WORDS = {float(code): verdict for verdict, code in CODES.items()}
Found = dict[str, dict[int, float]]  # value for each step, for each tag


class Learner(pl.LightningModule):
    """An ordinary LightningModule; no word of the monitor."""

    def __init__(self, outputs: int, loss: nn.Module, lr: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, outputs))
        self.loss, self.lr = loss, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


def fit(model: Learner, train: TensorDataset, folder: Path, epochs: int) -> Found:
    """Train under the monitor, save the last pictures beside the folder, and return all values of each scalar."""
    options: Any = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    options |= {"max_epochs": epochs, "logger": TensorBoardLogger(folder.parent, folder.name), "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[ComplexityMonitor([TailIndex(coordinates=1000)], every_n_steps=2)], **options)
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True, drop_last=True))
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["images"]:
        Path(f"{folder}_{Path(tag).name}.png").write_bytes(events.Images(tag)[-1].encoded_image_string)
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def show(name: str, found: Found) -> str:
    """Print a table over training; return what it comes to, in words."""
    print(f"\n{name}\n  step" + "".join(f"{title:>25}" for title in TAGS) + "  verdict")
    row: dict[str, str] = {}
    for step in sorted(found["tail/verdict"])[::-6][::-1]:
        row = {tag: f"{values[step]:.2f}" for tag, values in found.items() if step in values}
        cells = ([text for tag, text in row.items() if tag.startswith(start)] for start in TAGS.values())
        texts = (f"{cell[0]} ({' to '.join(cell[1:])})" if cell else "not yet" for cell in cells)
        print(f"{step:>6}" + "".join(f"{text:>25}" for text in texts) + f"  {WORDS[found['tail/verdict'][step]]}")
    first, last, batch = next(iter(found["tail/index"].values())), row["tail/index"], row["tail/batch_index"]
    says = "averages that away" if float(row["tail/batch_index_high"]) >= 1.95 else "stays heavy"
    return f"{name}: one example goes from {first:.2f} to {last}, a batch has {batch} and {says}"


def main(logdir: str = "runs/tail_index", epochs: int = 18, seed: int = 0) -> dict[str, Found]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec|The number of training batches")
    pixels, digit = (torch.tensor(values) for values in load_digits(return_X_y=True))
    found: dict[str, Found] = {}
    # Heavy noise wants small steps: those of the digits would switch half of the hidden units off for good.
    for name, outputs, loss, lr in (("digits", 10, nn.CrossEntropyLoss(), 0.1), ("heavy", 1, nn.MSELoss(), 0.001)):
        pl.seed_everything(seed, verbose=False)
        noise = torch.distributions.StudentT(torch.tensor(1.2)).sample(digit.shape)
        data = TensorDataset(pixels.float() / 16, digit if name == "digits" else (digit - 4.5) / 2.9 + noise)
        found[name] = fit(Learner(outputs, loss, lr), data, Path(logdir, name), epochs)
    print("\n" + "; ".join([show(*run) for run in found.items()]) + ".")
    print(f"\npictures: {logdir}/*.png\nlook:     .venv/bin/tensorboard --logdir {logdir}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/tail_index")
    parser.add_argument("--epochs", type=int, default=18, help="at least 5, so that 64 batches are sampled")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
