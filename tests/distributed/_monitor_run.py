"""What each process does in `test_monitor_in_two_processes.py`."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import torch
from _said import listen
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.callbacks import rerun
from lightning_cx.gradients import GradientTap
from lightning_cx.instruments import GradientNoise, SpectralBias, TailIndex
from lightning_cx.probe import ProbePasses, ProbeReading

EXAMPLES = 384


def data() -> TensorDataset:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(EXAMPLES, 6))
    y = x[:, :1] + 0.5 * draw.normal(size=(EXAMPLES, 1))
    return TensorDataset(torch.tensor(x).float(), torch.tensor(y).float())


def rows_of(rank: int | None, sizes: tuple[int, int]) -> list[list[int]]:
    """Indices of the batches of one of two processes, of which the first has so many of each; None has them all."""
    batches = []
    for start in range(0, EXAMPLES, sum(sizes)):
        middle, end = start + sizes[0], start + sum(sizes)
        batches.append(list({None: range(start, end), 0: range(start, middle), 1: range(middle, end)}[rank]))
    return batches


class Stream(IterableDataset):
    """The same batches without an index."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        x, y = data().tensors
        for rows in self.batches:
            yield x[rows], y[rows]


class Net(pl.LightningModule):
    """Two layers, and where asked for one that is never used."""

    def __init__(
        self, dropout: float = 0.0, norm: bool = False, unused: bool = False, lr: float = 0.05, penalty: float = 0.0
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        parts = [nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)]
        self.net = nn.Sequential(*parts)
        for number, parameter in enumerate(self.net.parameters()):  # torch draws differently from version to version
            values = np.random.default_rng(number).normal(size=tuple(parameter.shape)) / 3
            parameter.data.copy_(torch.tensor(values))
        self.unused = nn.Linear(3, 3) if unused else None
        self.together, self.lr, self.penalty = False, lr, penalty

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        if self.together:  # waits for the other process
            self.all_gather(torch.ones(3))
        outputs = self.net(batch[0])
        loss = F.mse_loss(outputs, batch[1])
        if self.penalty:
            loss = loss + self.penalty * sum(parameter.square().sum() for parameter in self.net.parameters())
        self.log("loss", loss)
        return {"examples": len(outputs), "outputs": outputs, "loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Pair(Net):
    """An optimizer for each layer; the second steps at every other batch only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()[: 1 + batch_idx % 2]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(F.mse_loss(self.net(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.net[number].parameters(), lr=self.lr) for number in (0, 3)]


class Books(pl.Callback):
    """Notes what every process has in the end, and after every batch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.after: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after.append(weights_of(pl_module))
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k})


def weights_of(module: pl.LightningModule) -> str:
    parts = [p.detach().numpy().tobytes() for p in module.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


PARTS = {
    "attach": (GradientTap, "attach"),
    "finish": (GradientTap, "finish"),
    "calibrate": (rerun, "calibrate_in_training"),
    "probe": (ProbeSet, "read"),
    "instrument": (GradientNoise, "on_gradients"),
    "passes": (ProbePasses, "losses"),
}


def break_in(stack: ExitStack, rank: int, part: str, times: int) -> None:
    """Let a part of ours fail in one process only, so many times."""
    holder, name = PARTS[part]
    work, left = getattr(holder, name), [times if trainer_rank() == rank else 0]

    def failing(*arguments: Any, **options: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError(f"out of order in {part}")
        return work(*arguments, **options)

    stack.enter_context(patch.object(holder, name, failing))


def counted_rows(stack: ExitStack) -> list[int]:
    """How many rows of the probe each pass in this process has had."""
    rows: list[int] = []
    read = ProbeSet.read

    def counting(probe: ProbeSet, *arguments: Any, **options: Any) -> ProbeReading:
        reading = read(probe, *arguments, **options)
        rows.append(len(reading.residuals))
        return reading

    stack.enter_context(patch.object(ProbeSet, "read", counting))
    return rows


def trainer_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def work(options: dict[str, Any]) -> dict[str, Any]:
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        return run(options, folder, stack)


def run(options: dict[str, Any], folder: str, stack: ExitStack) -> dict[str, Any]:
    torch.manual_seed(3)
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    told: list[str] = []
    warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *_, **__: told.append(str(message))  # type: ignore[assignment]
    listen()
    warnings.filterwarnings("always", message="lightning_cx")
    instruments: Any = [GradientNoise(), SpectralBias(), TailIndex(batch_size=options.get("sums"))]
    instruments = options.get("preset", instruments)
    every = options.get("every", 1)
    cadence = {"overhead_budget": options["budget"]} if "budget" in options else {"every_n_steps": every}
    monitor: Any = ComplexityMonitor(instruments, probe=ProbeSet(128), strict=options.get("strict", False), **cadence)
    books = Books()
    if "fails" in options:
        break_in(stack, options.get("rank", 1), *options["fails"])
    rows = counted_rows(stack)
    batches = rows_of(trainer_rank() if devices > 1 else None, tuple(options.get("sizes", (32, 32))))
    if options.get("short") == trainer_rank():
        batches[-1] = batches[-1][:5]
    loader = DataLoader(data(), batch_sampler=batches)
    if options.get("stream"):
        loader = DataLoader(Stream(batches), batch_size=None)
    module = (Pair if options.get("pair") else Net)(**options.get("module", {}))
    module.together = options.get("together", False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(**options.get("ddp", {})) if devices > 1 else "auto",
        precision=options.get("precision", "64-true"),
        max_epochs=options.get("epochs", 2),
        accumulate_grad_batches=options.get("accumulate", 1),
        use_distributed_sampler=False,
        gradient_clip_val=options.get("clip"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[books] if options.get("without") else [monitor, books],
        default_root_dir=folder,
    )
    failure = ""
    try:
        trainer.fit(module, loader)
    except RuntimeError as error:
        failure = str(error)
    return {
        "steps": trainer.global_step,
        "failure": failure,
        "weights": weights_of(module),
        "metrics": books.metrics,
        "after": books.after,
        "rows": rows,
        "told": told,
        "rng": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "counts": {k: a.count for k, a in monitor._session.ledger.accounts.items()} if monitor._session else None,
    }
