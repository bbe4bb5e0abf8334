"""When to stop, without a validation set: an MLP learns digits, 30% of whose training labels are wrong.

Three runs from the same seed: to the end, stopped by a hold-out of 20%, and stopped by `ComplexityEarlyStopping` on all
data; then a run on true labels, which should not be stopped. Prints the error on true test labels, and where to look.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_cx import ComplexityEarlyStopping
from lightning_cx.figures import draw
from lightning_cx.instruments import quantities

SHARE_WRONG = {"to the end": 0.3, "hold-out": 0.3, "ComplexityEarlyStopping": 0.3, "the same on true labels": 0.0}


class Classifier(pl.LightningModule):
    """An ordinary LightningModule; no word of stopping."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits(share_wrong: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """1200 scans to train on, some under the name of another digit, and 597 with true labels to test."""
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    train, test = torch.randperm(len(labels), generator=generator).split([1200, 597])
    wrong = torch.rand(len(labels), generator=generator) < share_wrong
    given = torch.where(wrong, labels + torch.randint(1, 10, labels.shape, generator=generator), labels) % 10
    images = pixels.float() / 16
    return TensorDataset(images[train], given[train]), TensorDataset(images[test], labels[test])


def fit(name: str, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train once and say how it ended; a picture of the reason goes beside the folder."""
    train, test = digits(SHARE_WRONG[name], seed)
    pl.seed_everything(seed, verbose=False)
    model, stopping, best = Classifier(), ComplexityEarlyStopping(verbose=False), ModelCheckpoint(monitor="val_loss")
    others: dict[str, Any] = {"to the end": [], "hold-out": [EarlyStopping("val_loss", patience=10), best]}
    callbacks = others.get(name, [stopping])
    parts: list[Any] = random_split(train, [0.8, 0.2]) if best in callbacks else [train, None]
    options: Any = {"enable_model_summary": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_checkpointing": best in callbacks, "logger": TensorBoardLogger(folder.parent, folder.name)}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **options)
    start = perf_counter()
    trainer.fit(model, DataLoader(parts[0], 64, shuffle=True), parts[1] and DataLoader(parts[1], 256))
    if best in callbacks:  # ComplexityEarlyStopping does this by itself
        model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    found: dict[str, Any] = {"steps": trainer.global_step, "seconds": perf_counter() - start}
    found["error"] = (model.net(test.tensors[0]).argmax(1) != test.tensors[1]).float().mean().item()
    if stopping in callbacks:
        draw(stopping.watch.reading().pictures[quantities.STOPPING_CURVE]).savefig(f"{folder}.png")
    return found | {what: getattr(stopping, what) for what in ("best_step", "stopped_step", "reason")}


def main(logdir: str = "runs/early_stopping", epochs: int = 100, seed: int = 0) -> dict[str, dict[str, Any]]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*many workers|.*LeafSpec|The number of training|You defined a `valid")
    found = {name: fit(name, Path(logdir, name.replace(" ", "_")), epochs, seed) for name in SHARE_WRONG}
    print(f"\n{'':<26}{'test error':>10}{'steps':>8}{'seconds':>9}")
    for name, run in found.items():
        print(f"{name:<26}{run['error']:>10.1%}{run['steps']:>8}{run['seconds']:>9.1f}")
    for name, run in list(found.items())[2:]:
        print(f"\n{name}: best_step {run['best_step']}, stopped_step {run['stopped_step']}\n  {run['reason']}")
    print(f"\npictures: {logdir}/*.png\nlook:     .venv/bin/tensorboard --logdir {logdir}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/early_stopping")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
