"""pytorch_tabular: its own models, data module and trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, cut, step_of
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig

EXAMPLES, BATCH = 240, 16
COLUMNS = ["a", "b", "c", "d"]


def table(classes: bool) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(EXAMPLES, 4)), columns=COLUMNS)
    frame["kind"] = random.choice(["x", "y", "z"], size=EXAMPLES)
    value = frame["a"] + np.sin(frame["b"]) + (frame["kind"] == "x") + 0.1 * random.normal(size=EXAMPLES)
    frame["target"] = pd.qcut(value, 3, labels=["low", "mid", "high"]).astype(str) if classes else value
    return frame


def fit(config: Any, callbacks: list[Any], double: bool, classes: bool = False) -> None:
    options = {"enable_model_summary": False, "max_steps": 14}
    model = TabularModel(
        data_config=DataConfig(
            target=["target"],
            continuous_cols=COLUMNS,
            categorical_cols=["kind"],
            normalize_continuous_features=False,
        ),
        model_config=config,
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=BATCH,
            max_epochs=2,
            accelerator="cpu",
            progress_bar="none",
            load_best=False,
            checkpoints=None,
            early_stopping=None,
            trainer_kwargs={**options, "precision": "64-true" if double else "32-true"},
        ),
        verbose=False,
    )
    frame = table(classes)
    model.fit(train=frame, validation=frame[:16], callbacks=callbacks, seed=1)


def embedding(double: bool, batch_norm: bool, task: str) -> CategoryEmbeddingModelConfig:
    return CategoryEmbeddingModelConfig(
        task=task,
        layers="16-8",
        dropout=0.0 if double else 0.1,
        batch_norm_continuous_input=batch_norm,
    )


def fit_classification(callbacks: list[Any], double: bool) -> None:
    fit(embedding(double, True, "classification"), callbacks, double, classes=True)


def fit_regression(callbacks: list[Any], double: bool) -> None:
    fit(embedding(double, False, "regression"), callbacks, double)


def fit_transformer(callbacks: list[Any], double: bool) -> None:
    rate = 0.0 if double else 0.1
    rates = dict.fromkeys(("attn_dropout", "add_norm_dropout", "ff_dropout", "embedding_dropout"), rate)
    sizes = {"input_embed_dim": 8, "num_heads": 2, "num_attn_blocks": 2}
    config = FTTransformerConfig(task="regression", **sizes, **rates, batch_norm_continuous_input=False)
    fit(config, callbacks, double)


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    return step_of(module, cut(batch, i, BATCH))


CASES = [
    Case("pytorch_tabular:classification", fit_classification),
    Case("pytorch_tabular:regression", fit_regression, loss_of),
    Case("pytorch_tabular:ft-transformer", fit_transformer, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_pytorch_tabular(case: Case, check: Any) -> None:
    verify(case, check)
