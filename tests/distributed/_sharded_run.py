"""What each process does in `test_sharded_modules.py`: a fit of a module whose parameters are cut in pieces, or not."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from _noisy import Fit, batches, regression
from _said import listen
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet, SpectralRisk
from lightning_cx.callbacks.distributed import is_sharded
from lightning_cx.instruments import GradientNoise, GradientSpectrum, Interference, SpectralBias, TailIndex


class Sharded(Fit):
    """The same perceptron, in three groups of pieces, the last of which is what the others left."""

    def configure_model(self) -> None:
        if is_sharded(self):
            return
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.net[0], mesh=mesh)
        fully_shard(self.net[3], mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class Pair(Fit):
    """An optimizer for the first layer, and one for the others, of which one lies in the outermost group of pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        first, *others = (part for part in self.net if list(part.parameters()))
        return [torch.optim.Adam(nn.ModuleList(parts).parameters(), lr=5e-3) for parts in ([first], others)]


class ShardedPair(Pair, Sharded):
    """The same, sharded."""


class Spread(Fit):
    """The same with each layer spread over the processes."""

    def configure_model(self) -> None:
        plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


class Steps(pl.Callback):
    """Notes the metrics and the weights after each batch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.after: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k})
        self.after.append(pieces_of(pl_module))


def pieces_of(module: pl.LightningModule) -> str:
    """Hash of what lies in this process."""
    local = [p.to_local() if hasattr(p, "to_local") else p for p in module.parameters()]
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in local)).hexdigest()


def strategy_of(options: dict[str, Any]) -> Strategy:
    if options["strategy"] == "ddp":
        return DDPStrategy()
    spread = 2 if options["strategy"] == "tensor parallel" else 1
    return ModelParallelStrategy(data_parallel_size=2 // spread, tensor_parallel_size=spread)


def callbacks_of(options: dict[str, Any]) -> list[pl.Callback]:
    chosen: list[pl.Callback] = []
    if options.get("monitor"):
        instruments = [GradientNoise(), GradientSpectrum(), SpectralBias(), TailIndex()]
        if options["monitor"] == "interference":
            instruments = [Interference(on="probe")]
        strict = options.get("strict", True)
        chosen.append(ComplexityMonitor(instruments, every_n_steps=1, probe=ProbeSet(128), strict=strict))
    if options.get("stopping"):
        restore = options["stopping"] == "restore"
        soon = SpectralRisk(patience=2, z=0.5, doubling=False)  # which is enough for what both must agree on
        chosen.append(ComplexityEarlyStopping(soon, every_n_steps=2, restore_best=restore, strict=True))
    return chosen


def work(options: dict[str, Any]) -> dict[str, Any]:
    pl.seed_everything(5)
    kinds = {"ddp": Pair, "sharded": ShardedPair} if options.get("pair") else {"ddp": Fit, "sharded": Sharded}
    kind = {**kinds, "tensor parallel": Spread}[options["strategy"]]
    module, steps, told, failure = kind(), Steps(), [], ""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.showwarning = lambda message, *_, **__: told.append(str(message))  # type: ignore[assignment]
        listen()
        warnings.filterwarnings("always", message="lightning_cx")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=strategy_of(options),
            max_steps=options.get("max_steps", 8),
            max_epochs=-1,
            accumulate_grad_batches=options.get("accumulate", 1),
            callbacks=[*callbacks_of(options), steps],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, batches(regression(), batch_size=16, shuffle=False))
        except Exception as error:
            failure = str(error)
    return {
        "failure": failure,
        "told": told,
        "step": trainer.global_step,
        "metrics": steps.metrics,
        "after": steps.after,
        "sharded": is_sharded(module),
        "rank": int(os.environ["RANK"]),
    }
