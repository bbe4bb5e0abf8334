"""In every precision the Gram matrix is that of the batch, with the scale of 16 bits divided out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _lightning import Classifier
from _loops import ByHand, Truth, half_precision, in_order, single_losses, undisturbed
from _models import relative_error

HALF, BRAIN = 0.01, 0.03  # relative; measured .002 and .012, while a scale that is left in shows as 3 and more


class Scales(pl.Callback):
    """Notes the scale of every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.precision_plugin.scaler.get_scale())


class Plain(Classifier):
    """Without Adam, whose small constant is zero in 16 bits."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


PRECISIONS: dict[str, tuple[Callable[[], Any], float]] = {
    "bf16-mixed": (Classifier, BRAIN),
    "bf16-true": (Plain, BRAIN),
    "64-true": (Classifier, 1e-10),
    "16-true": (Plain, HALF),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gram_matrix_is_that_of_the_batch_in_every_precision(precision: str, tmp_path: Path) -> None:
    make, tolerance = PRECISIONS[precision]
    truth = Truth()
    seen = undisturbed(make, tmp_path, front=lambda: [truth], data=in_order(), precision=precision)
    del truth.grams[:10]
    assert max(seen.errors(truth)) < tolerance
    assert {sample.status for sample in seen.samples} == {"exact"}
    assert len(seen.readings) == 10
    assert seen.stopping.watch.begun
    assert seen.told == []


@pytest.mark.parametrize(("make", "loss_fn"), [(Classifier, None), (ByHand, single_losses)])
def test_a_scale_that_changes_is_divided_out_of_every_sample(make: Any, loss_fn: Any, tmp_path: Path) -> None:
    truth, scales = Truth(), Scales()
    seen = undisturbed(
        make, tmp_path, front=lambda: [truth, scales], plugins=half_precision, data=in_order(), loss_fn=loss_fn
    )
    del truth.grams[:10], scales.seen[:10]
    assert scales.seen[0] == 2.0**10
    assert scales.seen[-1] == 2.0**14
    assert max(seen.errors(truth)) < HALF
    assert len(seen.readings) == 10
    assert seen.stopping.watch.begun
    assert seen.told == []


def test_scale_and_accumulation_are_divided_out_together(tmp_path: Path) -> None:
    truth = Truth()
    seen = undisturbed(
        Classifier,
        tmp_path,
        front=lambda: [truth],
        plugins=half_precision,
        data=in_order(),
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
    )
    del truth.grams[:10]
    assert max(seen.errors(truth, [0, 2, 4, 5, 7, 9])) < HALF


def test_a_step_that_overflows_is_refused_with_the_reason_and_the_next_is_measured(tmp_path: Path) -> None:
    truth = Truth()
    logged: list[float] = []

    class Log(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            logged.append(float(trainer.callback_metrics.get("gradient/norm", math.inf)))

    seen = undisturbed(
        Classifier,
        tmp_path,
        front=lambda: [truth, Log()],  # which sees what we said of the batch before
        plugins=partial(half_precision, 2.0**24, backoff_factor=2.0**-14),
        data=in_order(),
        max_epochs=1,
    )
    del truth.grams[:5], logged[:5]
    assert not seen.samples[0].gram.isfinite().all()
    assert max(relative_error(s.gram, t) for s, t in zip(seen.samples[1:], truth.grams[1:], strict=True)) < HALF
    assert math.isnan(logged[1])
    assert logged[2] == pytest.approx(float(truth.grams[1].mean().sqrt()), rel=HALF)
    reason = "nan, the gradients of this batch are not finite (NaN or inf in its data, or an overflow)"
    (told,) = [words for words in seen.told if reason in words]
    assert "gradient/norm" in told
    assert seen.stopping.watch.begun
