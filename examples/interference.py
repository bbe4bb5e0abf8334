"""Is what a gradient changes most the simple part of the task? Digits, random labels, and a network made to fail.

An MLP learns true labels, then labels dealt out at random; then a linear layer on random Fourier features (Rahimi &
Recht 2007), of so high a frequency that all digits look unrelated, learns true ones. Prints a table and where to look.
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
from lightning_cx.instruments import Interference, SpectralBias

ROWS = {
    "gradient/probe_interference": "CII: 1 if the strong modes of the gradients are simple functions, 0 without order",
    "gradient/probe_interference_p": "its p-value: how often random pairs of strength and function reach it",
    "gradient/probe_interference_shuffled": "CII with the digits shuffled: what this method finds in nothing",
    "gradient/probe_rank_correlation": "1 if modes are the more complex the weaker they are, over all of them",
    "complexity/spectral_bias_index": "1 if half-time saw only the simple part of the task learned, 0 without bias",
    "complexity/spectral_bias_index_shuffled": "the same with the digits shuffled",
    "complexity/residual_median": "complexity of what is not yet learned: 0 simplest, .5 that of noise",
    "accuracy, train -> test": "of the labels that were trained on, then of the true labels of other digits",
}


class Classifier(pl.LightningModule):
    """An ordinary LightningModule, with or without random waves over the pixels in front; no word of the monitor."""

    def __init__(self, on_waves: bool) -> None:
        super().__init__()
        self.waves = nn.Parameter(10 * torch.randn(64, 1024), requires_grad=False) if on_waves else None
        hidden = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        # A bias would tie all digits of one class together, waves or not.
        self.net = nn.Linear(2048, 10, bias=False) if on_waves else nn.Sequential(*hidden, nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.waves is None else torch.cat([(x @ self.waves).cos(), (x @ self.waves).sin()], 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def fit(model: Classifier, train: TensorDataset, folder: Path, epochs: int) -> dict[str, list[float]]:
    """Train under the monitor, save the last pictures beside the folder, and return all values of each scalar."""
    instruments = [Interference(on="probe", control="shuffle"), SpectralBias(control="shuffle")]
    options: Any = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "logger": TensorBoardLogger(folder.parent, name=folder.name)}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[ComplexityMonitor(instruments, every_n_steps=10)], **options)
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True))
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["images"]:
        Path(f"{folder}_{Path(tag).name}.png").write_bytes(events.Images(tag)[-1].encoded_image_string)
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def main(logdir: str = "runs/interference", epochs: int = 50, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec|The number of training batches")
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("true labels", "random labels", "Fourier features"):
        pl.seed_everything(seed, verbose=False)
        pixels, target = load_digits(return_X_y=True)
        order = torch.randperm(len(target))
        images, labels = torch.tensor(pixels).float()[order] / 16, torch.tensor(target)[order]
        labels[:512] = labels[torch.randperm(512)] if name == "random labels" else labels[:512]
        model, data = Classifier(name == "Fourier features"), TensorDataset(images[:512], labels[:512])
        found[name] = fit(model, data, Path(logdir, name.replace(" ", "_")), epochs)
        right = (model(images).argmax(1) == labels).float()
        found[name]["accuracy, train -> test"] = [right[:512].mean().item(), right[512:].mean().item()]
    print(f"{'first -> last':<40}" + "".join(f"{name:>20}" for name in found))
    for tag in ROWS:
        rows = [[f"{value:.3f}" for value in values.get(tag, ())] for values in found.values()]
        print(f"{tag:<40}" + "".join(f"{' -> '.join(dict.fromkeys(row[:1] + row[-1:])):>20}" for row in rows))
    print("", *(f"{tag}: {meaning}" for tag, meaning in ROWS.items()), sep="\n")
    print(f"\npictures: {logdir}/*.png\nlook:     .venv/bin/tensorboard --logdir {logdir}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/interference")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
