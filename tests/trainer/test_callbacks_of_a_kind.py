"""Callbacks and instruments of one kind work side by side, and each finds its own state in a checkpoint."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import fit
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.callbacks.identity import settings
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Interference, Kernel, Reading
from lightning_cx.rules import SpectralRisk

pytestmark = pytest.mark.filterwarnings("ignore:lightning_cx. gradient/noise_scale. nan, the signal")


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.sin(2 * x[:, :1])), batch_size=32)


def construct(callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(callbacks=list(callbacks), logger=False, accelerator="cpu", enable_progress_bar=False)


def by_length(batch: Any) -> Tensor:
    return batch[0]


def by_sum(batch: Any) -> Tensor:
    return batch[0].sum(1, keepdim=True)


PAIRS: dict[str, Callable[[], list[pl.Callback]]] = {
    "where interference is measured": lambda: [
        ComplexityMonitor([Interference(on="batch")], every_n_steps=4),
        ComplexityMonitor([Interference(on="probe")], every_n_steps=4),
    ],
    "features of the probe": lambda: [
        ComplexityMonitor(every_n_steps=4, probe=ProbeSet(features=features)) for features in (by_length, by_sum)
    ],
    "control": lambda: [ComplexityMonitor(every_n_steps=4, control=control) for control in (None, "shuffle")],
    "restoring": lambda: [ComplexityEarlyStopping(restore_best=restores) for restores in (True, False)],
    "names of monitors": lambda: [ComplexityMonitor(every_n_steps=4, name=name) for name in ("", "b")],
    "names of stopping": lambda: [ComplexityEarlyStopping(SpectralRisk(), 4, name=name) for name in ("a", "b")],
}


@pytest.mark.parametrize("difference", PAIRS)
def test_two_callbacks_that_differ_work_in_one_trainer(difference: str, tmp_path: Path) -> None:
    pair = PAIRS[difference]()
    construct(pair)
    trainer = fit(Regression(), pair, tmp_path, loader(), max_steps=6)
    assert trainer.global_step == 6
    again = PAIRS[difference]()
    assert [one.state_key for one in again] == [one.state_key for one in pair]  # stable, and of no use of a fit
    assert len({one.state_key for one in pair}) == 2


@pytest.mark.parametrize("kind", [ComplexityMonitor, ComplexityEarlyStopping])
def test_two_that_are_alike_are_refused_with_the_advice_to_name_one(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"two {kind.__name__} with the same settings.*pass name="):
        construct([kind(), kind()])
    construct([kind(), kind(name="second")])


def test_two_that_are_alike_are_refused_at_setup_where_lightning_did_not_compare_them(tmp_path: Path) -> None:
    class Late(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            trainer.callbacks.append(ComplexityMonitor())  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match="pass name="):
        fit(Regression(), [Late(), ComplexityMonitor()], tmp_path, loader(), max_steps=2)


@pytest.mark.parametrize("kind", [ComplexityMonitor, ComplexityEarlyStopping])
def test_a_name_that_tags_cannot_end_in_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"letters, digits, - and _, got name='a/b'"):
        kind(name="a/b")


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from test_callbacks_of_a_kind import PAIRS; "
        "print([one.state_key for pair in PAIRS.values() for one in pair()] == "
        f"{[one.state_key for pair in PAIRS.values() for one in pair()]!r})"
    )
    paths = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]; "
    run = [sys.executable, "-c", paths + code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True"


def test_keys_of_default_settings_are_those_of_the_last_release() -> None:
    assert ComplexityMonitor(every_n_steps=7).state_key == (
        "ComplexityMonitor{'instruments': ['GradientNoise', 'GradientSpectrum', 'SpectralBias'], 'every_n_steps': 7, "
        "'overhead_budget': 0.02, 'probe': (512, 0)}"
    )
    rule = "SpectralRisk(patience=10, z=1.645, doubling=True, sigma2=None)"
    assert ComplexityEarlyStopping(SpectralRisk()).state_key == (
        f"ComplexityEarlyStopping{{'rule': '{rule}', 'every_n_steps': None, 'probe': None}}"
    )


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_state_of_the_last_release_is_restored_though_the_key_holds_more_now(tmp_path: Path) -> None:
    def monitor() -> ComplexityMonitor:
        return ComplexityMonitor([GradientNoise(), Interference(on="probe")], every_n_steps=2)

    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(Regression(), [monitor(), saving], tmp_path, loader(), max_steps=4, enable_checkpointing=True)
    path = tmp_path / "saved" / "step=4.ckpt"
    saved = torch.load(path, weights_only=False)
    held = saved["callbacks"].pop(monitor().state_key)
    assert list(held["instruments"]) == ["GradientNoise", "Interference"]
    held = {**held, "instruments": list(held["instruments"].values())}  # by position
    del held["key"]
    old = (
        "ComplexityMonitor{'instruments': ['GradientNoise', 'Interference'], 'every_n_steps': 2, "
        "'overhead_budget': 0.02, 'probe': (512, 0)}"
    )
    saved["callbacks"][old] = held
    torch.save(saved, path)
    resumed = monitor()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):  # Lightning sees the other key
        fit(Regression(), [resumed], tmp_path, loader(), max_steps=5, ckpt_path=str(path))
    assert resumed.probe.indices == held["probe"]["indices"]
    assert resumed._reached == 5


class Counter(Instrument):
    def __init__(self, of: str = "") -> None:
        super().__init__()
        self.of, self.seen = of, 0

    def on_gradients(self, step: int, gradients: Any, batch: BatchView) -> Reading:
        self.seen += 1
        return Reading({f"mine/seen{self.of}": float(self.seen)})

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_other_settings_than_in_the_checkpoint_resume_from_it_but_not_from_the_state_of_another(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    first = ComplexityMonitor([Counter()], every_n_steps=2)
    fit(Regression(), [first, saving], tmp_path, loader(), max_steps=4, enable_checkpointing=True)

    def resumed(*counters: Counter) -> list[int]:
        monitors: list[pl.Callback] = [ComplexityMonitor([counter], every_n_steps=2) for counter in counters]
        fit(Regression(), monitors, tmp_path, loader(), max_steps=6, ckpt_path=str(tmp_path / "saved" / "step=4.ckpt"))
        return [counter.seen for counter in counters]

    assert resumed(Counter("_b")) == [3]
    assert resumed(Counter("_b"), Counter()) == [1, 3]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_named_callbacks_log_under_tags_of_their_own_and_resume_from_their_own_states(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        noise = [ComplexityMonitor([GradientNoise()], every_n_steps=n, name=name) for n, name in ((2, ""), (3, "b"))]
        return [*noise, *(ComplexityEarlyStopping(every_n_steps=2, name=name) for name in ("", "b"))]

    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    first = callbacks()
    trainer = fit(Regression(), [*first, saving], tmp_path, loader(), max_steps=6, enable_checkpointing=True)
    tags = set(trainer.callback_metrics)
    assert {"gradient/norm", "gradient/norm-b", "complexity/overhead-b", "stopping/risk", "stopping/risk-b"} <= tags
    own = {tag for tag in tags if not tag.endswith("-b")}
    assert {f"{tag}-b" for tag in own} == tags - own  # whole sets, and no folder below a tag
    second = callbacks()
    fit(Regression(), second, tmp_path, loader(), max_steps=6, ckpt_path=str(tmp_path / "saved" / "step=4.ckpt"))
    assert [one._reached for one in second[:2]] == [6, 6]
    assert [one.best_step for one in second[2:]] == [one.best_step for one in first[2:]]


def test_two_monitors_that_log_one_tag_are_told_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair: list[pl.Callback] = [ComplexityMonitor([GradientNoise()], every_n_steps=n) for n in (1, 2)]
    with caplog.at_level(logging.INFO):
        fit(Regression(), pair, tmp_path, loader(), max_steps=6)
    told = [record.message for record in caplog.records if "overwrite each other" in record.message]
    assert len(told) == 1
    assert 'pass name="..." to one of them' in told[0]
    assert "complexity/overhead" in told[0]


def test_two_monitors_with_names_are_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair: list[pl.Callback] = [ComplexityMonitor([GradientNoise()], every_n_steps=2, name=name) for name in "ab"]
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the same callbacks in another fit are no others
            fit(Regression(), pair, tmp_path, loader(), max_steps=4)
    assert "overwrite" not in caplog.text


def make(fails: bool, tag: str) -> Instrument:
    class Mine(Instrument):  # two libraries, or two notebooks, may well have a class of one name
        seen = 0

        def on_gradients(self, step: int, gradients: Any, batch: BatchView) -> Reading:
            self.seen += 1
            if fails:
                raise RuntimeError("broken")
            return Reading({tag: 1.0})

    return Mine()


@pytest.mark.filterwarnings("ignore:lightning_cx. Mine failed")
def test_failures_of_one_instrument_are_not_counted_for_another_of_the_same_class_name(tmp_path: Path) -> None:
    broken, sound = make(True, "mine/broken"), make(False, "mine/sound")
    with pytest.warns(UserWarning, match="Mine is disabled after 3 failures") as told:
        trainer = fit(
            Regression(), [ComplexityMonitor([broken, sound], every_n_steps=1)], tmp_path, loader(), max_steps=6
        )
    assert (broken.seen, sound.seen) == (3, 6)  # type: ignore[attr-defined]
    assert trainer.callback_metrics["mine/sound"] == 1.0
    assert not any("Mine#2" in str(warning.message) for warning in told)


def test_two_instruments_that_log_one_tag_unannounced_are_told(tmp_path: Path) -> None:
    alike = [make(False, "mine/value"), make(False, "mine/value")]
    with pytest.warns(UserWarning, match="Mine and Mine#2 both log mine/value: give one of them a name"):
        fit(Regression(), [ComplexityMonitor(alike, every_n_steps=1)], tmp_path, loader(), max_steps=3)


def test_two_instruments_with_passes_have_accounts_and_states_of_their_own(tmp_path: Path) -> None:
    kernels = [
        Kernel(on="probe", blocks="off", every_n_steps=2),
        Kernel(on="probe", blocks="off", examples=64, every_n_steps=3, name="small"),
    ]
    monitor = ComplexityMonitor(kernels, every_n_steps=2)
    trainer = fit(Regression(), [monitor], tmp_path, loader(), max_steps=6)
    assert {"kernel/probe_decay", "kernel/probe_decay-small"} <= set(trainer.callback_metrics)
    assert set(monitor.state_dict()["instruments"]) == {"Kernel", "Kernel-small"}


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (Interference(), {}),
        (Interference(on="probe", examples=64), {"on": "'probe'", "examples": "64"}),
        (ProbeSet(features=by_sum), {"features": f"{__name__}.by_sum"}),
        (ProbeSet(), {}),
    ],
)
def test_settings_are_those_that_are_not_the_default(thing: Any, found: dict[str, str]) -> None:
    assert settings(thing) == found
