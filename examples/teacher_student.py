"""How many examples does it take to find the network behind them? A tanh student learns from a tanh teacher.

Both have 21 parameters, and the student starts some way off. Prints a table and draws a picture.
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
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.instruments import LocalRecovery, Neurons

EXAMPLES = (10, 30, 60, 200)
ROWS = {
    "training error": "mean squared error, as a share of the teacher's variance",
    "test error": "the same on fresh inputs",
    "recovery/rank_share": "share of the parameters that the examples determine",
    "neurons/alignment": "1 if the teacher's neurons were found",
    "recovery/loss_rate": "relative fall of the loss per step at the end",
    "recovery/predicted_rate": "the same, predicted from the Jacobian",
}


class Student(pl.LightningModule):
    """An ordinary LightningModule; no word of the teacher or of the monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.95, nesterov=True)


def fit(n: int, folder: Path, steps: int, seed: int) -> dict[str, list[tuple[int, float]]]:
    """Train on n examples of a teacher, and return all values of each scalar with their steps."""
    draw, teacher, student = torch.Generator().manual_seed(seed), Student().net, Student()
    weights = 2 * torch.linalg.qr(torch.randn(5, 3, generator=draw))[0].T.flatten()
    place = torch.cat([weights, 0.5 * torch.randn(3, generator=draw), torch.tensor([1.0, -1.0, 1.0])]).double()
    nn.utils.vector_to_parameters(place, teacher.parameters())
    nn.utils.vector_to_parameters(place + 0.5 * torch.randn(21, generator=draw), student.net.parameters())
    fresh, few = torch.randn(2000, 5, generator=draw).double(), torch.randn(200, 5, generator=draw).double()[:n]
    x = few.repeat(-(-128 // n), 1)  # a probe has 128 examples at least; repeated, their mean is the same
    monitor = ComplexityMonitor([Neurons(teacher), LocalRecovery()], every_n_steps=5, probe=ProbeSet(len(x)))
    options: Any = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "logger": TensorBoardLogger(folder, f"{n}_examples"), "precision": "64-true"}
    trainer = pl.Trainer(max_epochs=steps, callbacks=[monitor], **options)
    trainer.fit(student, DataLoader(TensorDataset(x, teacher(x).detach()), batch_size=len(x)))
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name, inputs in (("training error", x), ("test error", fresh)):
        target, missed = teacher(inputs), student.net(inputs) - teacher(inputs)
        found[name] = [(trainer.global_step, (missed.square().mean() / target.var()).item())]
    return found


def main(logdir: str = "runs/teacher_student", steps: int = 600, seed: int = 0) -> dict[int, dict]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*many workers|.*LeafSpec|The number of training|.*usable readings of")
    found = {n: fit(n, Path(logdir), steps, seed) for n in EXAMPLES}
    left, right = (figure := Figure(figsize=(10, 3.6), layout="constrained")).subplots(1, 2)
    for n, run in found.items():
        left.plot(*zip(*run["neurons/alignment"], strict=True), label=f"{n} examples")
    left.plot(*zip(*found[10]["neurons/alignment_chance"], strict=True), "--", color="0.6", label="random neurons")
    for name, look in (("training error", "ks-"), ("test error", "mo-")):
        right.plot(list(found), [max(run[name][0][1], 1e-16) for run in found.values()], look, label=name)
    left.set(xlabel="step", ylabel="alignment with the teacher's neurons")
    right.set(xscale="log", yscale="log", xlabel="examples", ylabel="share of the teacher's variance")
    right.set_xticks(list(found), [str(n) for n in found])
    figure.legend(ncols=4, loc="outside upper center", frameon=False)
    figure.savefig(Path(logdir, "recovery.png"), dpi=100)
    print(f"{'at the end, by examples':<26}" + "".join(f"{n:>10}" for n in found))
    for tag in ROWS:
        print(f"{tag:<26}" + "".join(f"{run.get(tag, [(0, torch.nan)])[-1][1]:>10.2g}" for run in found.values()))
    look = f"\npicture: {logdir}/recovery.png\nlook:    .venv/bin/tensorboard --logdir {logdir}"
    print("", *(f"{tag}: {meaning}" for tag, meaning in ROWS.items()), look, sep="\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("logdir", "runs/teacher_student"), ("steps", 600), ("seed", 0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
