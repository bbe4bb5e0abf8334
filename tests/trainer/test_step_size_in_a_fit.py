"""Runs in a real Trainer rise to the edge of stability and hover there."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _lightning import Classifier, fit
from _small_views import formed_hessian
from _tensorboard import read_events, serve
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.functional.step_size import step_gains
from lightning_cx.instruments import StepSize, quantities
from lightning_cx.instruments.step_size import EDGE, GAUSS_NEWTON, SHARPNESS

EXAMPLES = 128


def monitor(instrument: StepSize, **options: Any) -> ComplexityMonitor:
    return ComplexityMonitor([instrument], **{"every_n_steps": 1, "strict": True, **options})


class Curve(pl.Callback):
    """Keeps the numbers of every measurement."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        new = {tag: float(v) for tag, v in trainer.callback_metrics.items() if tag.startswith("step_size/")}
        if new and (not self.seen or str(new) != str(self.seen[-1])):
            self.seen.append(new)


class Regression(pl.LightningModule):
    """A tanh network on 128 examples, all of them in each batch."""

    def __init__(self, optimizer: Any, seed: int = 0, loss: Any = F.mse_loss, width: int = 32) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.from_numpy(rng.uniform(-1, 1, p.shape)) / p.shape[-1] ** 0.5)
        self.optimizer, self.loss = optimizer, loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


def examples(seed: int = 0) -> TensorDataset:
    x = torch.from_numpy(np.random.default_rng(seed + 30).standard_normal((EXAMPLES, 4))).float()
    return TensorDataset(x, torch.sin(3 * x[:, :1]) * x[:, 1:2])


def run(optimizer: Any, steps: int, folder: Path, every: int = 50, seed: int = 0) -> tuple[list[float], list[str]]:
    """Ratios to the edge, and the warnings about it, of a full-batch run with one epoch of so many steps."""
    curve = Curve()
    watch = monitor(StepSize(rows=0), every_n_steps=every, probe=ProbeSet(size=EXAMPLES))
    data = DataLoader(examples(seed), batch_sampler=[list(range(EXAMPLES))] * steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Regression(optimizer, seed), [watch, curve], folder, data=data, max_epochs=1, logger=False)
    return [seen[quantities.EDGE] for seen in curve.seen], [str(w.message) for w in caught if "runs" in str(w.message)]


EDGES: dict[str, Any] = {
    "gradient descent": lambda ps: torch.optim.SGD(ps, lr=0.2),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.9),
    "Adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
}


@pytest.mark.parametrize("name", EDGES)
def test_full_batch_training_rises_to_the_edge_and_hovers_within_a_tenth(name: str, tmp_path: Path) -> None:
    curve, told = run(EDGES[name], 600, tmp_path)
    known = [ratio for ratio in curve if not math.isnan(ratio)]  # Adam's preconditioner forms first
    assert known[0] < 0.7
    assert abs(sorted(known[-5:])[2] - 1) < 0.1, known
    assert all(0.8 < ratio < 1.25 for ratio in known[-5:]), known
    assert len(told) == 1
    assert "at the edge of stability" in told[0] or "beyond the edge of stability" in told[0]


def test_a_small_step_stays_below_and_nothing_is_told(tmp_path: Path) -> None:
    curve, told = run(lambda ps: torch.optim.SGD(ps, lr=0.02), 200, tmp_path)
    assert all(0 < ratio < 0.5 for ratio in curve)
    assert len(curve) == 4
    assert not told


class Formed(pl.Callback):
    """At every measurement, lambda_max between the roots of the gains from the formed Hessian of all examples."""

    def __init__(self) -> None:
        self.expected: list[tuple[float, float]] = []
        self.x, self.y = examples().tensors

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if (trainer.fit_loop.total_batch_idx % 40) == 0:
            hessian = formed_hessian(pl_module.net, self.x, self.y).double()
            gains = step_gains(trainer.optimizers[0], own := dict(pl_module.named_parameters()))
            root = gains.flat(own)[0].double().sqrt()
            tops = (torch.linalg.eigvalsh(m)[-1] for m in (hessian, root[:, None] * hessian * root))
            self.expected.append(tuple(map(float, tops)))


@pytest.mark.parametrize("name", EDGES)
def test_each_number_is_that_of_the_formed_hessian_at_that_step(name: str, tmp_path: Path) -> None:
    formed, curve = Formed(), Curve()
    watch = monitor(StepSize(rows=0, iterations=40), every_n_steps=40, probe=ProbeSet(size=EXAMPLES))
    data = DataLoader(examples(), batch_sampler=[list(range(EXAMPLES))] * 201)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Regression(EDGES[name], width=6)
        fit(module, [watch, formed, curve], tmp_path, data=data, max_epochs=1, logger=False)
    assert len(curve.seen) == len(formed.expected) == 6
    for seen, (sharpness, edge) in zip(curve.seen, formed.expected, strict=True):
        assert seen[quantities.SHARPNESS] == pytest.approx(sharpness, rel=2e-3)
        if not math.isnan(seen[quantities.EDGE]):
            assert seen[quantities.EDGE] == pytest.approx(edge, rel=2e-3)
    assert not math.isnan(curve.seen[-1][quantities.EDGE])


def test_curves_card_and_charts_reach_the_board(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "board", name="run", version="one")
    watch = monitor(StepSize(examples=64), every_n_steps=5, probe=ProbeSet(size=EXAMPLES))
    data = DataLoader(examples(), batch_sampler=[list(range(64)), list(range(64, 128))] * 8)
    fit(Regression(lambda ps: torch.optim.SGD(ps, lr=0.02)), [watch], tmp_path, data=data, max_epochs=1, logger=logger)
    events = read_events(logger.log_dir)
    assert {*SHARPNESS, *EDGE, *GAUSS_NEWTON, quantities.GAUSS_NEWTON_EDGE} <= set(events.Tags()["scalars"])
    for value, low, high in (SHARPNESS, EDGE, GAUSS_NEWTON):
        for curve, below, above in zip(*(events.Scalars(tag) for tag in (value, low, high)), strict=True):
            assert below.value <= curve.value <= above.value
    with serve(tmp_path / "board") as get:
        layout = get("data/plugin/custom_scalars/layout")
        texts = get("data/plugin/text/text?run=run/one&tag=step_size/edge/text_summary")
    charts = {chart["title"]: chart for category in layout["category"] for chart in category["chart"]}
    title = "ratio to the edge of stability with 95% interval (1: steps no longer settle)"
    margin = charts[title]["margin"]["series"][0]
    assert (margin["value"], margin["lower"], margin["upper"]) == EDGE
    assert "below" in texts[-1]["text"]
    assert "no preconditioner (SGD)" in texts[-1]["text"]


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.LBFGS])
def test_an_optimizer_without_an_edge_is_refused_by_name_and_training_goes_on(make: Any, tmp_path: Path) -> None:
    curve = Curve()
    watch = monitor(StepSize(rows=0), every_n_steps=5, probe=ProbeSet(size=EXAMPLES))
    data = DataLoader(examples(), batch_sampler=[list(range(EXAMPLES))] * 6)
    with pytest.warns(UserWarning, match=f"step_size/edge.*: nan, .* not for {make.__name__}"):
        fit(Regression(lambda ps: make(ps, lr=0.01)), [watch, curve], tmp_path, data=data, max_epochs=1, logger=False)
    assert math.isnan(curve.seen[-1][quantities.EDGE])
    assert curve.seen[-1][quantities.SHARPNESS] > 0


def test_a_sum_over_the_batch_has_its_sharpness_but_no_ratio(tmp_path: Path) -> None:
    curve, data = Curve(), DataLoader(examples(), batch_sampler=[list(range(EXAMPLES))] * 6)
    watch = monitor(StepSize(rows=0), every_n_steps=5, probe=ProbeSet(size=EXAMPLES))
    module = Regression(lambda ps: torch.optim.SGD(ps, lr=1e-4), loss=lambda f, y: F.mse_loss(f, y, reduction="sum"))
    with pytest.warns(UserWarning, match=r"step_size/edge.*: nan, the training loss is the sum over the examples"):
        fit(module, [watch, curve], tmp_path, data=data, max_epochs=1, logger=False)
    assert math.isnan(curve.seen[-1][quantities.EDGE])
    assert curve.seen[-1][quantities.SHARPNESS] > 0


@pytest.mark.timing
def test_under_a_budget_it_is_measured_within_it(tmp_path: Path) -> None:
    watch = ComplexityMonitor(
        [StepSize(examples=64, iterations=3, rows=50)], overhead_budget=0.5, probe=ProbeSet(size=128), strict=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(Classifier(), [watch], tmp_path, max_epochs=40)
    assert math.isfinite(trainer.callback_metrics[quantities.SHARPNESS])
    assert watch.overhead < 0.65
