"""Law 1 in every kind of loop: every state, stream of random numbers and logged value is that of a run without us."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _compiled import fresh_compiler
from _matrix import LOOPS, PlainFits, early_stopping, ended, everything, monitor_all
from _once import Once

from lightning_cx import ComplexityMonitor

__all__ = ["fresh_compiler"]

# What is refused or not yet known in a loop is said once; the tests of each feature say in which words.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:lightning_cx"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks"),
]
# With two threads in two workers at once, every operation waits for a core: what uses several runs alone.
ALONE = {True: pytest.mark.timing, False: ()}
EACH_LOOP = pytest.mark.parametrize(
    "loop", [pytest.param(name, marks=ALONE[loop.threads > 1]) for name, loop in LOOPS.items()]
)


@pytest.fixture
def plain(once: Once) -> PlainFits:
    return PlainFits(once)


@EACH_LOOP
def test_with_every_instrument_training_is_bit_for_bit_as_without(loop: str, plain: PlainFits) -> None:
    monitor = monitor_all(LOOPS[loop])
    states, _ = ended(LOOPS[loop], [monitor])
    assert states == plain[loop]
    assert monitor._session is not None
    assert {"gradients", "StepSize", "Averaging", "Neurons"} <= set(monitor._session.ledger.accounts)


@EACH_LOOP
def test_with_early_stopping_training_is_bit_for_bit_as_without(loop: str, plain: PlainFits) -> None:
    stopping = early_stopping(LOOPS[loop])
    states, _ = ended(LOOPS[loop], [stopping])
    assert states == plain[loop]
    assert stopping.watch.begun
    assert stopping.best_step is not None


def test_every_instrument_there_is_takes_part() -> None:
    assert {type(one) for one in everything()} == {type(one) for one in ComplexityMonitor("all").instruments}


def test_one_random_number_that_is_drawn_would_be_noticed(plain: PlainFits) -> None:
    class Draws(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            torch.rand(())

    states, _ = ended(LOOPS["dropout"], [Draws()])
    assert {name for name in states if states[name] != plain["dropout"][name]} >= {"weights and buffers", "torch rng"}
