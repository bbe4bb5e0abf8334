"""neuralforecast: batches of series, out of which training_step itself draws windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _checks import checks_of, verify
from _harness import QUIET, Case, cut, step_of
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MAE, MSE, DistributionLoss
from neuralforecast.models import NHITS

BATCH, SERIES, LENGTH = 16, 192, 24


def frame() -> pd.DataFrame:
    random, time = np.random.default_rng(0), np.arange(LENGTH)
    parts = [
        pd.DataFrame(
            {"unique_id": f"s{i:03}", "ds": time, "y": np.sin(time / (2 + i % 5) + i) + random.normal(0, 0.1, LENGTH)}
        )
        for i in range(SERIES)
    ]
    return pd.concat(parts, ignore_index=True)


def fit(loss: Any, callbacks: list[Any], double: bool, windows: int | None) -> None:
    kwargs = {**QUIET, "precision": "64-true" if double else "32-true", "callbacks": callbacks}
    sizes = {"n_blocks": [1, 1, 1], "mlp_units": [[16, 16]] * 3, "dropout_prob_theta": 0.0 if double else 0.1}
    model = NHITS(
        h=4,
        input_size=8,
        loss=loss,
        max_steps=14,
        batch_size=BATCH,
        windows_batch_size=windows,
        start_padding_enabled=False,
        **sizes,
        **kwargs,
    )
    NeuralForecast([model], freq=1).fit(frame())


def fit_sampled(callbacks: list[Any], double: bool) -> None:
    fit(MSE(), callbacks, double, windows=100)


def fit_all_windows(callbacks: list[Any], double: bool) -> None:
    fit(MSE(), callbacks, double, windows=None)


def fit_mae(callbacks: list[Any], double: bool) -> None:
    fit(MAE(), callbacks, double, windows=100)


def fit_normal(callbacks: list[Any], double: bool) -> None:
    fit(DistributionLoss("Normal", return_params=False), callbacks, double, windows=None)


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


CASES = [
    Case("neuralforecast:sampled-windows", fit_sampled, loss_of),
    Case("neuralforecast:all-windows", fit_all_windows, loss_of),
    Case("neuralforecast:mae", fit_mae, loss_of),
    Case("neuralforecast:normal", fit_normal, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_neuralforecast(case: Case, check: Any) -> None:
    verify(case, check)
