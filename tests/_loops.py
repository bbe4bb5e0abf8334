"""One loop at a time, with our callbacks and without them: what must stay the same, and what was seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from _lightning import Classifier, fingerprint, fit, images
from _models import cross_entropy, naive_rows, relative_error
from lightning.pytorch.plugins import MixedPrecision
from test_monitor import Watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet, SpectralRisk
from lightning_cx.gradients import GradientSample
from lightning_cx.probe import ProbeReading

MONITOR, STOPPING = "the monitor", "early stopping"
US = {MONITOR: (MONITOR,), STOPPING: (STOPPING,), "the monitor and early stopping": (MONITOR, STOPPING)}
NOTHING_SIGNIFICANT = "ignore:lightning_cx. gradient/noise_scale. nan, the signal"
"""Small random runs often have no significant signal, and the monitor says so once."""


class Truth(pl.Callback):
    """Notes the Gram matrix of every batch at the weights that it meets, by the naive loop."""

    def __init__(self) -> None:
        self.grams: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rows = naive_rows(pl_module.net, cross_entropy, *batch)
        self.grams.append(rows @ rows.T)


@dataclass
class Run:
    """A fit, and what our callbacks saw of it."""

    trainer: pl.Trainer
    watch: Watch
    stopping: ComplexityEarlyStopping
    told: list[str]

    @property
    def samples(self) -> list[GradientSample]:
        return [o.gradients for o in self.watch.seen if o.gradients is not None]

    @property
    def readings(self) -> list[ProbeReading]:
        return [o.probe for o in self.watch.seen if o.probe is not None]

    def errors(self, truth: Truth, batches: Sequence[int] | None = None) -> list[float]:
        """Relative errors of the Gram matrices of the sampled batches, which are all unless told otherwise."""
        sampled = range(len(truth.grams)) if batches is None else batches
        pairs = zip(self.samples, sampled, strict=True)
        return [relative_error(sample.gram, truth.grams[batch]) for sample, batch in pairs]


def in_order() -> DataLoader:
    return DataLoader(images(160), batch_size=32)


def run(
    make: Callable[[], pl.LightningModule],
    folder: Path,
    us: str | None = "the monitor and early stopping",
    front: Sequence[pl.Callback] = (),
    behind: Sequence[pl.Callback] = (),
    loss_fn: Any = None,
    strict: bool = True,
    **options: Any,
) -> Run:
    """Fit with our callbacks at every step, between those in front of them and those behind."""
    pl.seed_everything(3)
    watch, probe = Watch(), ProbeSet(size=128, loss_fn=loss_fn)
    # Nothing is certainly worse for this rule, so it never stops, and nothing is put back.
    never = SpectralRisk(patience=10**6, z=1e9)
    stopping = ComplexityEarlyStopping(never, every_n_steps=1, probe=probe, strict=strict)
    instruments = [watch, *ComplexityMonitor().instruments]
    both = {MONITOR: ComplexityMonitor(instruments, every_n_steps=1, probe=probe, strict=strict), STOPPING: stopping}
    chosen = [both[name] for name in (US[us] if us else ())]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(make(), [*front, *chosen, *behind], folder, **options)
    told = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    return Run(trainer, watch, stopping, [words for words in told if "nan, the signal" not in words])


def states(trainer: pl.Trainer) -> dict[str, str]:
    return {**fingerprint(trainer), "precision": repr(trainer.precision_plugin.state_dict())}


def undisturbed(
    make: Callable[[], pl.LightningModule],
    folder: Path,
    front: Callable[[], Sequence[pl.Callback]] = tuple,
    behind: Callable[[], Sequence[pl.Callback]] = tuple,
    plugins: Callable[[], Any] = lambda: None,
    **options: Any,
) -> Run:
    """Fit without and with our callbacks, compare every state bit for bit, and return the run with them.

    Callbacks beside ours and plugins are made anew for each of the two.
    """
    without = {name: value for name, value in options.items() if name not in ("us", "strict")}
    alone = states(run(make, folder, None, front(), behind(), plugins=plugins(), **without).trainer)
    with_us = run(make, folder, front=front(), behind=behind(), plugins=plugins(), **options)
    assert states(with_us.trainer) == alone
    return with_us


class ByLbfgs(Classifier):
    """Whose optimizer runs the closure several times for each batch."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class ByHand(Classifier):
    """Under manual optimisation, with one optimizer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        self.calls += 1
        self.go_back_through(loss)
        optimizer.step()

    def go_back_through(self, loss: Tensor) -> None:
        self.manual_backward(loss)


def single_losses(module: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """What manual optimisation has to tell the probe."""
    return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")


def half_precision(scale: float = 2.0**10, **options: Any) -> MixedPrecision:
    """16-mixed on the CPU, with a scale that doubles at every second step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, **{"growth_interval": 2, **options})
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def last_layer(module: Any) -> nn.Linear:
    return module.net[2][8]
