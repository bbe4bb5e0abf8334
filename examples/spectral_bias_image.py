"""Two coordinate networks learn a photograph: a ReLU network coarse shapes first, one on Fourier features all at once.

Prints when half of each band of frequencies was fitted, and saves what the networks drew on the way.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.instruments import SpectralBias, quantities

SIDE, DRAWN_AT = 64, (0, 10, 40, 100, 400)


class CoordinateNetwork(pl.LightningModule):
    """Grey value of a pixel from its place, or from random waves of its place (Tancik et al. 2020)."""

    def __init__(self, places: Tensor, fourier: bool) -> None:
        super().__init__()
        self.places, self.drawn = places, {}
        self.waves = nn.Parameter(2 * math.pi * 10 * torch.randn(2, 128), requires_grad=False) if fourier else None
        hidden = (nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.net = nn.Sequential(nn.Linear(256 if fourier else 2, 256), nn.ReLU(), *hidden, nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.waves is None else torch.cat([(x @ self.waves).cos(), (x @ self.waves).sin()], 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step in DRAWN_AT:
            self.drawn[self.global_step] = self(self.places).detach().view(SIDE, SIDE)
        return nn.functional.mse_loss(self(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(network: CoordinateNetwork, grey: Tensor, folder: Path, steps: int) -> dict[str, list[tuple[int, float]]]:
    monitor = ComplexityMonitor([SpectralBias(per_band=True)], every_n_steps=5, probe=ProbeSet(size=1024))
    options: Any = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "logger": TensorBoardLogger(folder.parent, name=folder.name)}
    trainer = pl.Trainer(max_steps=steps, callbacks=[monitor], **options)
    trainer.fit(network, DataLoader(TensorDataset(network.places, grey), batch_size=1024, shuffle=True))
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0}).Reload()
    Path(f"{folder}_bands.png").write_bytes(events.Images(quantities.BAND_DECAY)[-1].encoded_image_string)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def main(logdir: str = "runs/spectral_bias_image", steps: int = 401, seed: int = 0) -> dict[str, dict]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec|The number of training batches")
    picture = Image.fromarray(load_sample_image("china.jpg")).convert("L").crop((107, 0, 534, 427))
    grey = torch.tensor(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)), dtype=torch.float32)
    grey, line = (grey - grey.mean()) / grey.std(), (torch.arange(SIDE) + 0.5) / SIDE
    found: dict[str, dict] = {}
    figure = Figure(figsize=(10, 4.4))
    for row, name in enumerate(("ReLU", "Fourier features")):
        pl.seed_everything(seed, verbose=False)
        network = CoordinateNetwork(torch.cartesian_prod(line, line), fourier=name != "ReLU")
        found[name] = fit(network, grey.flatten(), Path(logdir, name.replace(" ", "_")), steps)
        strip = {f"{name}, step {step}": image for step, image in network.drawn.items()} | {"photograph": grey}
        for column, (title, image) in enumerate(strip.items()):
            axes = figure.add_subplot(2, len(strip), row * len(strip) + column + 1)
            axes.imshow(image.numpy(), cmap="gray", vmin=float(grey.min()), vmax=float(grey.max()))
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    figure.savefig(Path(logdir, "strip.png"), bbox_inches="tight")
    print(f"{'step at which half of a band was fitted':<45}" + "".join(f"{name:>20}" for name in found))
    for band in range(1, 11):
        tag = quantities.fitted_fraction(band)
        halves = [next((s for s, v in f[tag] if v > 0.5), "not yet") for f in found.values()]
        print(f"levels {2 ** (band - 1)} to {2**band - 1}".ljust(45) + "".join(f"{half:>20}" for half in halves))
    index = [f.get(quantities.SPECTRAL_BIAS_INDEX, [(0, math.nan)])[-1][1] for f in found.values()]
    print("spectral bias index".ljust(45) + "".join(f"{value:>20.3f}" for value in index))
    print(f"\npictures: {logdir}/*.png\nlook:     .venv/bin/tensorboard --logdir {logdir}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("logdir", "runs/spectral_bias_image"), ("steps", 401), ("seed", 0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
