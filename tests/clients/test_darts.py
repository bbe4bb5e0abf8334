"""darts: its own models on its own windows, trained by its own call of the trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from _checks import checks_of, verify
from _harness import QUIET, Case, cut, step_of
from darts import TimeSeries
from darts.models import NBEATSModel, TiDEModel
from darts.utils.likelihood_models import GaussianLikelihood

BATCH = 16
LENGTHS = {"input_chunk_length": 12, "output_chunk_length": 4}


def series(double: bool) -> tuple[list[TimeSeries], list[TimeSeries]]:
    """Six noisy waves, and what is known of their future."""
    random, dtype = np.random.default_rng(0), np.float64 if double else np.float32
    time = np.arange(60)
    known = [random.normal(size=60) for _ in range(6)]
    waves = [np.sin(time / (2 + 0.3 * i) + i) + 0.5 * known[i] + 0.1 * random.normal(size=60) for i in range(6)]
    return tuple([TimeSeries.from_values(v.astype(dtype)) for v in some] for some in (waves, known))  # type: ignore


def options(callbacks: list[Any], double: bool) -> dict[str, Any]:
    kwargs = {key: value for key, value in QUIET.items() if key != "enable_checkpointing"}
    precision = "64-true" if double else "32-true"
    return {
        **LENGTHS,
        "batch_size": BATCH,
        "n_epochs": 2,
        "random_state": 0,
        "dropout": 0.0 if double else 0.1,
        "pl_trainer_kwargs": {**kwargs, "max_steps": 14, "precision": precision, "callbacks": callbacks},
    }


def fit_nbeats(callbacks: list[Any], double: bool) -> None:
    model = NBEATSModel(num_stacks=2, num_blocks=1, num_layers=2, layer_widths=16, **options(callbacks, double))
    model.fit(series(double)[0], verbose=False)


def tide(callbacks: list[Any], double: bool, **more: Any) -> None:
    sizes = {"hidden_size": 8, "decoder_output_dim": 4, "temporal_decoder_hidden": 8, "temporal_width_future": 2}
    waves, known = series(double)
    TiDEModel(**sizes, **options(callbacks, double), **more).fit(waves, future_covariates=known, verbose=False)


def fit_tide(callbacks: list[Any], double: bool) -> None:
    tide(callbacks, double)


def fit_gaussian(callbacks: list[Any], double: bool) -> None:
    tide(callbacks, double, likelihood=GaussianLikelihood())


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


CASES = [
    Case("darts:nbeats", fit_nbeats, loss_of),
    Case("darts:tide", fit_tide, loss_of),
    Case("darts:tide-gaussian", fit_gaussian, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_darts(case: Case, check: Any) -> None:
    verify(case, check)
