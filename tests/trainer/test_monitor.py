"""What a user sees: values in every logger and in callback_metrics, and clear words where something cannot be seen."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, Stream, fit, images, loader
from _models import Convnet, Unread, cross_entropy, naive_rows, relative_error
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Needs, Reading
from lightning_cx.probe import ProbeReading

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")

EXPECTED = {
    "complexity/overhead",
    "complexity/gradient_median",
    "complexity/gradient_median_chance_low",
    "complexity/residual_energy",
    "complexity/residual_median",
    "complexity/residual_band_00",
    "complexity/residual_band_07",
    "complexity/spectral_bias_index",
    "gradient/norm",
    "gradient/noise_scale",
    "gradient/noise_scale_low",
    "gradient/noise_scale_high",
    "gradient/snr",
    "gradient/example_norm_p05",
    "gradient/example_norm_p50",
    "gradient/example_norm_p95",
    "gradient/participation_ratio",
}


@dataclass(frozen=True)
class Seen:
    """What an instrument was shown at one step."""

    step: int
    gradients: GradientSample | None = None
    batch: BatchView | None = None
    probe: ProbeReading | None = None


class Watch(Instrument):
    """Keeps what it was shown."""

    needs = Needs(features=True)

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def reset(self) -> None:
        self.seen.clear()

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        return self._keep(Seen(step, gradients, batch))

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        return self._keep(Seen(step, probe=probe))

    def _keep(self, seen: Seen) -> Reading:
        self.seen.append(seen)
        return Reading({"gradient/watch": float(len(self.seen))})


def watched(module: pl.LightningModule, folder: Path, **options: Any) -> list[Seen]:
    watch = Watch()
    monitor = ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(size=128), strict=True)
    fit(module, [monitor], folder, **{"max_epochs": 1, **options})
    return watch.seen


def monitor(**options: Any) -> ComplexityMonitor:
    return ComplexityMonitor(**{"every_n_steps": 1, "probe": ProbeSet(size=128), **options})


def steps_of(monitor: ComplexityMonitor) -> list[int]:
    """Steps at which residuals were read."""
    return [step for step, _ in monitor.instruments[2].state_dict()["columns"]["entries"]]


def test_every_logger_and_callback_metrics_get_the_values(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b"), TensorBoardLogger(tmp_path, name="t")]
    trainer = fit(Classifier(), [monitor(strict=True)], tmp_path, logger=loggers)
    assert set(trainer.callback_metrics) >= EXPECTED
    assert len([tag for tag in trainer.callback_metrics if "/" in tag]) <= 25
    for logger in loggers[:2]:
        header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
        assert set(header) >= EXPECTED - {"complexity/spectral_bias_index", "gradient/noise_scale_high"}  # nan and inf


def test_the_gram_matrix_is_that_of_the_batch_at_the_weights_of_the_step(tmp_path: Path) -> None:
    truths: list[Tensor] = []

    class Reference(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if torch.is_grad_enabled() and len(batch[1]) == 32 and self.training:
                rows = naive_rows(self.net, cross_entropy, *batch)
                truths.append(rows @ rows.T)
            return super().training_step(batch, batch_idx)

    observations = [o for o in watched(Reference(), tmp_path) if o.gradients is not None]
    assert len(observations) == len(truths) == 5
    for observation, truth in zip(observations, truths, strict=True):
        assert observation.gradients is not None
        assert observation.gradients.status == "exact"
        assert relative_error(observation.gradients.gram, truth) < 1e-5


@pytest.mark.parametrize("accumulate", [1, 4])
def test_accumulation_is_divided_out_and_sampled_once_for_each_optimizer_step(accumulate: int, tmp_path: Path) -> None:
    module = Classifier()
    start = naive_rows(module.net, cross_entropy, *images(160)[:32])
    data = DataLoader(images(160), batch_size=32)
    observations = watched(module, tmp_path, data=data, accumulate_grad_batches=accumulate)
    gradients = [o.gradients for o in observations if o.gradients is not None]
    assert len(gradients) == (5 if accumulate == 1 else 2)
    assert relative_error(gradients[0].gram, start @ start.T) < 1e-5


def test_a_sum_over_examples_is_recognised_and_divided_out(tmp_path: Path) -> None:
    class Summing(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1], reduction="sum")

    module = Summing()
    start = naive_rows(module.net, cross_entropy, *images(160)[:32])
    observations = watched(module, tmp_path, data=DataLoader(images(160), batch_size=32))
    first = next(o.gradients for o in observations if o.gradients is not None)
    assert relative_error(first.gram, start @ start.T) < 1e-5
    residuals = [o.probe.residuals for o in observations if o.probe is not None]
    assert 0 < residuals[0].square().sum(1).mean() < 2


@pytest.mark.filterwarnings("ignore:lightning_cx. per-example gradients. rows are contributions")
def test_class_weights_couple_the_examples_and_are_named(tmp_path: Path) -> None:
    class Weighted(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1], weight=torch.tensor([1.0, 2, 3, 4, 5]))

    with pytest.warns(UserWarning, match="examples count unequally"):
        observations = watched(Weighted(), tmp_path)
    assert next(o.gradients for o in observations if o.gradients is not None).status == "contribution"
    assert next(o.probe for o in observations if o.probe is not None).coupled


def test_residuals_are_onehot_minus_softmax_in_eval_mode(tmp_path: Path) -> None:
    module = Classifier(dropout=0.5)
    observations = watched(module, tmp_path)
    probe = [o.probe for o in observations if o.probe is not None][-1]
    indices = torch.randperm(160, generator=torch.Generator().manual_seed(0))[:128].sort().values
    x, y = images(160)[indices]
    with torch.no_grad():
        expected = F.one_hot(y, 5) - module.eval().net(x).softmax(1)
    torch.testing.assert_close(probe.residuals, expected.double(), rtol=1e-4, atol=1e-6)
    assert probe.source == "output of net"


def test_replay_reads_what_the_tap_refuses(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    module = Classifier(net)
    start = naive_rows(module.net, cross_entropy, *images(160)[32:64])
    with pytest.warns(UserWarning, match="UnreadFunctionBackward of net.2.2.weight"):
        observations = watched(module, tmp_path, data=DataLoader(images(160), batch_size=32), max_steps=2)
    first = next(o.gradients for o in observations if o.gradients is not None)
    assert first.notes == ("read by replaying 32 examples one at a time",)
    assert first.gram.shape == start[:, :32].shape[:1] * 2


def test_equal_axes_are_settled_by_one_replayed_slice(tmp_path: Path) -> None:
    class Sequences(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (self.layer(batch[0]) - batch[1]).pow(2).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(128, 16, 8), torch.randn(128, 16, 8))
    module = Sequences()
    x, y = data[64:80]
    truth = naive_rows(module.layer, lambda m, x, y: (m(x) - y).pow(2).mean(), x, y)
    observations = watched(module, tmp_path, data=DataLoader(data, batch_size=16))
    grams = [o.gradients.gram for o in observations if o.gradients is not None]
    assert any(relative_error(gram, truth @ truth.T) < 1e-5 for gram in grams)


def test_a_stream_gives_its_first_examples_to_the_probe(tmp_path: Path) -> None:
    observations = watched(Classifier(), tmp_path, data=DataLoader(Stream(), batch_size=32), max_epochs=2)
    probes = [o.probe for o in observations if o.probe is not None]
    assert len(probes[0].residuals) == 128
    torch.testing.assert_close(probes[0].features, probes[-1].features)


def test_a_stream_that_ends_gives_all_its_examples_once(tmp_path: Path) -> None:
    watch = Watch()
    stream = DataLoader(Stream(144), batch_size=32)
    fit(Classifier(), [monitor(instruments=[watch], probe=ProbeSet(size=512), strict=True)], tmp_path, data=stream)
    probes = [o.probe for o in watch.seen if o.probe is not None]
    assert {len(probe.residuals) for probe in probes} == {144}
    assert len(probes) == 5  # from the second epoch on
    completes(tmp_path, Classifier(), "one epoch of the stream showed 96", data=DataLoader(Stream(96), batch_size=32))


def test_a_logger_that_fails_is_named_and_does_not_end_the_training(tmp_path: Path) -> None:
    class Full(CSVLogger):
        def log_metrics(self, metrics: dict, step: int | None = None) -> None:
            if any("/" in tag for tag in metrics):
                raise OSError("disk full")
            super().log_metrics(metrics, step)

    words = "logging to Full failed, training continues: OSError: disk full"
    completes(tmp_path, Classifier(), words, logger=Full(tmp_path))


def test_checkpoint_and_early_stopping_can_monitor_our_values(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="complexity/residual_energy", mode="min")
    stopping = EarlyStopping("gradient/norm", mode="max", patience=1, check_on_train_epoch_end=True)
    trainer = fit(Classifier(), [monitor(), checkpoint, stopping], tmp_path, enable_checkpointing=True, max_epochs=3)
    assert checkpoint.best_model_path
    assert trainer.current_epoch <= 3


def test_a_resumed_run_measures_on_the_same_probe_and_keeps_its_history(tmp_path: Path) -> None:
    first = monitor()
    trainer = fit(Classifier(), [first], tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = monitor()
    fit(Classifier(), [second], tmp_path, max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second.probe.indices == first.probe.indices
    state, resumed = first.instruments[2].state_dict(), second.instruments[2].state_dict()
    assert torch.equal(state["initial"], resumed["initial"])
    before, after = steps_of(first), steps_of(second)
    assert after[: len(before)] == before
    assert after == sorted(set(after))


def test_fast_dev_run_no_logger_and_sanity_check(tmp_path: Path) -> None:
    class Validated(Classifier):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    trainer = fit(Classifier(), [ComplexityMonitor(strict=True, probe=ProbeSet(size=128))], tmp_path, fast_dev_run=True)
    assert set(trainer.callback_metrics) >= EXPECTED
    trainer = fit(Classifier(), [monitor(strict=True)], tmp_path, logger=False)
    assert set(trainer.callback_metrics) >= EXPECTED
    module = Validated()
    trainer = fit(module, [monitor(strict=True)], tmp_path, data=loader(), max_epochs=1, num_sanity_val_steps=2)
    trainer.validate(module, loader(shuffle=False), verbose=False)


# What goes wrong, and what is said.


class Broken(GradientNoise.__mro__[1]):  # an Instrument
    """Fails at every step."""

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        raise ZeroDivisionError("on purpose")


def test_nan_in_many_batches_is_told_once(tmp_path: Path) -> None:
    x, y = images(160).tensors
    x = x.clone()
    x[torch.arange(0, 160, 9)] = float("nan")

    class Skipping(Classifier):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.zero_grad()

    data = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Skipping(), [monitor()], tmp_path, data=data, max_epochs=4)
    ours = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    assert sum("cannot be ordered" in text for text in ours) == 1
    assert len(ours) < 8, ours


def test_two_monitors_of_different_probes_live_side_by_side(tmp_path: Path) -> None:
    pair = [monitor(), monitor(probe=ProbeSet(size=144))]
    trainer = fit(Classifier(), pair, tmp_path, max_epochs=1)
    assert trainer.state.finished


def test_a_failing_instrument_warns_once_and_is_switched_off_after_three(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(Classifier(), [monitor(instruments=[GradientNoise(), Broken()])], tmp_path)
    ours = [str(w.message) for w in caught if "Broken" in str(w.message)]
    assert len(ours) == 2
    assert "Broken failed, training continues: ZeroDivisionError: on purpose" in ours[0]
    assert "disabled after 3 failures in a row" in ours[1]
    assert trainer.global_step == 10
    assert "gradient/norm" in trainer.callback_metrics


def test_strict_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        fit(Classifier(), [monitor(instruments=[Broken()], strict=True)], tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps must be at least 1, got 0"),
        ({"overhead_budget": 1.5, "every_n_steps": None}, ValueError, "between 0 and 1, got 1.5"),
        ({"instruments": []}, TypeError, "an empty list"),
        ({"instruments": ["noise"]}, TypeError, "Instrument objects, got .'str'."),
    ],
)
def test_wrong_configuration_says_what_to_do(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        monitor(**options)


def completes(tmp_path: Path, module: pl.LightningModule, message: str, **options: Any) -> pl.Trainer:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(module, options.pop("callbacks", None) or [monitor()], tmp_path, **options)
    ours = [str(w.message) for w in caught if str(w.message).startswith("lightning_cx")]
    assert len(ours) == len(set(ours))  # once each
    assert any(re.search(message, text) for text in ours), ours
    assert trainer.state.finished
    return trainer


def test_a_training_set_of_60_examples_is_too_small_for_a_probe(tmp_path: Path) -> None:
    trainer = completes(tmp_path, Classifier(), "at least 128 examples .* got a training set of 60", data=loader(60))
    assert "gradient/norm" in trainer.callback_metrics
    with pytest.raises(ValueError, match=r"at least 128 examples .* got 60: pass a larger size"):
        ProbeSet(size=60)


def test_labels_only_are_no_inputs(tmp_path: Path) -> None:
    class LabelsOnly(Classifier):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            labels = batch["label"]
            return F.cross_entropy(self.net(F.one_hot(labels, 100).float().view(-1, 1, 10, 10)), labels)

    data = [{"label": torch.tensor(i % 5)} for i in range(160)]
    trainer = completes(tmp_path, LabelsOnly(), "no inputs were found", data=DataLoader(data, batch_size=32))
    assert "gradient/noise_scale" in trainer.callback_metrics

    class Ids(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(F.one_hot(batch[0], 100).float().view(-1, 1, 10, 10)), batch[0])

    ids = TensorDataset(torch.arange(160) % 5)
    completes(tmp_path, Ids(), "one label or id per example", data=DataLoader(ids, batch_size=32))


def test_nan_in_a_batch_is_refused_and_the_next_batch_is_measured(tmp_path: Path) -> None:
    x, y = images(160).tensors
    x = x.clone()
    x[3] = float("nan")

    class Skipping(Classifier):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if any(not p.grad.isfinite().all() for p in self.parameters() if p.grad is not None):
                self.zero_grad()

    data = DataLoader(TensorDataset(x, y), batch_size=32)
    trainer = completes(tmp_path, Skipping(), "gradients of this batch are not finite", data=data, max_epochs=1)
    assert math.isfinite(trainer.callback_metrics["gradient/norm"])


def test_a_first_batch_that_tells_nothing_does_not_decide_what_the_rows_mean(tmp_path: Path) -> None:
    x, y = images(160).tensors
    x = x.clone()
    x[:2] = float("nan")

    class Skipping(Classifier):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.zero_grad()

    watch = Watch()
    completes(
        tmp_path,
        Skipping(),
        "features are NaN or infinite",
        data=DataLoader(TensorDataset(x, y), batch_size=32),
        max_epochs=1,
        callbacks=[monitor(instruments=[watch])],
    )
    seen = [o.gradients for o in watch.seen if o.gradients is not None]
    assert [sample.status for sample in seen] == ["contribution", "exact", "exact", "exact", "exact"]


def test_weights_that_diverge_do_not_switch_the_probe_off_for_good(tmp_path: Path) -> None:
    class Recovering(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.calls == 1:
                self.kept = self.net[2][0].weight.detach().clone()
                self.net[2][0].weight.data.fill_(torch.nan)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.calls == 3:
                for p in self.parameters():
                    p.data.normal_(0, 0.1)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.zero_grad()

    trainer = completes(tmp_path, Recovering(), "residuals are NaN or infinite: inputs are, or training diverged")
    assert math.isfinite(trainer.callback_metrics["complexity/residual_energy"])


def test_a_batch_of_one_shows_no_spread(tmp_path: Path) -> None:
    trainer = completes(
        tmp_path, Classifier(), "a batch of one example shows no spread", data=loader(160, batch_size=1), max_steps=3
    )
    assert math.isnan(trainer.callback_metrics["gradient/noise_scale"])
    assert trainer.callback_metrics["gradient/norm"] > 0


def test_an_unsupported_loss_is_named(tmp_path: Path) -> None:
    class NoOutput(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            """Uses weights beside the output of any module."""
            first = self.net[2][0]
            features = F.conv2d(batch[0], first.weight, first.bias, padding=1).mean((2, 3))
            return F.cross_entropy(features, batch[1])

    completes(tmp_path, NoOutput(), r"the probe is off: no output of a submodule .* pass ProbeSet\(loss_fn")


def test_manual_optimisation_is_tapped_but_not_replayed(tmp_path: Path) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    trainer = completes(tmp_path, Manual(), "cannot be run again, under manual optimisation")
    assert "gradient/noise_scale" in trainer.callback_metrics

    def losses(module: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(module.net(batch[0]), batch[1], reduction="none")

    explicit = monitor(probe=ProbeSet(size=128, loss_fn=losses), strict=True)
    trainer = fit(Manual(), [explicit], tmp_path)
    assert set(trainer.callback_metrics) >= EXPECTED


def test_a_module_without_parameters_is_named(tmp_path: Path) -> None:
    class Empty(pl.LightningModule):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    completes(tmp_path, Empty(), "no trainable parameter")


def test_batchnorm_with_a_layer_that_the_tap_cannot_read_is_off_with_the_reason(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    completes(tmp_path, Classifier(net), "replay does not help, .* BatchNorm, which needs more than one example")


def test_hooks_are_gone_after_an_exception_in_the_middle_of_a_sampled_step(tmp_path: Path) -> None:
    class Interrupted(Classifier):
        def on_before_backward(self, loss: Tensor) -> None:
            if self.calls > 3:
                raise RuntimeError("user code failed")

    watcher = monitor()
    with pytest.raises(RuntimeError, match="user code failed"):
        fit(Interrupted(), [watcher], tmp_path)
    assert watcher._session is not None
    assert watcher._session.backwards.samplers[0]._tap is None


def test_a_second_model_starts_from_nothing(tmp_path: Path) -> None:
    shared = monitor()
    fit(Classifier(), [shared], tmp_path, max_epochs=1)
    before = shared.instruments[2].state_dict()["initial"]
    fit(Classifier(Convnet()), [shared], tmp_path, max_epochs=1)
    assert steps_of(shared) == [0, 1, 2, 3, 4]
    assert not torch.equal(before, shared.instruments[2].state_dict()["initial"])
