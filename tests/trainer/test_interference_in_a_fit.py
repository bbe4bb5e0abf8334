"""Interference, rates and controls in a real Trainer: logged, drawn, and refused by name."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fingerprint, fit, loader
from _models import Unread
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.instruments import GradientNoise, GradientSpectrum, Interference, SpectralBias, quantities

# Small random runs often have no significant signal, and the monitor says so once.
pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


def everything() -> list:
    return [
        GradientNoise(),
        GradientSpectrum(control="shuffle"),
        Interference(per_layer=True, control="shuffle"),
        Interference(on="probe", per_layer=True, control="shuffle"),
        SpectralBias(per_band=True, control="shuffle"),
    ]


def monitor(**options: Any) -> ComplexityMonitor:
    return ComplexityMonitor(**{"every_n_steps": 1, "probe": ProbeSet(size=128), "strict": True, **options})


def test_every_number_and_its_shuffled_twin_reach_the_event_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name=None)
    fit(Classifier(), [monitor(instruments=everything())], tmp_path, logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    scalars = set(events.Tags()["scalars"])
    for tag in (
        quantities.INTERFERENCE,
        quantities.PROBE_INTERFERENCE,
        quantities.RANK_CORRELATION,
        quantities.PROBE_INTERFERENCE_P,
    ):
        layers = {logged for logged in scalars if logged.startswith(f"{tag}_layers/")}
        assert {tag, quantities.shuffled(tag)} <= scalars
        assert any(layer.endswith("_shuffled") for layer in layers)
        assert len(layers) >= 4
    for tag in (
        quantities.WHITENESS,
        quantities.fitted_fraction(3),
        quantities.decay_rate(3),
        quantities.RESIDUAL_MEDIAN,
    ):
        assert {tag, quantities.shuffled(tag)} <= scalars
    assert quantities.shuffled(quantities.GRADIENT_NORM) not in scalars
    pictures = set(events.Tags()["images"])
    assert {quantities.BAND_DECAY, quantities.GRADIENT_SPECTRUM, quantities.PROBE_GRADIENT_SPECTRUM} <= pictures


def test_one_argument_adds_the_control_to_the_default_instruments(tmp_path: Path) -> None:
    trainer = fit(Classifier(), [monitor(control="shuffle")], tmp_path, max_epochs=1)
    logged = set(trainer.callback_metrics)
    for tag in (quantities.GRADIENT_MEDIAN, quantities.RESIDUAL_MEDIAN, quantities.WHITENESS):
        assert quantities.shuffled(tag) in logged
    with pytest.raises(ValueError, match="to the instruments themselves"):
        ComplexityMonitor(instruments=[SpectralBias()], control="shuffle")
    with pytest.raises(ValueError, match="got 'scramble'"):
        ComplexityMonitor(control="scramble")  # type: ignore[arg-type]


def test_the_default_set_stays_near_twenty_five_numbers(tmp_path: Path) -> None:
    whole = ComplexityMonitor(every_n_steps=1, strict=True)
    trainer = fit(Classifier(), [whole], tmp_path, data=loader(512), max_epochs=1)
    ours = [tag for tag in trainer.callback_metrics if "/" in tag]
    assert len(ours) <= 27, ours


def test_gradients_on_the_probe_that_cannot_be_read_are_refused_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    callback = ComplexityMonitor(
        every_n_steps=2, probe=ProbeSet(size=128), instruments=[Interference(on="probe"), SpectralBias()]
    )
    with pytest.warns(UserWarning, match="gradients on the probe are off.*UnreadFunctionBackward") as seen:
        trainer = fit(Classifier(net=net), [callback], tmp_path)
    assert sum("gradients on the probe" in str(w.message) for w in seen) == 1
    assert quantities.RESIDUAL_MEDIAN in trainer.callback_metrics
    assert quantities.PROBE_INTERFERENCE not in trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:lightning_cx. unsupported")
def test_a_layer_that_is_replayed_has_numbers_of_its_own_as_well(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), Unread(), nn.Linear(16, 5))
    trainer = fit(Classifier(net=net), [monitor(instruments=[Interference(per_layer=True)])], tmp_path, max_epochs=1)
    assert math.isfinite(trainer.callback_metrics[quantities.of_layer(quantities.INTERFERENCE, "net.2.1")])


def test_the_network_learns_simple_functions_and_the_control_does_not_follow(tmp_path: Path) -> None:
    trainer = fit(Classifier(), [monitor(control="shuffle")], tmp_path, max_epochs=4)
    seen = trainer.callback_metrics
    assert seen[quantities.SPECTRAL_BIAS_INDEX].isnan() or seen[quantities.SPECTRAL_BIAS_INDEX] > 0
    assert seen[quantities.RESIDUAL_MEDIAN] < seen[quantities.shuffled(quantities.RESIDUAL_MEDIAN)]
    assert torch.isfinite(seen[quantities.HIGH_COMPLEXITY_DOMINANCE])


@pytest.mark.parametrize("error", [ZeroDivisionError, TypeError, RuntimeError, KeyError])
def test_features_that_fail_on_a_batch_do_not_end_the_training(error: type[Exception], tmp_path: Path) -> None:
    def features(batch: Any) -> torch.Tensor:
        raise error("of the user's")

    def run(callbacks: list) -> dict[str, str]:
        pl.seed_everything(3)
        return fingerprint(fit(Classifier(), callbacks, tmp_path))

    probe = ProbeSet(128, features=features)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        watched = run([ComplexityMonitor([Interference(), GradientNoise()], every_n_steps=1, probe=probe)])
    assert watched == run([])
    told = [str(w.message) for w in seen if "features of a batch" in str(w.message)]
    assert len(told) == 2  # the failure with its cause, and that it is switched off
    assert error.__name__ in told[0]
    strict = ComplexityMonitor([Interference()], every_n_steps=1, probe=probe, strict=True)
    with pytest.raises(error):
        run([strict])


@pytest.mark.timing
def test_a_probe_whose_gradients_share_the_budget_keeps_to_it(tmp_path: Path) -> None:
    callback = ComplexityMonitor([Interference(on="probe", examples=128)], overhead_budget=0.3, probe=ProbeSet(128))
    trainer = fit(Classifier(), [callback], tmp_path, max_epochs=60)
    assert quantities.PROBE_INTERFERENCE in trainer.callback_metrics
    assert callback.overhead < 0.45


def test_a_checkpoint_of_another_version_is_no_reason_to_lose_the_run(tmp_path: Path) -> None:
    trainer = fit(Classifier(), [monitor(instruments=everything(), every_n_steps=3)], tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("ComplexityMonitor"))
    checkpoint["callbacks"][key]["instruments"] = [{} for _ in everything()]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    options = {"max_epochs": 2, "ckpt_path": str(tmp_path / "old.ckpt")}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        resumed = fit(
            Classifier(), [monitor(instruments=everything(), every_n_steps=3, strict=False)], tmp_path, **options
        )
    told = [str(w.message) for w in seen if "starts afresh" in str(w.message)]
    assert len(told) == len(everything())
    assert resumed.current_epoch == 2
    assert quantities.RESIDUAL_MEDIAN in resumed.callback_metrics
    with pytest.raises(KeyError):
        fit(Classifier(), [monitor(instruments=everything(), every_n_steps=3)], tmp_path, **options)
