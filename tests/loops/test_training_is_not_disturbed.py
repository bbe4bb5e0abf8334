"""Law 1 in every kind of loop: every state, stream of random numbers and logged value is that of a run without us."""

from __future__ import annotations

from pathlib import Path

import pytest
from _compiled import fresh_compiler
from _matrix import LOOPS, PlainFits, early_stopping, ended, everything, monitor_all

from lightning_cx import ComplexityMonitor

__all__ = ["fresh_compiler"]

# What is refused or not yet known in a loop is said once; the tests of each feature say in which words.
pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:lightning_cx"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> PlainFits:
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "plain_fits"
    folder.mkdir(exist_ok=True)
    return PlainFits(folder)


@pytest.mark.parametrize("loop", LOOPS)
def test_with_every_instrument_training_is_bit_for_bit_as_without(loop: str, plain: PlainFits) -> None:
    monitor = monitor_all(LOOPS[loop])
    states, trainer = ended(LOOPS[loop], [monitor])
    assert states == plain[loop]
    print(loop, {k: a.count for k, a in monitor._session.ledger.accounts.items()})


@pytest.mark.parametrize("loop", LOOPS)
def test_with_early_stopping_training_is_bit_for_bit_as_without(loop: str, plain: PlainFits) -> None:
    stopping = early_stopping(LOOPS[loop])
    states, _ = ended(LOOPS[loop], [stopping])
    assert states == plain[loop]
    assert stopping.watch.begun
    assert stopping.best_step is not None


def test_every_instrument_there_is_takes_part() -> None:
    assert {type(one) for one in everything()} == {type(one) for one in ComplexityMonitor("all").instruments}
