"""Training stops when noise begins to be fitted, in loops of every kind, and the best weights come back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from _noisy import ByHand, Fit, Stream, Weights, batches, blobs, regression, same, trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler

from lightning_cx import (
    ComplexityEarlyStopping,
    HighComplexityDominance,
    ProbeSet,
    ResidualWhiteness,
    SpectralRisk,
)


def losses(module: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(module.net(batch[0]), batch[1], reduction="none").sum(1)


def run(folder: Path, module: Any = None, data: Any = None, batch_size: int = 64, **options: Any) -> Any:
    """Fit with the callback given as `stopping`, or the default one; weights after every step come along."""
    stopping = options.pop("stopping", None) or ComplexityEarlyStopping(strict=True)
    weights, module = Weights(), Fit() if module is None else module
    fitted = trainer([weights, stopping], folder, **options)
    fitted.fit(module, batches(regression() if data is None else data, batch_size))
    return fitted, module, stopping, weights


def soon() -> SpectralRisk:
    """Stops after few steps, where it is of no account how well."""
    return SpectralRisk(patience=2, z=0.5, doubling=False)


@pytest.mark.parametrize("rule", [SpectralRisk, HighComplexityDominance, ResidualWhiteness])
def test_training_stops_mid_epoch_when_noise_is_fitted(rule: type, tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(rule(), strict=True)
    fitted, module, _, weights = run(tmp_path, stopping=stopping)
    assert fitted.should_stop
    assert stopping.stopped_step == fitted.global_step < 1500
    assert stopping.best_step is not None
    assert stopping.best_step <= stopping.stopped_step
    assert same(dict(module.state_dict()), weights.after[stopping.best_step])


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_lowest_risk_and_far_better_than_the_last(tmp_path: Path) -> None:
    _, module, stopping, _ = run(tmp_path)
    test = regression(4000, noise=0.0, seed=99)
    kept = float(F.mse_loss(module.net(test.tensors[0]), test.tensors[1]).detach())
    never = ComplexityEarlyStopping(SpectralRisk(patience=10**6), restore_best=False)
    _, worn_out, _, _ = run(tmp_path, stopping=never)
    last = float(F.mse_loss(worn_out.net(test.tensors[0]), test.tensors[1]).detach())
    assert kept < 0.5 * last
    assert "standard errors above" in stopping.reason


def test_weights_at_the_stop_stay_without_restore_best(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(soon(), restore_best=False, strict=True)
    fitted, module, _, weights = run(tmp_path, stopping=stopping)
    assert same(dict(module.state_dict()), weights.after[fitted.global_step])
    assert stopping.kept.state_dict()["weights"] == {}


def test_a_check_at_the_end_of_each_epoch_stops_between_epochs(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(every_n_steps=4, strict=True)
    fitted, _, _, _ = run(tmp_path, stopping=stopping)  # 256 examples in batches of 64: 4 steps an epoch
    assert stopping.stopped_step is not None
    assert stopping.stopped_step % 4 == 0
    assert stopping.best_step is not None
    assert stopping.best_step % 4 == 0
    assert fitted.current_epoch == stopping.stopped_step / 4


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"lr": 0.05, "momentum": 0.9}),
        ("AdamW", {}),
        ("LBFGS", {"lr": 0.2, "max_iter": 2}),
        ("RMSprop", {"lr": 1e-3}),
    ],
)
def test_any_optimizer(optimizer: str, options: dict[str, Any], tmp_path: Path) -> None:
    module = Fit(optimizer=optimizer, **options)
    size = 256 if optimizer == "LBFGS" else 32
    stopping = ComplexityEarlyStopping(soon(), strict=True)
    run(tmp_path, module, batch_size=size, max_steps=4000, stopping=stopping)
    assert stopping.stopped_step is not None
    assert "standard errors above" in stopping.reason


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_flipped_labels_stop_a_classifier(smoothing: float, tmp_path: Path) -> None:
    module = Fit(inputs=4, outputs=3, smoothing=smoothing)
    _, _, stopping, _ = run(tmp_path, module, blobs())
    assert stopping.stopped_step is not None
    assert stopping.best_step is not None
    clean = blobs(4000, flipped=0.0, seed=5)
    error = (module.net(clean.tensors[0]).argmax(1) != clean.tensors[1]).float().mean()
    assert error < 0.1


def test_manual_optimisation_with_two_optimizers(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(soon(), probe=ProbeSet(loss_fn=losses), strict=True)
    fitted, module, _, weights = run(tmp_path, ByHand(), stopping=stopping, max_steps=4000)
    assert stopping.stopped_step == fitted.global_step < 4000
    assert stopping.best_step is not None
    assert same(dict(module.state_dict()), weights.after[stopping.best_step])


def test_gradient_accumulation_checks_once_for_each_optimizer_step(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(SpectralRisk(), every_n_steps=1, strict=True)
    seen: list[int] = []
    check = stopping.watch.check
    stopping.watch.check = lambda step, reading: (seen.append(step), check(step, reading))[1]  # type: ignore[method-assign]
    run(tmp_path, stopping=stopping, accumulate_grad_batches=4, max_steps=12)
    assert seen == list(range(13))


def test_a_stream_stops_as_well(tmp_path: Path) -> None:
    indexed = ComplexityEarlyStopping(SpectralRisk(), every_n_steps=4, strict=True)
    run(tmp_path, data=regression(), stopping=indexed, max_steps=8)
    for probe in (None, ProbeSet(size=128)):
        stopping = ComplexityEarlyStopping(soon(), every_n_steps=4, probe=probe, strict=True)
        fitted, module, _, weights = run(tmp_path, data=Stream(regression()), stopping=stopping)
        assert stopping.stopped_step == fitted.global_step < 1500
        assert stopping.best_step is not None
        assert same(dict(module.state_dict()), weights.after[stopping.best_step])
        initial = stopping.watch.state_dict()["initial"]
        shown = indexed.watch.state_dict()["initial"][: len(initial)]
        torch.testing.assert_close(initial, shown)  # the untrained weights saw it, although they were gone by then


@pytest.mark.parametrize(("least", "options"), [(900, {"min_steps": 900}), (800, {"min_epochs": 200})])
def test_training_goes_on_until_the_minimum_is_reached(least: int, options: dict[str, int], tmp_path: Path) -> None:
    _, _, early, _ = run(tmp_path)
    fitted, module, late, weights = run(tmp_path, **options)
    assert early.stopped_step is not None
    assert late.stopped_step is not None
    assert early.stopped_step < least <= late.stopped_step == fitted.global_step
    assert late.best_step == early.best_step
    assert same(dict(module.state_dict()), weights.after[late.best_step])


def test_clean_targets_do_not_stop_a_run_that_still_improves(tmp_path: Path) -> None:
    fitted, module, stopping, weights = run(tmp_path, data=regression(noise=0.0), max_steps=1500)
    test = regression(2000, noise=0.0, seed=9)
    fresh = Fit()

    def error(state: dict[str, torch.Tensor]) -> float:
        fresh.load_state_dict(state)
        return float(F.mse_loss(fresh.net(test.tensors[0]), test.tensors[1]).detach())

    later = min(error(weights.after[step]) for step in range(fitted.global_step - 200, fitted.global_step + 1, 10))
    assert stopping.stopped_step is None
    assert error(dict(module.state_dict())) < 1.6 * later  # the last weights jitter, as Adam's do


def test_it_says_so_like_lightning_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for verbose in (True, False):
        caplog.clear()
        stopping = ComplexityEarlyStopping(soon(), verbose=verbose, strict=True)
        with caplog.at_level(logging.INFO):
            run(tmp_path, stopping=stopping)
        said = [r.getMessage() for r in caplog.records if "lightning_cx" in r.getMessage()]
        stops = [words for words in said if f"Signaling Trainer to stop after {stopping.stopped_step}" in words]
        backs = [words for words in said if f"after {stopping.best_step} optimizer steps" in words]
        assert (len(stops), len(backs)) == ((1, 1) if verbose else (0, 0))


def test_a_smoke_test_looks_but_does_not_stop(tmp_path: Path) -> None:
    fitted, module, stopping, weights = run(tmp_path, fast_dev_run=3)
    assert stopping.stopped_step is None
    assert stopping.best_step is not None
    assert same(dict(module.state_dict()), weights.after[fitted.global_step])


def test_a_second_fit_of_another_model_starts_afresh(tmp_path: Path) -> None:
    stopping = ComplexityEarlyStopping(soon(), strict=True)
    _, _, first, _ = run(tmp_path, stopping=stopping)
    once = (first.stopped_step, first.best_step)
    _, _, again, _ = run(tmp_path, stopping=stopping)
    assert (again.stopped_step, again.best_step) == once


def test_the_same_model_in_another_trainer_starts_afresh(tmp_path: Path) -> None:
    stopping, module = ComplexityEarlyStopping(every_n_steps=1, strict=True), Fit()
    for _ in range(2):
        trainer([stopping], tmp_path, max_steps=5).fit(module, batches(regression()))
        assert [point[0] for point in stopping.watch.state_dict()["record"]["points"]["entries"]] == [0, 1, 2, 3, 4, 5]


class Notes(torch.utils.data.Dataset):
    """Notes which examples it was asked for."""

    def __init__(self) -> None:
        self.data, self.asked = regression(400), set()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.asked.add(int(index))
        return self.data[index]


@pytest.mark.parametrize("how", ["sampler", "limit_train_batches", "overfit_batches", "shuffled and limited"])
def test_only_examples_that_are_trained_on_are_looked_at(how: str, tmp_path: Path) -> None:
    data = Notes()
    some = SubsetRandomSampler(range(100, 300)) if how == "sampler" else None
    loader = DataLoader(data, batch_size=50, sampler=some, shuffle=how == "shuffled and limited")
    options = {"sampler": {}, "overfit_batches": {"overfit_batches": 4}}.get(how, {"limit_train_batches": 4})
    trainer([ComplexityEarlyStopping(strict=True)], tmp_path, max_steps=4, **options).fit(Fit(), loader)
    expected = {"sampler": range(100, 300), "shuffled and limited": range(400)}.get(how, range(200))
    assert data.asked == set(expected)


def test_other_callbacks_can_monitor_the_risk(tmp_path: Path) -> None:
    module = Fit()
    early = EarlyStopping("stopping/risk", patience=1, check_on_train_epoch_end=True)
    fitted = trainer([ComplexityEarlyStopping(SpectralRisk(patience=10**6), strict=True), early], tmp_path)
    fitted.fit(module, batches(regression()))
    assert early.stopped_epoch > 0


def test_wrong_configuration_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        ComplexityEarlyStopping(every_n_steps=0)
    with pytest.raises(TypeError, match="rule must be a StoppingRule"):
        ComplexityEarlyStopping(rule="risk")  # type: ignore[arg-type]
