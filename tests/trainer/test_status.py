"""What the per-example gradients of a fit mean is told once, in plain words, and stands in every sample."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _compiled import Plain, fresh_compiler, submodule
from _lightning import Classifier, fit, images, loader
from _models import Unread
from test_monitor import Watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample

__all__ = ["fresh_compiler"]

PREFIX = "lightning_cx: per-example gradients: "
OWN_LOSS = "each row is the derivative of the example's own loss"
SHARE = "each row is N times the example's share of the batch gradient"


class Told:
    """What a fit said: lines of information, warnings of ours, and the samples."""

    def __init__(self, module: pl.LightningModule, folder: Path, log: pytest.LogCaptureFixture, **options: Any) -> None:
        watch, level = Watch(), "INFO"
        monitor = ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(size=128))
        with warnings.catch_warnings(record=True) as caught, log.at_level(level):
            warnings.simplefilter("always")
            fit(module, [monitor], folder, **options)
        said = [record.getMessage() for record in log.records if record.levelname == level]
        self.lines = [line.removeprefix(PREFIX) for line in said if line.startswith(PREFIX)]
        ours = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
        self.warnings = [text for text in ours if "gradients" in text or "unsupported" in text]
        self.samples: list[GradientSample] = [o.gradients for o in watch.seen if o.gradients is not None]


def test_exact_is_information_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told(Classifier(), tmp_path, caplog)
    assert told.lines == [f"exact, read from the training's own backward (9 parameters); {OWN_LOSS}"]
    assert told.warnings == []
    assert {sample.status for sample in told.samples} == {"exact"}


class Loss(Classifier):
    """Any loss of scores and labels."""

    def __init__(self, loss: Any, **options: Any) -> None:
        super().__init__(**options)
        self.loss = loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])


def contrastive(scores: Tensor, labels: Tensor) -> Tensor:
    """Every example against all others of the batch."""
    scores = F.normalize(scores, dim=1)
    return F.cross_entropy(scores @ scores.T / 0.5, torch.arange(len(labels)))


COUPLED: dict[str, tuple[pl.LightningModule, str]] = {
    "class weights": (
        Loss(lambda s, y: F.cross_entropy(s, y, weight=torch.tensor([1.0, 2, 3, 4, 5]))),
        "rows are contributions, since examples count unequally",
    ),
    "contrastive": (Loss(contrastive), "rows are contributions, since the other examples of a batch change"),
    "a mean taken off": (
        Loss(lambda s, y: F.cross_entropy(s - s.mean(0), y)),
        "rows are contributions, since the other examples of a batch change",
    ),
    "BatchNorm in training mode": (
        Loss(F.cross_entropy, batch_norm=True),
        "rows are contributions, since BatchNorm in training mode couples the examples",
    ),
}


@pytest.mark.parametrize("case", COUPLED)
def test_coupled_examples_are_found_and_named(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, reason = COUPLED[case]
    told = Told(module, tmp_path, caplog)
    assert len(told.lines) == 1
    assert told.lines[0].startswith("contribution, read from the training's own backward")
    assert told.lines[0].endswith(SHARE)
    assert sum(reason in text for text in told.warnings) == 1
    assert {sample.status for sample in told.samples} == {"contribution"}
    assert all(any(reason in note for note in sample.notes) for sample in told.samples)


def test_a_sum_over_examples_is_exact_once_divided_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told(Loss(lambda s, y: F.cross_entropy(s, y, reduction="sum")), tmp_path, caplog)
    divided = "the loss is a sum over examples; it was divided out"
    assert told.lines == [f"exact, read from the training's own backward (9 parameters); {OWN_LOSS}; {divided}"]
    assert told.warnings == []
    assert {sample.status for sample in told.samples} == {"exact"}


def test_replay_is_told_with_what_the_tap_cannot_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    told = Told(Classifier(net), tmp_path, caplog)
    assert told.lines == [f"exact, 32 examples replayed one at a time (5 parameters); {OWN_LOSS}"]
    (warning,) = told.warnings
    assert warning.startswith("lightning_cx: unsupported: UnreadFunctionBackward of net.2.2.weight")
    assert "sampled steps replay the batch one example at a time instead" in warning


def test_what_cannot_be_read_at_all_is_told_once_and_leaves_no_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    told = Told(Classifier(net), tmp_path, caplog)
    assert told.lines == []
    assert told.samples == []
    (warning,) = told.warnings
    assert "per-example gradients are off: unsupported: UnreadFunctionBackward of net.2.3.weight" in warning


def test_a_loss_that_cannot_be_replayed_is_not_called_exact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))

    told = Told(Manual(), tmp_path, caplog)
    (line,) = told.lines
    assert line.startswith("unverified, read from the training's own backward")
    why = "under manual optimisation training_step steps the optimizer itself"
    assert line.endswith(f"a few examples could not be compared ({why})")


def test_a_batch_that_shows_nothing_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = images(160).tensors
    x = x.clone()
    x[:2] = float("nan")

    class Skipping(Classifier):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.zero_grad()

    told = Told(Skipping(), tmp_path, caplog, data=DataLoader(TensorDataset(x, y), batch_size=32), max_epochs=1)
    assert [line.split(",")[0] for line in told.lines] == ["exact"]
    assert [sample.status for sample in told.samples] == ["contribution", "exact", "exact", "exact", "exact"]


def test_a_second_fit_is_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        assert len(Told(Classifier(), tmp_path, caplog, data=loader(), max_epochs=1).lines) == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_parts_are_named_in_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = Told(submodule("aot_eager"), tmp_path, caplog, max_epochs=1).lines
    assert line.endswith(f"{OWN_LOSS}; sampled steps run without torch.compile (net.forward)")
    whole = torch.compile(Plain(), backend="aot_eager")
    caplog.clear()
    (line,) = Told(whole, tmp_path, caplog, max_epochs=1).lines
    assert line.endswith("without torch.compile (forward, training_step, validation_step, ...)")
