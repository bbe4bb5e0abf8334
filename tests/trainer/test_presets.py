"""Sets of instruments by name: complete, and within the budget."""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier, fit
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

import lightning_cx.instruments
from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.callbacks.budget import GRADIENTS, PROBE
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, Instrument, Kernel, Needs, Reading, StepSize, TailIndex

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import DigitClassifier, noisy_digits  # type: ignore[import-not-found]

PRESETS = ["default", "noise", "theory", "all"]


def names(monitor: ComplexityMonitor) -> set[str]:
    return {type(instrument).__name__ for instrument in monitor.instruments}


def test_all_holds_every_instrument_there_is() -> None:
    there = vars(lightning_cx.instruments).items()
    known = {name for name, kind in there if inspect.isclass(kind) and issubclass(kind, Instrument)} - {"Instrument"}
    assert names(ComplexityMonitor("all")) == known
    assert len(known) >= 13


def test_the_sets_lie_in_each_other_and_default_is_what_comes_without_a_name() -> None:
    assert names(ComplexityMonitor()) == names(ComplexityMonitor("default"))
    for name in PRESETS:
        assert names(ComplexityMonitor(name)) <= names(ComplexityMonitor("all"))
    assert "GradientNoise" in names(ComplexityMonitor("noise")) & names(ComplexityMonitor("default"))


def test_each_monitor_has_instruments_of_its_own() -> None:
    one, other = ComplexityMonitor("all"), ComplexityMonitor("all")
    assert not {id(i) for i in one.instruments} & {id(i) for i in other.instruments}


def test_an_unknown_set_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="no preset 'evrything': choose one of 'default', 'noise', 'theory', 'all'"):
        ComplexityMonitor("evrything")  # type: ignore[arg-type]


def test_two_of_a_kind_that_make_passes_would_share_tags_and_are_refused() -> None:
    with pytest.raises(ValueError, match="StepSize and StepSize#2 both log step_size/sharpness"):
        ComplexityMonitor([StepSize(), StepSize(every_n_steps=5)])
    assert len(ComplexityMonitor([Kernel(), Kernel(on="probe")]).instruments) == 2


def test_a_control_goes_to_the_instruments_of_a_set(tmp_path: Path) -> None:
    torch.manual_seed(2)  # the noise scale of these weights has both ends
    monitor = ComplexityMonitor("default", every_n_steps=5, control="shuffle", probe=ProbeSet(128))
    trainer = fit(Classifier(), [monitor], tmp_path)
    assert "complexity/residual_median_shuffled" in trainer.callback_metrics


class Asked(Instrument):
    """Asks for more projections than a tail index."""

    @property
    def needs(self) -> Needs:
        return Needs(gram=True, projections=64)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        return Reading()


def test_a_tail_is_read_off_its_own_number_of_projections_whoever_asks_for_more(tmp_path: Path) -> None:
    tail = TailIndex()
    fit(Classifier(), [ComplexityMonitor([Asked(), tail], every_n_steps=1)], tmp_path)
    assert tail._pools[""].pooled()[0].shape == (320, 16)


@pytest.mark.timing
@pytest.mark.filterwarnings("ignore:lightning_cx. .*nan:UserWarning", "ignore:.*LeafSpec", "ignore:.*not have many wor")
def test_all_on_the_quickstart_stays_within_the_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pl.seed_everything(0)
    monitor = ComplexityMonitor("all", overhead_budget=0.2)
    trainer = pl.Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, name=None),
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(DigitClassifier(), DataLoader(noisy_digits(), batch_size=64, shuffle=True))
    assert monitor.overhead < 0.2 * 1.25  # the first reading of a kind is paid on credit, at a guess
    session = monitor._session
    assert session is not None
    measured = {work for work, account in session.ledger.accounts.items() if account.count}
    listed = re.search(r"never measured, since [^:]*: (.*)\. Raise overhead_budget", caplog.text)
    never = set() if listed is None else set(listed[1].split(", "))
    assert measured  # how many there was time for is a matter of the machine, but none is left out in silence
    assert not measured & never
    assert {GRADIENTS, PROBE, *(work.key for work in session.own.works)} <= measured | never
    assert math.isfinite(float(trainer.callback_metrics["complexity/overhead"]))
