"""LightningModules of the loops that people run, and what to compare of two runs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from _models import Convnet
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

CLASSES = 5


def images(count: int = 160, seed: int = 0) -> TensorDataset:
    """Images whose class is the brighter of five stripes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, 10, 10, generator=generator)
    for row, label in enumerate(labels.tolist()):
        x[row, :, 2 * label : 2 * label + 2] += 1.5
    return TensorDataset(x, labels)


def loader(count: int = 160, batch_size: int = 32, **options: Any) -> DataLoader:
    return DataLoader(images(count), batch_size=batch_size, **{"shuffle": True, **options})


class Stream(IterableDataset):
    """The same images, but without an index."""

    def __init__(self, count: int = 160) -> None:
        self.data = images(count)

    def __iter__(self):
        return iter(self.data)


class Classifier(pl.LightningModule):
    """Convnet; logs a loss, a metric object and a plain value, and keeps notes of its own, as user code does."""

    def __init__(self, net: nn.Module | None = None, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(1) if batch_norm else nn.Identity()
        self.net = nn.Sequential(norm, nn.Dropout(dropout), Convnet() if net is None else net)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.seen: list[float] = []
        self.calls = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        scores = self.net(x)
        loss = F.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.calls += 1
        self.seen.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("draw", torch.rand(()) + random.random() + np.random.rand())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def fit(
    module: pl.LightningModule,
    callbacks: list[pl.Callback],
    folder: Path,
    data: Any = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> pl.Trainer:
    pl.seed_everything(7)
    trainer = pl.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": CSVLogger(folder, name="csv"),
            "callbacks": callbacks,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def fingerprint(trainer: pl.Trainer) -> dict[str, str]:
    """Hashes of all that our callbacks must not change."""
    module = trainer.lightning_module
    parts: dict[str, Any] = {
        "weights and buffers": module.state_dict(),
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "gradients": [p.grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "torch rng": torch.get_rng_state(),
        "numpy rng": str(np.random.get_state()),
        "python rng": str(random.getstate()),
        "own attributes": (module.seen, module.calls),
        "metric": module.accuracy.metric_state,
        "logged": {k: v for k, v in trainer.callback_metrics.items() if "/" not in k},
        "attribute names": [sorted(m.__dict__) for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
    }
    return {name: hashlib.sha256(_bytes(value)).hexdigest() for name, value in parts.items()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return str(value.dtype).encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(str(key).encode() + _bytes(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value))
    return repr(value).encode()
