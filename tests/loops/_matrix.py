"""One table of loops for the law that training with our callbacks is, bit for bit, training without them."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from _compiled import Counting, submodule
from _lightning import Classifier, Stream, fit
from _loops import ByHand, ByLbfgs, half_precision, single_losses, states
from _models import Unread
from _once import Once
from torch import nn
from torch.utils.data import DataLoader

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet, SpectralRisk
from lightning_cx.instruments import (
    Averaging,
    Dwelling,
    GradientNoise,
    GradientSpectrum,
    Instrument,
    Interference,
    Kernel,
    LocalRecovery,
    Neurons,
    SpectralBias,
    StepSize,
    TailIndex,
    TrajectoryGeometry,
    VarianceReduction,
)

EVERY = 5  # steps between the passes of the instruments that make the dearest ones


@dataclass(frozen=True)
class Loop:
    """A way to train.

    Args:
        module: Makes it, after the seed was set.
        options: Of the Trainer.
        data: Makes the loader; None is that of `fit`.
        plugins: Makes them anew for each fit.
        loss_fn: Of the probe, where the loop needs one.
        strict: False where a part of what we measure is refused in this loop.
        threads: Of torch; users train with several, and small problems of ours switch to one and back.
    """

    module: Callable[[], Any] = Classifier
    options: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] = lambda: None
    plugins: Callable[[], Any] = lambda: None
    loss_fn: Any = None
    strict: bool = True
    threads: int = 1


def replayed() -> pl.LightningModule:
    """With a layer that the tap has no rule for."""
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5)), dropout=0.2)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(self.norm(x))))


def residual() -> pl.LightningModule:
    """With repeated blocks, whose shares of the descent are measured."""
    stem = nn.Sequential(nn.Flatten(), nn.Linear(100, 16))
    return Classifier(nn.Sequential(stem, *(Block(16) for _ in range(3)), nn.Linear(16, 5)), dropout=0.1)


def compiled() -> pl.LightningModule:
    torch._dynamo.reset()
    return submodule(Counting(), dropout=0.3)


dropout = partial(Classifier, dropout=0.1)
LOOPS: dict[str, Loop] = {
    "automatic optimisation": Loop(),
    "two threads": Loop(dropout, threads=2),
    "dropout": Loop(partial(Classifier, dropout=0.3)),
    "BatchNorm": Loop(partial(Classifier, dropout=0.3, batch_norm=True)),
    "many epochs": Loop(dropout, {"max_epochs": 6}),
    "accumulation": Loop(dropout, {"accumulate_grad_batches": 2, "max_epochs": 4}),
    "clipping": Loop(options={"gradient_clip_val": 0.1}),
    "64-true": Loop(options={"precision": "64-true"}),
    "bf16-mixed": Loop(dropout, {"precision": "bf16-mixed"}),
    "16-mixed": Loop(dropout, plugins=half_precision),
    "16-mixed that overflows": Loop(plugins=partial(half_precision, 2.0**24, backoff_factor=2.0**-14)),
    "a stream": Loop(dropout, data=lambda: DataLoader(Stream(), batch_size=32)),
    "replay": Loop(replayed, strict=False),
    "residual blocks": Loop(residual),
    "torch.compile": Loop(compiled),
    "LBFGS": Loop(partial(ByLbfgs, dropout=0.1)),
    "manual optimisation": Loop(partial(ByHand, dropout=0.1), loss_fn=single_losses),
    "manual optimisation in 16-mixed": Loop(ByHand, plugins=half_precision, loss_fn=single_losses),
}


def everything() -> list[Instrument]:
    """Every instrument there is, with all that it can be asked for, of sizes that a test can afford."""
    return [
        GradientNoise(),
        GradientSpectrum(control="shuffle"),
        SpectralBias(per_band=True, control="shuffle"),
        Interference(per_layer=True),
        Interference(on="probe", examples=64, control="shuffle"),
        Dwelling(),
        Kernel(),
        Kernel(on="probe", examples=64),
        StepSize(examples=64, iterations=3, rows=50, every_n_steps=EVERY),
        Averaging(every_n_steps=EVERY),
        VarianceReduction(examples=64, every_n_steps=EVERY),
        Neurons(per_layer=True, examples=64),
        LocalRecovery(examples=20),
        TailIndex(per_layer=True, coordinates=50),
        TrajectoryGeometry(),
    ]


def monitor_all(loop: Loop) -> ComplexityMonitor:
    probe = ProbeSet(size=128, loss_fn=loop.loss_fn)
    return ComplexityMonitor(everything(), every_n_steps=3, probe=probe, strict=loop.strict)


def early_stopping(loop: Loop) -> ComplexityEarlyStopping:
    """At every step; nothing is certainly worse for its rule, so nothing is put back."""
    never, probe = SpectralRisk(patience=10**6, z=1e9), ProbeSet(size=128, loss_fn=loop.loss_fn)
    return ComplexityEarlyStopping(never, every_n_steps=1, probe=probe, strict=loop.strict)


def ended(loop: Loop, callbacks: Sequence[pl.Callback]) -> tuple[dict[str, Any], pl.Trainer]:
    """Fit, and return every state at the end with all that the user logged on the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(loop.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pl.seed_everything(3)
            options = {**loop.options, "plugins": loop.plugins()}
            trainer = fit(loop.module(), list(callbacks), Path(folder), data=loop.data(), **options)
            return {**states(trainer), "log": logged(trainer)}, trainer
    finally:
        torch.set_num_threads(threads)


def logged(trainer: pl.Trainer) -> list[list[str]]:
    """Rows of the user's own values, as they stand in the file; our own have a slash in their names."""
    path = Path(trainer.loggers[0].log_dir or "", "metrics.csv")  # type: ignore[attr-defined]
    if not path.exists():
        return []
    with path.open() as file:
        rows = [{key: value for key, value in row.items() if "/" not in key and value} for row in csv.DictReader(file)]
    return sorted(
        sorted(f"{key}={value}" for key, value in row.items()) for row in rows if row.keys() - {"step", "epoch"}
    )


class PlainFits:
    """Fits without us, each made once for the whole run."""

    def __init__(self, once: Once) -> None:
        self.once = once

    def __getitem__(self, name: str) -> dict[str, Any]:
        def fill(folder: Path) -> None:
            (folder / "states.json").write_text(json.dumps(ended(LOOPS[name], [])[0]))

        return json.loads((self.once(f"plain fit of {name}", fill) / "states.json").read_text())
