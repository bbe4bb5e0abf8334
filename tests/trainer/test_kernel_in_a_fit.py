"""The kernel in a real Trainer: with the numbers of a computation of its own, or refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import CLASSES, Classifier, fit, loader
from _models import Unread
from _tensorboard import read_events
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.functional import (
    block_shares,
    chance_alignment,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
)
from lightning_cx.gradients import per_example_gradients
from lightning_cx.instruments import Kernel, Reading, quantities
from lightning_cx.instruments.kernel import SPECTRUM, TARGET

# Runs of a few batches rarely tell descent from noise, and the callback says so once.
pytestmark = pytest.mark.filterwarnings(
    "ignore:lightning_cx.*kernel/.*is not distinguishable from noise",
    "ignore:lightning_cx.*decay.*56 examples",
)
BLOCKS = ("net.2.1", "net.2.2", "net.2.3")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(self.norm(x))))


def residual_net(width: int = 16) -> nn.Module:
    stem = nn.Sequential(nn.Flatten(), nn.Linear(100, width))
    return nn.Sequential(stem, *(Block(width) for _ in range(3)), nn.Linear(width, CLASSES))


def classifier(**options: Any) -> Classifier:
    pl.seed_everything(3)
    return Classifier(residual_net(), **options)


def monitor(*instruments: Kernel, **options: Any) -> ComplexityMonitor:
    return ComplexityMonitor(
        list(instruments), **{"every_n_steps": 2, "probe": ProbeSet(128), "strict": True, **options}
    )


class Recording(pl.Callback):
    """Computes, before each step, what the instrument should say of that batch."""

    def __init__(self) -> None:
        self.grams: list[dict[str, Tensor]] = []
        self.labels = torch.empty(0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        with torch.enable_grad():
            losses = F.cross_entropy(pl_module.net(batch[0]), batch[1], reduction="none")
            found = per_example_gradients(pl_module, losses)
        rows = {name: own.flatten(1).double() for name, own in found.items()}
        self.grams.append({name: own @ own.T for name, own in rows.items()})
        self.labels = batch[1]


def test_the_batch_shows_its_own_gram_matrix_and_the_descent_by_block(tmp_path: Path) -> None:
    recording, instrument = Recording(), Kernel()
    data = loader(640, batch_size=64)
    trainer = fit(classifier(), [recording, monitor(instrument, every_n_steps=1)], tmp_path, data=data, max_epochs=1)
    gram = torch.stack(list(recording.grams[-1].values())).sum(0)
    decay, size = eigenvalue_decay(gram), kernel_dimension(gram)
    logged = {tag: float(trainer.callback_metrics[tag]) for tag in SPECTRUM}
    expected = (decay.exponent, decay.spread, size.participation_ratio, size.participation_error)
    values = (*expected, size.effective_rank, size.effective_error)
    assert logged == pytest.approx(dict(zip(SPECTRUM, map(float, values), strict=True)), rel=1e-3)
    targets = F.one_hot(recording.labels, CLASSES)
    values = (kernel_target_alignment(gram, targets), chance_alignment(gram, targets).high)
    power = cumulative_power(gram, targets)
    logged = [float(trainer.callback_metrics[tag]) for tag in TARGET]
    assert logged == pytest.approx([float(x) for x in (*values, power.area, power.chance_high)], rel=1e-3)
    signal = dict.fromkeys((*BLOCKS, "rest"), 0.0)
    for grams in recording.grams:
        by_block = {block: torch.zeros(64, 64).double() for block in signal}
        for name, own in grams.items():
            by_block[next((block for block in BLOCKS if name.startswith(block)), "rest")] += own
        found = block_shares(by_block)
        for block, value in zip(found.blocks, found.signal.tolist(), strict=True):
            signal[block] += value
    for block, value in signal.items():
        share = float(trainer.callback_metrics[f"{quantities.KERNEL_BLOCK_SHARE}/{block}"])
        assert share == pytest.approx(value / sum(signal.values()), rel=1e-3)
        assert 0 <= float(trainer.callback_metrics[f"{quantities.KERNEL_BLOCK_SHARE_LOW}/{block}"]) <= share


class Keep(pl.Callback):
    """Holds the probe's examples against the instrument at the last step."""

    def __init__(self, instrument: Kernel) -> None:
        self.found: dict[str, float] = {}
        on_model = instrument.on_model

        def kept(step: int, passes: Any) -> Reading:
            reading = on_model(step, passes)
            self.found = {**self.kernel_of(passes.module, passes), "read": reading.scalars}
            return reading

        instrument.on_model = kept  # type: ignore[method-assign]

    @staticmethod
    def kernel_of(module: nn.Module, view: Any) -> dict[str, Any]:
        """The tangent kernel by one backward for each output of each example."""
        batch, count = view.chunks[0]
        n, mode = min(count, 32), module.training
        module.eval()
        parameters = [p for p in module.parameters() if p.requires_grad]
        with torch.enable_grad():
            outputs = module.net(batch[0][:n])
            rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in outputs.flatten()]
        module.train(mode)
        flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double().reshape(n, CLASSES, -1)
        kernel = torch.einsum("icp,jcp->ij", flat, flat)
        residuals = (F.one_hot(batch[1][:n], CLASSES) - outputs.softmax(1)).detach().double()
        return {"kernel": kernel, "residuals": residuals}


def test_the_probe_shows_the_tangent_kernel_and_what_is_left_to_learn(tmp_path: Path) -> None:
    instrument = Kernel("probe", examples=32)
    keep = Keep(instrument)
    fit(classifier(), [keep, monitor(instrument)], tmp_path, max_epochs=1)
    size = kernel_dimension(keep.found["kernel"])
    read = keep.found["read"]
    at = {
        tag: read[quantities.on_probe(tag)]
        for tag in (quantities.KERNEL_PARTICIPATION_RATIO, quantities.KERNEL_ALIGNMENT)
    }
    assert at[quantities.KERNEL_PARTICIPATION_RATIO] == pytest.approx(float(size.participation_ratio), rel=1e-3)
    expected = kernel_target_alignment(keep.found["kernel"], keep.found["residuals"])
    assert at[quantities.KERNEL_ALIGNMENT] == pytest.approx(float(expected), rel=1e-3)


def test_curves_card_and_spectrum_reach_the_board(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "board", name=None)
    data = loader(640, batch_size=64)
    callback = monitor(Kernel(), Kernel("probe", examples=64))
    fit(classifier(), [callback], tmp_path, data=data, logger=logger, max_epochs=1)
    events = read_events(logger.log_dir)
    found = events.Tags()
    assert {*SPECTRUM, *TARGET, *(quantities.on_probe(tag) for tag in (*SPECTRUM, *TARGET))} <= set(found["scalars"])
    shares = [f"{quantities.KERNEL_BLOCK_SHARE}/{block}" for block in (*BLOCKS, "rest")]
    assert set(shares) <= set(found["scalars"])
    assert {quantities.KERNEL_SPECTRUM, quantities.on_probe(quantities.KERNEL_SPECTRUM)} <= set(found["histograms"])
    last = [events.Scalars(tag)[-1].value for tag in shares]
    assert sum(last) == pytest.approx(1, abs=1e-5)
    assert f"{quantities.KERNEL_BLOCK_SHARE}/text_summary" in found["tensors"]


def test_a_resumed_run_goes_on_with_the_shares_that_it_had(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> pl.Trainer:
        pl.seed_everything(3)
        data = loader(320, batch_size=64, shuffle=False)
        callbacks = [monitor(Kernel(), every_n_steps=1)]
        return fit(classifier(), callbacks, tmp_path, data=data, max_epochs=epochs, ckpt_path=ckpt)

    first = run(2)
    first.save_checkpoint(tmp_path / "two.ckpt")
    resumed, whole = run(3, str(tmp_path / "two.ckpt")), run(3)
    for block in (*BLOCKS, "rest"):
        tag = f"{quantities.KERNEL_BLOCK_SHARE}/{block}"
        assert float(resumed.callback_metrics[tag]) == pytest.approx(float(whole.callback_metrics[tag]), rel=1e-6)


def told(instrument: Kernel, net: nn.Module, tmp_path: Path) -> tuple[pl.Trainer, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(net), [monitor(instrument, strict=False)], tmp_path)
    return trainer, [str(w.message) for w in caught if "lightning_cx" in str(w.message)]


def test_a_model_without_residual_blocks_is_told_so_once(tmp_path: Path) -> None:
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    )
    trainer, messages = told(Kernel(), mlp, tmp_path)
    assert sum("no residual blocks" in message for message in messages) == 1
    assert math.isnan(trainer.callback_metrics[quantities.KERNEL_BLOCK_SHARE])
    assert math.isfinite(trainer.callback_metrics[quantities.KERNEL_EFFECTIVE_RANK])


def test_a_model_that_cannot_be_read_on_the_probe_is_told_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, CLASSES))
    trainer, messages = told(Kernel("probe"), net, tmp_path)
    assert sum("outputs' derivatives could not be read" in message for message in messages) == 1
    assert math.isnan(trainer.callback_metrics[quantities.on_probe(quantities.KERNEL_DECAY)])
