"""Last weights or their average? SGD with a large constant step, and with a small one, on digits with wrong labels.

A fifth of the training labels are wrong, so a large step keeps the weights in motion. Prints, over training, what the
average of the last weights gains on the training's own examples, with its interval, what twice the batch would save and
what SVRG would leave of the noise; at the end the error of both on true test labels.
"""

from __future__ import annotations

import argparse
import copy
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
from lightning_cx.instruments import Averaging, VarianceReduction, quantities

STEP_SIZES = {"large steps": 1.0, "small steps": 0.02}
COLUMNS = {
    "loss, last": (quantities.AVERAGING_LOSS_LAST,),
    "of average": (quantities.AVERAGING_LOSS_AVERAGE,),
    "gain (95%)": (quantities.AVERAGING_GAIN, quantities.AVERAGING_GAIN_LOW, quantities.AVERAGING_GAIN_HIGH),
    "batch x 2: faster (95%)": (quantities.BATCH_SPEEDUP, quantities.BATCH_SPEEDUP_LOW, quantities.BATCH_SPEEDUP_HIGH),
    "SVRG leaves (95%)": (quantities.SVRG_RATIO, quantities.SVRG_RATIO_LOW, quantities.SVRG_RATIO_HIGH),
}
Found = dict[str, dict[int, float]]  # value for each step, for each tag


class Classifier(pl.LightningModule):
    """An ordinary LightningModule; no word of averages."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net, self.lr = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


def fit(lr: float, folder: Path, epochs: int, seed: int) -> tuple[Found, float, float]:
    """Train once; return all values of each scalar, and the test errors of the last weights and of the average."""
    pl.seed_everything(seed, verbose=False)
    pixels, digit = (torch.tensor(values) for values in load_digits(return_X_y=True))
    train, test = torch.randperm(len(digit)).split([1200, 597])
    given = torch.where(torch.rand(len(digit)) < 0.2, torch.randint(10, digit.shape), digit)
    data, images = TensorDataset(pixels[train].float() / 16, given[train]), pixels[test].float() / 16
    averaging, model = Averaging(), Classifier(lr)
    monitor = ComplexityMonitor([averaging, VarianceReduction(every_n_steps=75)], every_n_steps=15)  # 75: an epoch
    options: Any = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    options |= {"max_epochs": epochs, "logger": TensorBoardLogger(folder.parent, folder.name), "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[monitor], **options)
    trainer.fit(model, DataLoader(data, batch_size=16, shuffle=True))
    averaged = copy.deepcopy(model.net)
    averaged.load_state_dict({name.removeprefix("net."): values for name, values in averaging.average().items()})
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0}).Reload()
    found = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    last, average = ((net(images).argmax(1) != digit[test]).float().mean().item() for net in (model.net, averaged))
    return found, last, average


def show(name: str, found: Found) -> None:
    print(f"\n{name}\n  step" + "".join(f"{title:>26}" for title in COLUMNS))
    for step in list(found[quantities.SVRG_RATIO])[::-4][::-1]:
        cells = ([f"{found[tag][step]:.2f}" if step in found[tag] else "-" for tag in of] for of in COLUMNS.values())
        texts = (cell[0] + (f" ({' to '.join(cell[1:])})" if cell[1:] and cell[1] != "-" else "") for cell in cells)
        print(f"{step:>6}" + "".join(f"{text:>26}" for text in texts))


def main(logdir: str = "runs/averaging", epochs: int = 20, seed: int = 0) -> dict[str, tuple[Found, float, float]]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec|lightning_cx: averaging/.*: nan")
    runs = {name: fit(lr, Path(logdir, name.replace(" ", "_")), epochs, seed) for name, lr in STEP_SIZES.items()}
    for name, (found, last, average) in runs.items():
        show(name, found)
        print(f"error on true test labels: last weights {last:.1%}, their average {average:.1%}")
    print(f"\nlook: .venv/bin/tensorboard --logdir {logdir}")
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", default="runs/averaging")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
