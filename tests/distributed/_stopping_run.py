"""What each of two processes does in `test_early_stopping_in_two_processes.py`."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from _noisy import Fit, Stream, batches, regression, trainer

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, PathLeaveOneOut, ProbeSet, SpectralRisk
from lightning_cx.functional.stopping import Decision
from lightning_cx.probe import ProbeReading
from lightning_cx.rules import StoppingRule
from lightning_cx.rules.base import Curve


class OneSays(StoppingRule):
    """Stops in one process alone, at its twelfth check; there the eighth was best, elsewhere the fifth."""

    def __init__(self, rank: int) -> None:
        self.rank, self.checks = rank, 0

    def check(self, coefficients: torch.Tensor, step: int) -> Decision:
        mine = torch.distributed.get_rank() == self.rank
        best, number = 8 if mine else 5, self.checks
        self.checks += 1
        return Decision(mine and number == 12, min(best, number), f"check {number}", float(number), 0.0)

    def reset(self) -> None:
        self.checks = 0

    @property
    def past_best(self) -> bool:
        return True

    @property
    def curve(self) -> Curve:
        return Curve("stopping/mine", "mine", "Mine", "Read it.")


class FailsInOne(OneSays):
    """Breaks down in one process alone."""

    def check(self, coefficients: torch.Tensor, step: int) -> Decision:
        self.checks += 1
        if torch.distributed.get_rank() == self.rank and self.checks > 3:
            raise RuntimeError("out of order")
        return Decision(False, self.checks - 1, "fine", 0.0, 0.0)


class Passes(pl.Callback):
    """Notes the weights after each step, and how many examples this process has passed through the probe."""

    def __init__(self, stack: ExitStack) -> None:
        self.after: dict[int, str] = {}
        self.rows: list[int] = []
        read = ProbeSet.read

        def counted(probe: ProbeSet, *arguments: Any, **options: Any) -> ProbeReading:
            reading = read(probe, *arguments, **options)
            self.rows.append(len(reading.residuals))
            return reading

        stack.enter_context(patch.object(ProbeSet, "read", counted))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = weights_of(pl_module)


def weights_of(module: pl.LightningModule) -> str:
    parts = [p.detach().numpy().tobytes() for p in module.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def gathering(module: Fit, batch: Any) -> torch.Tensor:
    """A loss that waits for the other process."""
    module.all_gather(torch.ones(3))
    return torch.nn.functional.mse_loss(module.net(batch[0]), batch[1])


def work(options: dict[str, Any]) -> dict[str, Any]:
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        return run(options["case"], folder, stack)


def run(case: str, folder: str, stack: ExitStack) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    rules: dict[str, StoppingRule] = {"one says": OneSays(1), "one fails": FailsInOne(1), "strict": FailsInOne(1)}
    if case == "all_gather":
        stack.enter_context(patch.object(Fit, "loss", gathering))
    batch_size = {"one chunk": 256, "path, one chunk": 256, "all_gather": 100}.get(case, 32)
    data: Any = Stream(regression()) if case == "stream" else regression()
    rule = rules.get(case)
    if case in ("stream", "monitor"):
        rule = SpectralRisk(patience=2, z=0.5, doubling=False)  # soon, which is enough for what both must agree on
    if case in ("plain", "one chunk", "all_gather"):
        rule = SpectralRisk()
    if case.startswith("path"):
        rule = PathLeaveOneOut(patience=2, wait=1.5)
    stopping = ComplexityEarlyStopping(
        rule, every_n_steps=1 if case in rules else 2, strict=case == "strict", verbose=False
    )
    if case == "without":
        stopping = pl.Callback()  # type: ignore[assignment]
    watching, module = Passes(stack), Fit()
    beside = [ComplexityMonitor(every_n_steps=7)] if case == "monitor" else []
    fitted = trainer(
        [*beside, watching, stopping],
        folder,
        strategy="ddp",
        devices=2,
        max_steps=40 if case in (*rules, "without", "one chunk", "all_gather") or case.startswith("path") else 1000,
    )
    failure = ""
    try:
        fitted.fit(module, batches(data, batch_size=batch_size))
    except RuntimeError as error:
        failure = str(error)
    result = {
        "step": fitted.global_step,
        "failure": failure,
        "weights": weights_of(module),
        "after": watching.after,
        "rows": watching.rows,
        **{name: getattr(stopping, name, None) for name in ("stopped_step", "best_step", "reason")},
    }
    if hasattr(stopping, "watch"):
        initial = stopping.watch.state_dict().get("initial")
        result["initial"] = None if initial is None else initial.flatten().tolist()
        result["points"] = [point[:2] for point in stopping.watch.state_dict()["record"]["points"]["entries"]]
    return result
