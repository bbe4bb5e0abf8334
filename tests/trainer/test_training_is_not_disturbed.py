"""Law 1: a run with the monitor is bit for bit the run without it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, Stream, fingerprint, fit
from _models import Unread
from torch import nn
from torch.utils.data import DataLoader

from lightning_cx import ComplexityMonitor, ProbeSet

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """As users train; small problems of ours switch to one thread and back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dropout": ({"dropout": 0.3}, {}),
    "BatchNorm": ({"batch_norm": True}, {}),
    "gradient accumulation": ({"dropout": 0.1}, {"accumulate_grad_batches": 2}),
    "bf16-mixed": ({"dropout": 0.1}, {"precision": "bf16-mixed"}),
    "64-true": ({}, {"precision": "64-true"}),
    "gradient clipping": ({}, {"gradient_clip_val": 0.1}),
    "replay": ({"net": "unread", "dropout": 0.2}, {}),
    "stream": ({"dropout": 0.1}, {"data": "stream"}),
}


def unread() -> nn.Module:
    """A net with a layer that the tap has no rule for."""
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))


@pytest.mark.filterwarnings("ignore:lightning_cx. unsupported", "ignore:lightning_cx.*BatchNorm in training mode")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_state_is_bitwise_identical_with_and_without_the_monitor(variant: str, tmp_path: Path) -> None:
    module_options, trainer_options = VARIANTS[variant]

    def run(callbacks: list) -> tuple[dict[str, str], dict[str, Any]]:
        options = dict(trainer_options)
        if options.get("data") == "stream":
            options["data"] = DataLoader(Stream(), batch_size=32)
        pl.seed_everything(3)
        net = {"net": unread()} if module_options.get("net") == "unread" else {}
        trainer = fit(Classifier(**{**module_options, **net}), callbacks, tmp_path, **options)
        return fingerprint(trainer), dict(trainer.callback_metrics)

    without, _ = run([])
    monitor = ComplexityMonitor(every_n_steps=1, probe=ProbeSet(size=128), strict=True)
    with_monitor, metrics = run([monitor])
    assert with_monitor == without
    assert {"gradient/norm", "complexity/residual_median", "complexity/overhead"} <= set(metrics)


def test_the_users_logged_values_are_the_same_at_every_step(tmp_path: Path) -> None:
    def logged(callbacks: list, name: str) -> list[tuple]:
        pl.seed_everything(3)
        trainer = fit(Classifier(dropout=0.2), callbacks, tmp_path / name)
        with (Path(trainer.loggers[0].log_dir) / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        own = [{k: v for k, v in row.items() if "/" not in k and v} for row in rows]
        return sorted(tuple(sorted(row.items())) for row in own if "loss_step" in row or "loss_epoch" in row)

    assert logged([ComplexityMonitor(every_n_steps=1, strict=True)], "with") == logged([], "without")
