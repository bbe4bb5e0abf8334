"""Fit another library's module with and without our callbacks, and collect all that can be checked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_cx import BatchSpec, ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.gradients import EXACT, GradientSample
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Needs, Reading, SpectralBias

torch.set_num_threads(1)


class Keep(Instrument):
    """Keeps the samples it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[GradientSample] = []

    @property
    def needs(self) -> Needs:
        return Needs(gram=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        self.samples.append(gradients)
        return Reading()

    def __deepcopy__(self, memo: object) -> Keep:
        return self


@dataclass
class Found:
    """What a fit showed.

    Attributes:
        same: Whether weights and optimizer states are bit for bit those of a fit without us.
        said: All our messages, in order.
        samples: Per-example gradients of the sampled steps.
        metrics: What was logged last.
        reason: What the stopping rule said last.
    """

    same: bool
    said: list[str] = field(default_factory=list)
    samples: list[GradientSample] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def statuses(self) -> set[str]:
        return {sample.status for sample in self.samples}

    @property
    def exact(self) -> bool:
        return self.statuses == {EXACT}

    @property
    def anatomy(self) -> str:
        return next((line for line in self.said if " example" in line and "inputs" in line), "")


@contextmanager
def listening(said: list[str]) -> Iterator[None]:
    """Collect what we log and warn of."""

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "lightning_cx" in message:
                said.append(message.removeprefix("lightning_cx: "))

    ear, loggers = (
        Ear(),
        [logging.getLogger(name) for name in ("lightning_cx", "lightning.pytorch", "pytorch_lightning")],
    )
    for logger in loggers:
        logger.addHandler(ear)
        logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(ear)


def weights_of(trainer: Any) -> dict[str, Any]:
    state = {name: tensor.detach().clone() for name, tensor in trainer.lightning_module.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                state[f"optimizer {number} {key} {name}"] = torch.as_tensor(value).clone()
    return state


def compare(
    fit: Callable[[list[Any]], Any], batch: BatchSpec | None = None, probe: ProbeSet | None = None, every: int = 2
) -> Found:
    """Fit twice from the same seed, once with our callbacks.

    Args:
        fit: Makes everything anew, fits it with the given callbacks, and returns the trainer.
        batch: As the callbacks take it.
        probe: As the callbacks take it.
        every: Steps between samples.
    """
    said: list[str] = []
    keep = Keep()
    stop = ComplexityEarlyStopping(every_n_steps=every, restore_best=False, batch=batch, probe=probe)
    stop._stop = lambda decision: None  # type: ignore[method-assign]  # compare whole runs
    monitor = ComplexityMonitor([GradientNoise(), SpectralBias(), keep], every_n_steps=every, batch=batch, probe=probe)
    with listening([]):
        pl.seed_everything(0)
        plain = weights_of(fit([]))
    with listening(said):
        pl.seed_everything(0)
        trainer = fit([monitor, stop])
    ours = weights_of(trainer)
    same = plain.keys() == ours.keys() and all(torch.equal(plain[k].nan_to_num(), ours[k].nan_to_num()) for k in plain)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
    return Found(same, said, keep.samples, metrics, stop.reason)


TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
