"""Several instruments of a class in one monitor: failures, costs, state and tags of each are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _lightning import Classifier, fit

from lightning_cx import ComplexityMonitor, ProbeSet
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import BatchView, GradientNoise, Instrument, Interference, Kernel, Reading, StepSize


class Mine(Instrument):
    """Fails, or counts the steps that it was shown."""

    def __init__(self, fails: bool = False, *, name: str = "") -> None:
        super().__init__(name)
        self.fails, self.count = fails, 0

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        if self.fails:
            raise RuntimeError("broken")
        self.count += 1
        return Reading({"mine/count": float(self.count)})

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


@pytest.mark.filterwarnings("ignore:lightning_cx. Mine")
@pytest.mark.parametrize("order", [(True, False), (False, True), (False, True, True, True)])
def test_one_that_fails_does_not_switch_off_another_of_its_name(order: tuple[bool, ...], tmp_path: Path) -> None:
    made = [
        Mine(fails, name="" if number == order.index(False) else f"n{number}") for number, fails in enumerate(order)
    ]
    trainer = fit(Classifier(), [ComplexityMonitor(made, every_n_steps=1)], tmp_path)
    assert trainer.callback_metrics["mine/count"] == 10


def test_two_without_names_keep_failures_apart(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="lightning_cx") as told:
        fit(Classifier(), [ComplexityMonitor([Mine(), Mine(fails=True)], every_n_steps=1)], tmp_path)
    words = [str(warning.message) for warning in told]
    assert any("Mine#2 is disabled after 3 failures in a row" in word for word in words)
    assert not any("Mine is disabled" in word for word in words)


@pytest.mark.filterwarnings("ignore:lightning_cx")
def test_two_of_a_kind_log_side_by_side_and_pay_for_themselves(tmp_path: Path) -> None:
    instruments = [
        Kernel(),
        Kernel(blocks="off", name="whole"),
        Interference(),
        Interference(per_layer=True, name="layers"),
        StepSize(rows=0, examples=32, iterations=2),
        StepSize(rows=0, examples=64, iterations=2, name="wide"),
    ]
    monitor = ComplexityMonitor(instruments, every_n_steps=2, probe=ProbeSet(size=128))
    numbers = fit(Classifier(), [monitor], tmp_path).callback_metrics
    for tag in ("kernel/decay", "kernel/decay-whole", "gradient/interference", "gradient/interference-layers"):
        assert tag in numbers
    assert numbers["kernel/participation_ratio"] == numbers["kernel/participation_ratio-whole"]
    assert {"step_size/sharpness", "step_size/sharpness-wide"} <= set(numbers)
    assert monitor._session is not None
    assert {"StepSize", "StepSize-wide"} <= set(monitor._session.ledger.accounts)


def test_each_finds_its_own_state_again(tmp_path: Path) -> None:
    def monitor() -> ComplexityMonitor:
        return ComplexityMonitor([Mine(), Mine(name="b"), GradientNoise()], every_n_steps=1)

    torch.manual_seed(2)  # the noise scale of these weights has both ends
    first = monitor()
    trainer = fit(Classifier(), [first], tmp_path, max_epochs=1)
    first.instruments[1].count = 100
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = fit(Classifier(), [monitor()], tmp_path, max_epochs=2, ckpt_path=str(tmp_path / "one.ckpt"))
    assert (resumed.callback_metrics["mine/count"], resumed.callback_metrics["mine/count-b"]) == (10, 105)


def test_a_monitor_refuses_two_that_log_the_same() -> None:
    with pytest.raises(ValueError, match="GradientNoise and GradientNoise#2 both log gradient/norm"):
        ComplexityMonitor([GradientNoise(), GradientNoise()])
