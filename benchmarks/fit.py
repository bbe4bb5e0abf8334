"""What a sampled step of `ComplexityMonitor` costs inside a Lightning fit, over the steps beside it.

    python benchmarks/fit.py

A convnet on 32x32 pictures is fitted with every second step sampled: with the Gram matrix (`GradientNoise`), with norms
alone, with projections and the path of the parameters (`TailIndex`). Prints the median of a sampled step over that of
its neighbours, everything that our callback does included, and the mean, in which the few steps that read a whole
window are; then what the mean comes to when one step in fifty is sampled. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from statistics import mean, median
from time import perf_counter

import lightning.pytorch as pl
import torch
from _workloads import WORKLOADS
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Needs, Reading, TailIndex

EVERY = 50


class NormsOnly(Instrument):
    """Logs the median norm: the least that a sample can show."""

    @property
    def needs(self) -> Needs:
        return Needs(norms=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        assert gradients.squared_norms is not None
        return Reading({"gradient/median_norm": gradients.squared_norms.median().sqrt().item()})


class Timed(pl.LightningModule):
    """The workload's network; its last hook of a batch runs after every callback's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.workload = WORKLOADS[name]
        self.net, x, y = self.workload.build(torch.device("cpu"))
        self.data = TensorDataset(x.repeat(40, 1, 1, 1), y.repeat(40))
        self.seconds: list[float] = []
        self.started = 0.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.workload.losses(self.net(x), y).mean()

    def on_train_batch_end(self, *_: object) -> None:
        self.seconds.append(perf_counter() - self.started)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Start(pl.Callback):
    """Comes before every other callback."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, Timed)
        pl_module.started = perf_counter()


def sampled_over_plain(name: str, instrument: Instrument, steps: int) -> tuple[float, float]:
    """Fit with every second step sampled; median and mean over the median beside, the first quarter left out."""
    module = Timed(name)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[Start(), ComplexityMonitor([instrument], every_n_steps=2)],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(module.data, module.workload.examples))
    kept = list(enumerate(module.seconds))[steps // 4 :]
    halves = [[seconds for step, seconds in kept if step % 2 == half] for half in (0, 1)]
    quick, slow = sorted(halves, key=median)
    return median(slow) / median(quick), mean(slow) / median(quick)


def main(name: str, steps: int) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {WORKLOADS[name].title}, {steps} steps")
    for label, instrument in {"Gram matrix": GradientNoise(), "norms": NormsOnly(), "tail": TailIndex()}.items():
        middle, average = sampled_over_plain(name, instrument, steps)
        more = f"{middle - 1:.2f} of a plain step more (mean {average - 1:.2f})"
        print(f"{label}: a sampled step takes {more}, {(average - 1) / EVERY:.2%} at one in {EVERY}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="cnn-64", choices=["cnn-64", "cnn-256", "resnet18-64"])
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    main(arguments.workload, arguments.steps)
