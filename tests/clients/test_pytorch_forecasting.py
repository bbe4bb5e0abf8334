"""pytorch-forecasting: its own modules on its own TimeSeriesDataSet and loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, cut, step_of, trainer
from pytorch_forecasting import DeepAR, NHiTS, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import RMSE, NormalDistributionLoss, QuantileLoss

BATCH = 16


def series(known: bool) -> TimeSeriesDataSet:
    """Windows of 12 + 4 steps of eight noisy waves; with a known covariate, an id and the place in time."""
    random = np.random.default_rng(0)
    time = np.arange(50)
    frames = []
    for i in range(8):
        covariate = random.normal(size=50)
        value = np.sin(time / (2 + 0.3 * i) + i) + 0.5 * covariate + 0.1 * random.normal(size=50)
        frames.append(pd.DataFrame({"time": time, "series": str(i), "price": covariate, "value": value}))
    more: dict[str, Any] = {}
    if known:
        more = {"static_categoricals": ["series"], "time_varying_known_reals": ["price", "time"]}
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
        **more,
    )


def fit(make: Any, callbacks: list[Any], double: bool, known: bool = True, **options: Any) -> None:
    data = series(known)
    loader = data.to_dataloader(train=True, batch_size=BATCH, num_workers=0)
    module = make.from_dataset(data, learning_rate=1e-2, log_interval=-1, optimizer="adam", **options)
    trainer(callbacks, double, gradient_clip_val=0.1).fit(module, loader)


def fit_tft(callbacks: list[Any], double: bool) -> None:
    options = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4}
    dropout = 0.0 if double else 0.1
    fit(TemporalFusionTransformer, callbacks, double, dropout=dropout, loss=QuantileLoss(), **options)


def fit_deepar(callbacks: list[Any], double: bool) -> None:
    dropout = 0.0 if double else 0.1
    fit(DeepAR, callbacks, double, hidden_size=8, rnn_layers=2, dropout=dropout, loss=NormalDistributionLoss())


def fit_nhits(callbacks: list[Any], double: bool) -> None:
    dropout = 0.0 if double else 0.1
    fit(NHiTS, callbacks, double, known=False, hidden_size=16, dropout=dropout, loss=RMSE())


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


CASES = [
    Case("pytorch-forecasting:tft", fit_tft, loss_of),
    Case("pytorch-forecasting:deepar", fit_deepar, loss_of),
    Case("pytorch-forecasting:nhits", fit_nhits),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_pytorch_forecasting(case: Case, check: Any) -> None:
    verify(case, check)
