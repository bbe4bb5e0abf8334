"""Early stopping reads its probe whether parts are compiled, run again in the backward, or both callbacks look."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _compiled import KINDS, Counting, Plain, fresh_compiler, submodule
from _lightning import Classifier
from _loops import STOPPING, run, undisturbed
from test_checkpointing import Checkpointed

__all__ = ["fresh_compiler"]

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # the compiler looks at it
]


@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_leaves_a_compiled_run_as_it_is(kind: str, tmp_path: Path) -> None:
    backends: list[Counting] = []

    def make() -> torch.nn.Module:
        torch._dynamo.reset()
        backends.append(Counting())
        return KINDS[kind](backends[-1], dropout=0.3)

    seen = undisturbed(make, tmp_path, us=STOPPING)
    alone, with_us = backends
    assert (with_us.compiled, with_us.ran) == (alone.compiled, alone.ran) == (1, 10)
    assert seen.stopping.watch.begun
    assert seen.stopping.best_step is not None
    assert seen.told == []


def test_early_stopping_sees_the_same_risk_whether_the_net_is_compiled_or_not(tmp_path: Path) -> None:
    def risk(compiled: bool) -> dict[str, float]:
        seen = run(lambda: submodule(Counting()) if compiled else Plain(), tmp_path, us=STOPPING)
        metrics = seen.trainer.callback_metrics.items()
        return {tag: float(value) for tag, value in metrics if tag.startswith("stopping/")}

    assert risk(True) == risk(False)
    assert "stopping/risk" in risk(True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_early_stopping_leaves_a_checkpointed_run_as_it_is(reentrant: bool, tmp_path: Path) -> None:
    seen = undisturbed(lambda: Classifier(Checkpointed(reentrant)), tmp_path, us=STOPPING, strict=False)
    assert seen.stopping.watch.begun
    assert seen.stopping.best_step is not None
    # The question whether simple functions are learned first is asked of gradients, which checkpointing hides.
    (told,) = seen.told
    assert "gradients on the probe are off" in told
    assert "heckpoint" in told
