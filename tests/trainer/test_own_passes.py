"""Instruments that make passes of their own: each at its own time, with all that a view offers, without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, Stream, fingerprint, fit, images, loader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, GradientSpectrum, Instrument, Needs, Reading, StepSize
from lightning_cx.instruments.step_size import EDGE
from lightning_cx.probe import ProbePasses


class Everything(Instrument):
    """Makes every pass that a view offers."""

    def __init__(self, every_n_steps: int | None = None, fails: bool = False) -> None:
        self.every_n_steps, self.fails = every_n_steps, fails
        self.reset()

    def reset(self) -> None:
        self.steps: list[int] = []

    @property
    def needs(self) -> Needs:
        return Needs(passes=3, every_n_steps=self.every_n_steps)

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        view = passes
        self.steps.append(step)
        if self.fails:
            raise RuntimeError("no pass")
        self.training_examples, self.optimizer = view.training_examples, view.optimizer
        doubled = {name: 2 * value for name, value in view.parameters().items()}
        with view.at(doubled):
            other = view.loss()
        jacobian = view.jacobian(20)
        with view.hessian(40) as products:
            curvature = float(products(products.gradient) @ products.gradient)
        active = float(view.activations(20)[list(view.activations(20))[-1]].mean())
        gram = view.gradients(40, projections=4)
        assert gram.gram is not None
        numbers = {"loss": view.loss(), "other": other, "curvature": curvature, "active": active}
        numbers |= {"trace": float(jacobian.gram.trace()), "gram": float(gram.gram.mean())}
        return Reading({f"own/{name}": value for name, value in numbers.items()})


class Average(Instrument):
    """Adds up the parameters that it is shown."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.count = 0

    def on_parameters(self, step: int, parameters: Mapping[str, Tensor]) -> Reading:
        for name, value in parameters.items():
            self.total[name] = self.total.get(name, torch.zeros_like(value)) + value
        self.count += 1
        return Reading()


class Naive(pl.Callback):
    """The same by hand."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            for name, value in pl_module.named_parameters():
                self.total[name] = self.total.get(name, torch.zeros_like(value)) + value.detach()


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(3)
    return Classifier(**options)


def test_every_pass_of_a_view_leaves_training_bit_for_bit_as_it_is(tmp_path: Path) -> None:
    own = Everything()
    plain = fingerprint(fit(classifier(dropout=0.3, batch_norm=True), [], tmp_path / "plain"))
    monitor = ComplexityMonitor([own, Average()], every_n_steps=2, strict=True)
    trainer = fit(classifier(dropout=0.3, batch_norm=True), [monitor], tmp_path / "with")
    assert fingerprint(trainer) == plain
    assert own.steps == [0, 2, 4, 6, 8]
    assert all(tag in trainer.callback_metrics for tag in ("own/loss", "own/curvature", "own/trace", "own/gram"))
    assert own.training_examples == 160
    assert own.optimizer is trainer.optimizers[0]


def test_the_loss_of_a_view_is_that_of_the_weights_after_the_step(tmp_path: Path) -> None:
    own, module = Everything(every_n_steps=1), classifier()
    trainer = fit(module, [ComplexityMonitor([own], every_n_steps=100, probe=ProbeSet(160))], tmp_path, max_steps=3)
    x, y = images().tensors
    with torch.no_grad():
        expected = float(F.cross_entropy(module.eval().net(x), y))
    assert float(trainer.callback_metrics["own/loss"]) == pytest.approx(expected, rel=1e-5)
    assert own.steps == [0, 1, 2]  # its own period, not the monitor's


def test_parameters_are_shown_once_after_every_optimizer_step(tmp_path: Path) -> None:
    average, naive = Average(), Naive()
    monitor = ComplexityMonitor([average], every_n_steps=1, strict=True)
    fit(classifier(), [monitor, naive], tmp_path, accumulate_grad_batches=2)
    assert average.count == naive.steps == 6
    assert all(torch.equal(average.total[name], naive.total[name]) for name in naive.total)


@pytest.mark.timing
def test_each_instrument_with_passes_has_an_account_of_its_own_and_the_budget_holds(tmp_path: Path) -> None:
    own, monitor = Everything(), None
    monitor = ComplexityMonitor([GradientSpectrum(), own, Average()], overhead_budget=0.2)
    fit(classifier(), [monitor], tmp_path, max_epochs=60, data=loader(320))
    assert monitor._session is not None
    accounts = monitor._session.ledger.accounts
    assert {"gradients", "Everything", "the parameters"} <= set(accounts)
    assert accounts["Everything"].count == len(own.steps) >= 1
    assert monitor.overhead < 0.3  # at most one reading over


def test_one_that_fails_is_told_and_switched_off_and_the_others_go_on(tmp_path: Path) -> None:
    own, average = Everything(fails=True), Average()
    failed = pytest.warns(UserWarning, match="Everything failed, training continues: RuntimeError: no pass")
    with failed, pytest.warns(UserWarning, match="Everything is disabled after 3 failures in a row"):
        fit(classifier(), [ComplexityMonitor([own, average], every_n_steps=1)], tmp_path)
    assert len(own.steps) == 3
    assert average.count == 10
    with pytest.raises(RuntimeError, match="no pass"):
        fit(classifier(), [ComplexityMonitor([own], every_n_steps=1, strict=True)], tmp_path)


def test_a_stream_is_passed_once_its_examples_have_come_by(tmp_path: Path) -> None:
    own = Everything(every_n_steps=1)
    monitor = ComplexityMonitor([own], every_n_steps=1, probe=ProbeSet(128), strict=True)
    fit(classifier(), [monitor], tmp_path, data=DataLoader(Stream(), batch_size=32))
    assert own.steps == [3, 4, 5, 6, 7, 8, 9]
    assert own.training_examples is None


def test_under_manual_optimisation_passes_are_off_with_what_to_do(tmp_path: Path) -> None:
    class ByHand(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    own = Everything(every_n_steps=1)
    with pytest.warns(UserWarning, match=r"the probe is off: .* pass ProbeSet\(loss_fn=\.\.\.\)"):
        fit(ByHand(), [ComplexityMonitor([own], every_n_steps=1)], tmp_path)
    assert not own.steps

    def loss_fn(module: Any, batch: Any) -> Tensor:
        return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")

    probe = ProbeSet(128, loss_fn=loss_fn)
    fit(ByHand(), [ComplexityMonitor([own], every_n_steps=1, probe=probe, strict=True)], tmp_path)
    assert own.steps == list(range(10))


class Labels(Instrument):
    """Remembers the targets that it is shown."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[Tensor | None] = []

    @property
    def needs(self) -> Needs:
        return Needs(targets=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        self.seen.append(batch.targets)
        return Reading()


def test_targets_of_a_batch_come_beside_its_gradients(tmp_path: Path) -> None:
    labels = Labels()
    fit(
        classifier(), [ComplexityMonitor([labels], every_n_steps=1)], tmp_path, data=loader(shuffle=False), max_epochs=1
    )
    expected = [F.one_hot(part) for part in images().tensors[1].split(32)]
    assert all(torch.equal(seen, one) for seen, one in zip(labels.seen, expected, strict=True))


def test_targets_that_cannot_be_told_are_named_once(tmp_path: Path) -> None:
    class Alone(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

    labels = Labels()
    data = DataLoader(TensorDataset(images().tensors[0]), batch_size=32)
    with pytest.warns(UserWarning, match="the targets of a batch are not known: ") as told:
        fit(Alone(), [ComplexityMonitor([labels], every_n_steps=1)], tmp_path, data=data)
    assert sum("targets of a batch" in str(warning.message) for warning in told) == 1
    assert labels.seen == [None] * 10


class Alarmed(Instrument):
    """Warns at every step."""

    @property
    def needs(self) -> Needs:
        return Needs(norms=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        return Reading(warnings={"own/alarm": f"step {step} is too large"})


def test_what_an_instrument_warns_of_is_told_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is too large") as told:
        fit(classifier(), [ComplexityMonitor([Alarmed()], every_n_steps=1)], tmp_path)
    assert [str(w.message) for w in told if "too large" in str(w.message)] == ["lightning_cx: step 0 is too large"]


class Shared(Classifier):
    """Two optimizers, each with a part of the parameters, on one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.manual_backward(F.cross_entropy(self.net(x), y))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        first, *others = self.parameters()
        return [torch.optim.SGD([first], lr=1e-6), torch.optim.SGD(others, lr=0.3)]


def loss_of_shared(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module.net(batch[0]), batch[1])  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:lightning_cx. .*nan:UserWarning")
def test_where_two_optimizers_share_a_model_no_ratio_of_the_first_alone_is_given(tmp_path: Path) -> None:
    torch.manual_seed(3)
    step_size = StepSize(examples=32, rows=20)
    monitor = ComplexityMonitor([step_size], every_n_steps=5, probe=ProbeSet(128, loss_fn=loss_of_shared), strict=True)
    numbers = fit(Shared(), [monitor], tmp_path).callback_metrics
    assert float(numbers["step_size/sharpness"]) > 0
    assert torch.stack([numbers[name] for name in EDGE]).isnan().all()
    assert numbers["step_size/gauss_newton_edge"].isnan()
