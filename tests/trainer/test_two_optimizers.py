"""Manual optimisation with two optimizers: each sample belongs to the backward and the optimizer that it came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _lightning import fingerprint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor
from lightning_cx.instruments import GradientNoise, GradientSpectrum

pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale")
NOISE, SIZE, BATCH = 4, 6, 16


class Gan(pl.LightningModule):
    """A generator and a discriminator; subclasses say in which order they are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(NOISE, 12), nn.Tanh(), nn.Linear(12, SIZE))
        self.discriminator = nn.Sequential(nn.Linear(SIZE, 10), nn.Tanh(), nn.Dropout(0.1), nn.Linear(10, 1))
        self.seen: list[float] = []
        self.calls = 0
        self.accuracy = nn.Identity()
        self.accuracy.metric_state = {}  # type: ignore[assignment]  # for the fingerprint

    def judge(self, x: Tensor, real: bool) -> Tensor:
        scores = self.discriminator(x)
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))

    def train_discriminator(self, x: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        fake = self.generator(torch.randn(len(x), NOISE)).detach()
        self.manual_backward(self.judge(x, True) + self.judge(fake, False))
        optimizer.step()

    def train_generator(self, x: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.judge(self.generator(torch.randn(len(x), NOISE)), True))
        optimizer.step()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        self.train_discriminator(batch[0], discriminator)
        self.train_generator(batch[0], generator)
        self.calls += 1

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (self.generator, self.discriminator)]


class GeneratorFirst(Gan):
    """The generator's backward leaves gradients in the discriminator, which are cleared before its own."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        self.train_generator(batch[0], generator)
        self.train_discriminator(batch[0], discriminator)


class Toggled(Gan):
    """Each optimizer's parameters alone ask for gradients while it is its turn."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer, train in zip(self.optimizers(), (self.train_generator, self.train_discriminator), strict=True):
            self.toggle_optimizer(optimizer)
            train(batch[0], optimizer)
            self.untoggle_optimizer(optimizer)


class Apart(Gan):
    """The discriminator sees real and false examples in two backward passes, and steps along their sum."""

    def train_discriminator(self, x: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.judge(x, True))
        self.manual_backward(self.judge(self.generator(torch.randn(len(x), NOISE)).detach(), False))
        optimizer.step()


class Rarely(Gan):
    """The generator steps at every third batch only."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        self.train_discriminator(batch[0], discriminator)
        if batch_idx % 3 == 2:
            self.train_generator(batch[0], generator)


class Outside(Gan):
    """Steps that Lightning does not hear of."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, discriminator = self.optimizers(use_pl_optimizer=False)
        self.train_discriminator(batch[0], discriminator)
        self.train_generator(batch[0], generator)


class Steps(pl.Callback):
    """Notes the norm of the gradient that each optimizer steps along, and the metrics after each batch."""

    def __init__(self) -> None:
        self.norms: list[dict[int, float]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.norms.append({})

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        self.norms[-1][trainer.optimizers.index(optimizer)] = norm

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def batches() -> DataLoader:
    x = np.random.default_rng(0).normal(size=(6 * BATCH, SIZE))
    return DataLoader(TensorDataset(torch.tensor(x).float()), batch_size=BATCH)


def fit(
    module: Gan, callbacks: list[pl.Callback], folder: Path, ckpt_path: str | None = None, max_epochs: int = 1
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    return trainer


def monitor(every: int = 1) -> ComplexityMonitor:
    return ComplexityMonitor([GradientNoise(), GradientSpectrum()], every_n_steps=every, strict=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [Gan, GeneratorFirst, Toggled])
def test_the_norm_of_each_optimizer_is_that_of_the_gradient_it_steps_along(kind: type[Gan], tmp_path: Path) -> None:
    steps = Steps()
    fit(kind(), [monitor(), steps], tmp_path)
    assert len(steps.norms) == 6
    for norms, metrics in zip(steps.norms, steps.metrics, strict=True):
        assert metrics["gradient/norm"] == pytest.approx(norms[0], rel=1e-5)
        assert metrics["gradient/norm-optimizer_1"] == pytest.approx(norms[1], rel=1e-5)
    assert {"gradient/participation_ratio", "gradient/participation_ratio-optimizer_1"} <= set(steps.metrics[-1])
    assert not [tag for tag in steps.metrics[-1] if "backward" in tag or "optimizer_0" in tag]


def test_two_backward_passes_for_one_step_are_two_series(tmp_path: Path) -> None:
    steps = Steps()
    fit(Apart(), [monitor(), steps], tmp_path)
    names = [tag for tag in steps.metrics[-1] if tag.startswith("gradient/norm")]
    assert names == ["gradient/norm", "gradient/norm-optimizer_1", "gradient/norm-optimizer_1-backward_1"]
    for norms, metrics in zip(steps.norms, steps.metrics, strict=True):
        real, false = (metrics[name] for name in names[1:])
        assert abs(real - false) <= norms[1] <= real + false  # the step is along their sum


@pytest.mark.parametrize("every", [1, 2])
def test_an_optimizer_that_steps_rarely_is_sampled_when_it_does(every: int, tmp_path: Path) -> None:
    steps = Steps()
    fit(Rarely(), [monitor(every), steps], tmp_path)
    assert "gradient/norm" not in steps.metrics[1]
    for batch in (2, 5):
        assert steps.metrics[batch]["gradient/norm"] == pytest.approx(steps.norms[batch][0], rel=1e-5)
    assert steps.metrics[4]["gradient/norm-optimizer_1"] == pytest.approx(steps.norms[4][1], rel=1e-5)


def test_optimizers_that_step_behind_lightnings_back_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_cx.callbacks.sampling.PATIENCE", 3)
    steps = Steps()
    with pytest.warns(UserWarning, match=r"optimizer 0, 1 made no step in 3 batches.*self.optimizers\(\)"):
        fit(Outside(), [monitor(), steps], tmp_path)
    assert "gradient/norm" not in steps.metrics[-1]


@pytest.mark.parametrize("kind", [Gan, GeneratorFirst, Toggled, Apart, Rarely])
def test_training_is_bitwise_identical(kind: type[Gan], tmp_path: Path) -> None:
    def run(callbacks: list[pl.Callback]) -> dict[str, str]:
        pl.seed_everything(1)
        return fingerprint(fit(kind(), callbacks, tmp_path))

    assert run([monitor()]) == run([])


def test_each_series_keeps_its_memory_through_a_checkpoint(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: str | None = None) -> tuple[pl.Trainer, Steps]:
        pl.seed_everything(1)
        steps = Steps()
        return fit(Gan(), [monitor(), steps], tmp_path, max_epochs=epochs, ckpt_path=ckpt_path), steps

    first, _ = run(1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    held = first.callbacks[0]._dispatcher.state_dict()  # type: ignore[attr-defined]
    assert [series[:2] for series in held["further"]] == [(1, 0)]
    assert len(held["further"][0][2]["GradientNoise"]["recent"]) == 6
    second, _ = run(2, str(tmp_path / "half.ckpt"))
    after = second.callbacks[0]._dispatcher.state_dict()  # type: ignore[attr-defined]
    noises = [
        [float(scale["noise"]) for scale in state["further"][0][2]["GradientNoise"]["recent"]]
        for state in (held, after)
    ]
    assert len(noises[1]) == 12
    assert noises[1][:6] == noises[0]


def test_what_the_numbers_are_is_told_for_each_optimizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Gan(), [monitor()], tmp_path)
    said = [r.message for r in caplog.records if "per-example gradients" in r.message]
    assert [f"per-example gradients of optimizer {n}: unverified" in " ".join(said) for n in (0, 1)] == [True, True]
