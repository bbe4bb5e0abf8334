"""Neurons and local recovery in a real Trainer: with the numbers of independent computations."""

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
from _models import Unread
from _tensorboard import read_events
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.instruments import LocalRecovery, Neurons, quantities
from lightning_cx.instruments.local_recovery import CODES, LAW, LOCAL
from lightning_cx.instruments.neurons import SHARES

# Small runs have too few readings of the loss at first, and the monitor says so once; Adam has no local rate.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. .*recovery/")


def unread() -> nn.Module:
    """A net with a layer that the tap has no rule for."""
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))


@pytest.mark.filterwarnings("ignore:lightning_cx")
@pytest.mark.parametrize("net", [None, unread], ids=["as a rule reads it", "replayed"])
def test_every_number_is_logged(net: Any, tmp_path: Path) -> None:
    instruments = [Neurons(per_layer=True), LocalRecovery(examples=20)]
    monitor = ComplexityMonitor(instruments, every_n_steps=2, probe=ProbeSet(128), strict=True)
    trainer = fit(Classifier(net and net()), [monitor], tmp_path)
    assert {*LAW, *LOCAL, *SHARES} <= set(trainer.callback_metrics)


class Student(pl.LightningModule):
    """A tanh network of 21 parameters that starts near its teacher, where progress is slowest, on full batches."""

    def __init__(self, teacher: nn.Module, x: Tensor, rate: float) -> None:
        super().__init__()
        self.net, self.rate = network(), rate
        start = nn.utils.parameters_to_vector(teacher.parameters()).detach() + 0.02 * gauss_newton(teacher, x)[1][:, 0]
        nn.utils.vector_to_parameters(start, self.net.parameters())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A teacher and 150 examples of it."""
    draw, teacher = np.random.default_rng(4), network()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(torch.tensor(draw.normal(size=parameter.shape)))
    x = torch.tensor(draw.normal(size=(150, 5)))
    return teacher, x, teacher(x).detach()


def gauss_newton(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of J^T J / n, ascending, and their directions."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    by_name = jacrev(lambda p: functional_call(net, p, (x,))[:, 0])(parameters)
    rows = torch.cat([part.reshape(len(x), -1) for part in by_name.values()], 1)
    values, directions = torch.linalg.eigh(rows.T @ rows / len(x))
    return values, directions


def test_a_student_converges_at_the_predicted_rate_and_recovers_its_teacher(tmp_path: Path) -> None:
    teacher, x, y = problem()
    rate = 0.9 / float(
        gauss_newton(teacher, x)[0][-1]
    )  # squared error, not half of it: its curvature is twice as large
    student, logger = Student(teacher, x, rate), TensorBoardLogger(tmp_path, name=None)
    instruments = [Neurons(teacher={f"net.{k}": v for k, v in teacher.state_dict().items()}), LocalRecovery()]
    monitor = ComplexityMonitor(instruments, every_n_steps=10, probe=ProbeSet(150), strict=True)
    data = DataLoader(TensorDataset(x, y), batch_size=150)
    trainer = fit(student, [monitor], tmp_path, data=data, logger=logger, max_epochs=600, precision="64-true")
    metrics = trainer.callback_metrics
    slowest = float(gauss_newton(student.net, x)[0][0])
    assert float(metrics[quantities.RECOVERY_PREDICTED_RATE]) == pytest.approx(
        -2 * math.log1p(-2 * rate * slowest), rel=1e-3
    )
    assert float(metrics[quantities.RECOVERY_RATE]) == pytest.approx(
        float(metrics[quantities.RECOVERY_PREDICTED_RATE]), rel=0.03
    )
    assert float(metrics[quantities.RECOVERY_LAW]) == CODES["exponential"]
    assert float(metrics[quantities.RECOVERY_RANK_SHARE]) == 1
    assert float(metrics[quantities.RECOVERY_REMOVABLE]) == pytest.approx(1, abs=0.02)
    assert float(metrics[quantities.NEURONS_ALIGNMENT]) > 0.999
    assert float(metrics[quantities.NEURONS_TEACHER_DISTANCE]) < 0.01
    events = read_events(logger.log_dir)
    card = events.Tensors(f"{quantities.RECOVERY_VERDICT}/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert card.startswith("**converging at a linear rate of ")
    assert "what is left is the slowest direction" in card
    assert events.Tensors(f"{quantities.NEURONS_CARD}/text_summary")


def test_adam_and_a_probe_that_is_a_part_are_refused_by_name(tmp_path: Path) -> None:
    def told(module: pl.LightningModule, **options: Any) -> str:
        monitor = ComplexityMonitor([LocalRecovery(examples=2, **options)], every_n_steps=5, probe=ProbeSet(128))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(module, [monitor], tmp_path, max_epochs=1)
        return " ".join(str(w.message) for w in caught if "lightning_cx" in str(w.message))

    words = told(Classifier())
    assert "recovery/predicted_rate" in words
    assert "2 of 160 of training examples, which determine at most 10 of" in words

    teacher, x, y = problem()

    class ByAdam(Student):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    monitor = ComplexityMonitor([LocalRecovery()], every_n_steps=1, probe=ProbeSet(150), strict=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = DataLoader(TensorDataset(x, y), batch_size=150)
        fit(ByAdam(teacher, x, 0.0), [monitor], tmp_path, data=data, max_epochs=2, precision="64-true")
    assert any("defined for SGD, and the optimizer is Adam" in str(w.message) for w in caught)


def test_a_resumed_run_goes_on_with_the_losses_that_it_had(tmp_path: Path) -> None:
    teacher, x, y = problem()
    rate = 0.9 / float(gauss_newton(teacher, x)[0][-1])

    def run(epochs: int, ckpt: str | None = None) -> pl.Trainer:
        monitor = ComplexityMonitor([LocalRecovery()], every_n_steps=2, probe=ProbeSet(150), strict=True)
        data, options = DataLoader(TensorDataset(x, y), batch_size=150), {"precision": "64-true"}
        return fit(Student(teacher, x, rate), [monitor], tmp_path, data, ckpt, max_epochs=epochs, **options)

    run(60).save_checkpoint(tmp_path / "sixty.ckpt")
    resumed, whole = run(120, str(tmp_path / "sixty.ckpt")), run(120)
    for tag in (*LAW, *LOCAL):
        expected = float(whole.callback_metrics[tag])
        assert math.isfinite(expected)
        assert float(resumed.callback_metrics[tag]) == pytest.approx(expected, rel=1e-6)
