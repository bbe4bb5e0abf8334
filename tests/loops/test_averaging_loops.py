"""Weights that are averaged beside us: nothing is disturbed, and who sets the final weights is said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from _lightning import Classifier, loader
from _loops import undisturbed
from _noisy import Fit, Weights, batches, regression, same, trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim.swa_utils import AveragedModel

from lightning_cx import ComplexityEarlyStopping, SpectralRisk


class OwnWeightAveraging(pl.Callback):
    """As people write it themselves."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._average_model = AveragedModel(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._average_model.update_parameters(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.load_state_dict(self._average_model.module.state_dict())


AVERAGES: dict[str, Callable[[], pl.Callback]] = {
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(swa_lrs=3e-3, swa_epoch_start=1),
    "OwnWeightAveraging": OwnWeightAveraging,
}
AFTER_A_STOP = ["OwnWeightAveraging"]  # which put their average in whenever a fit ends
if hasattr(callbacks, "EMAWeightAveraging"):  # from Lightning 2.6 on
    AVERAGES["WeightAveraging"] = lambda: callbacks.WeightAveraging()
    AVERAGES["EMAWeightAveraging"] = lambda: callbacks.EMAWeightAveraging(decay=0.9)
    AFTER_A_STOP += ["WeightAveraging", "EMAWeightAveraging"]


@pytest.mark.parametrize("order", ["in front of us", "behind us"])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_beside_us_is_the_same_as_without_us(kind: str, order: str, tmp_path: Path) -> None:
    class Validated(Classifier):
        """Validates within the epoch, where averages take the place of the weights for a while."""

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.net(batch[0]).mean())

    seen = undisturbed(
        partial(Validated, dropout=0.1),
        tmp_path,
        **{"front" if order == "in front of us" else "behind": lambda: [AVERAGES[kind]()]},
        data=pl.LightningDataModule.from_datasets(loader().dataset, loader().dataset, batch_size=32),
        val_check_interval=2,
        max_epochs=3,
    )
    assert len(seen.samples) == len(seen.readings) == 15
    assert seen.stopping.watch.begun
    (told,) = seen.told
    place = "comes before" if order == "in front of us" else "comes after"
    assert f"{kind} {place} ComplexityEarlyStopping" in told
    assert "whichever is later in `callbacks` sets the final weights" in told


def test_the_epoch_that_only_renews_batch_norms_is_not_sampled(tmp_path: Path) -> None:
    seen = undisturbed(
        partial(Classifier, batch_norm=True),
        tmp_path,
        front=lambda: [AVERAGES["StochasticWeightAveraging"]()],
        max_epochs=3,
        strict=False,
    )
    assert seen.trainer.fit_loop.epoch_loop.total_batch_idx == 19  # a fourth epoch, without a backward
    assert len(seen.samples) == 15
    assert len(seen.readings) == 20
    assert seen.stopping.watch.begun


def stopped_with(kind: str, folder: Path, behind: bool, restore_best: bool = True) -> tuple[bool, bool]:
    """Whether a run that was stopped ends with the average, and whether with the best weights."""
    soon = SpectralRisk(patience=2, z=0.5, doubling=False)
    stopping, weights, module = ComplexityEarlyStopping(soon, restore_best=restore_best, strict=True), Weights(), Fit()
    beside = AVERAGES[kind]()
    pair = [stopping, beside] if behind else [beside, stopping]
    trainer([weights, *pair], folder, max_epochs=1000).fit(module, batches(regression()))
    assert stopping.stopped_step is not None
    assert stopping.best_step is not None
    last, average = dict(module.state_dict()), beside._average_model  # type: ignore[attr-defined]
    average = getattr(average, "module", average)
    return same(last, dict(average.state_dict())), same(last, weights.after[stopping.best_step])


@pytest.mark.parametrize("kind", AFTER_A_STOP)
def test_the_last_of_the_two_sets_the_final_weights_where_training_is_stopped(kind: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="may replace the best weights by its average"):
        assert stopped_with(kind, tmp_path, behind=True) == (True, False)
    with pytest.warns(UserWarning, match="the restored best weights will replace its average"):
        assert stopped_with(kind, tmp_path, behind=False) == (False, True)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", AFTER_A_STOP)
def test_without_restore_best_the_average_stays_in_either_order(kind: str, behind: bool, tmp_path: Path) -> None:
    assert stopped_with(kind, tmp_path, behind, restore_best=False) == (True, False)  # warnings are errors


@pytest.mark.parametrize("behind", [False, True])
def test_lightnings_swa_puts_no_average_in_before_its_last_epoch(behind: bool, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="StochasticWeightAveraging comes"):
        assert stopped_with("StochasticWeightAveraging", tmp_path, behind) == (False, True)


def test_an_average_under_another_name_is_recognised_by_what_it_derives_from(tmp_path: Path) -> None:
    class Slowly(StochasticWeightAveraging):
        """A name of the user's own."""

    with pytest.warns(UserWarning, match="Slowly comes after ComplexityEarlyStopping"):
        trainer([ComplexityEarlyStopping(strict=True), Slowly(3e-3)], tmp_path, max_epochs=2, max_steps=8).fit(
            Fit(), batches(regression())
        )
