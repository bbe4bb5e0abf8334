"""gluonts: its own estimators on its own stream of windows, which ends a fit by loading its best checkpoint."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, cut, step_of
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator
from gluonts.torch.distributions import NormalOutput
from gluonts.transform import ExpectedNumInstanceSampler

BATCH, EPOCH = 16, 12


def series() -> ListDataset:
    random = np.random.default_rng(0)
    time = np.arange(80)
    waves = [np.sin(time / (2 + 0.3 * i) + i) + 0.1 * random.normal(size=80) for i in range(12)]
    start = pd.Period("2020-01-01", freq="D")
    return ListDataset([{"start": start, "target": wave, "item_id": str(i)} for i, wave in enumerate(waves)], freq="D")


def options(callbacks: list[Any], double: bool) -> dict[str, Any]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    precision = "64-true" if double else "32-true"
    where = tempfile.mkdtemp(prefix="gluonts-")
    kwargs = {"max_epochs": 3, "accelerator": "cpu", "precision": precision, "default_root_dir": where, **quiet}
    return {
        "prediction_length": 4,
        "context_length": 12,
        "batch_size": BATCH,
        "num_batches_per_epoch": EPOCH,
        "trainer_kwargs": {**kwargs, "callbacks": callbacks},
    }


def deepar(callbacks: list[Any], double: bool, **more: Any) -> None:
    sizes = {"num_layers": 1, "hidden_size": 8, "dropout_rate": 0.0 if double else 0.1}
    estimator = DeepAREstimator(freq="D", **sizes, distr_output=NormalOutput(), **options(callbacks, double), **more)
    estimator.train_model(series())


def fit_deepar(callbacks: list[Any], double: bool) -> None:
    deepar(callbacks, double, train_sampler=ExpectedNumInstanceSampler(num_instances=1.0, min_past=12, min_future=4))


def fit_empty_past(callbacks: list[Any], double: bool) -> None:
    """With the library's own sampler: a window may begin before its series, and one without a past is scaled by the
    mean scale of the batch.
    """
    deepar(callbacks, double)


def fit_feed_forward(callbacks: list[Any], double: bool) -> None:
    SimpleFeedForwardEstimator(hidden_dimensions=[16], **options(callbacks, double)).train_model(series())


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


CASES = [
    Case("gluonts:deepar", fit_deepar, loss_of),
    Case("gluonts:deepar-empty-past", fit_empty_past, loss_of),
    Case("gluonts:feed-forward", fit_feed_forward, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_gluonts(case: Case, check: Any) -> None:
    verify(case, check)
