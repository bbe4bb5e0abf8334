"""Law 1 in every kind of loop: weights, buffers, optimizer, scaler and random streams are those of a run without us."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _compiled import Counting, fresh_compiler, submodule
from _lightning import Classifier
from _loops import MONITOR, STOPPING, US, ByHand, ByLbfgs, half_precision, single_losses, undisturbed

__all__ = ["fresh_compiler"]

pytestmark = pytest.mark.usefixtures("fresh_compiler")


LOOPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "automatic optimisation": (Classifier, {}),
    "dropout": (partial(Classifier, dropout=0.3), {}),
    "BatchNorm": (partial(Classifier, batch_norm=True), {}),
    "accumulation": (partial(Classifier, dropout=0.1), {"accumulate_grad_batches": 2}),
    "clipping": (Classifier, {"gradient_clip_val": 0.1}),
    "bf16-mixed": (partial(Classifier, dropout=0.1), {"precision": "bf16-mixed"}),
    "16-mixed": (partial(Classifier, dropout=0.1), {"plugins": half_precision}),
    "16-mixed that overflows": (Classifier, {"plugins": partial(half_precision, 2.0**24, backoff_factor=2.0**-14)}),
    "torch.compile": (lambda: submodule(Counting(), dropout=0.3), {}),
    "LBFGS": (partial(ByLbfgs, dropout=0.1), {}),
    "manual optimisation": (partial(ByHand, dropout=0.1), {"loss_fn": single_losses}),
    "manual optimisation in 16-mixed": (ByHand, {"loss_fn": single_losses, "plugins": half_precision}),
}


@pytest.mark.parametrize("us", US)
@pytest.mark.parametrize("loop", LOOPS)
def test_every_state_is_bitwise_that_of_a_run_without(loop: str, us: str, tmp_path: Path) -> None:
    make, options = LOOPS[loop]
    seen = undisturbed(make, tmp_path, us=us, **options)
    steps = 6 if loop == "accumulation" else 10  # of each epoch, the fifth batch steps alone
    assert len(seen.samples) == (steps if MONITOR in US[us] else 0)
    assert len(seen.readings) == (10 if MONITOR in US[us] else 0)
    assert seen.stopping.watch.begun == (STOPPING in US[us])
    assert (seen.stopping.best_step is not None) == (STOPPING in US[us])
