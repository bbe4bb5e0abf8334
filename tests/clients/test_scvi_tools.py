"""scvi-tools: its own models on its own AnnData loader, trained by its own trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anndata
import numpy as np
import pytest
import scvi
import torch
from _checks import checks_of, verify
from _harness import Case, cut, step_of
from torch.distributions import normal

EXAMPLES, BATCH, GENES = 192, 16, 30
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


def cells() -> anndata.AnnData:
    """Counts of three kinds of cells."""
    scvi.settings.seed = 0  # its loaders and splits have streams of their own
    random = np.random.default_rng(0)
    kind = random.integers(3, size=EXAMPLES)
    rates = random.gamma(2.0, 1.0, size=(3, GENES))
    data = anndata.AnnData(random.poisson(rates[kind] * random.uniform(0.5, 2, size=(EXAMPLES, 1))).astype(np.float32))
    data.obs["kind"] = [("alpha", "beta", "unknown")[i] for i in kind]
    data.obs["batch"] = (np.arange(EXAMPLES) % 2).astype(str)
    return data


def train(model: Any, callbacks: list[Any]) -> None:
    scvi.settings.verbosity = 30
    plan = {"plan_kwargs": {"n_epochs_kl_warmup": None}}  # so that the loss stays what it was at the sampled step
    options = {"max_epochs": 3, "batch_size": BATCH, "train_size": 1.0, "accelerator": "cpu"}
    model.train(callbacks=callbacks, **options, **plan, **QUIET)


def fit_scvi(callbacks: list[Any], double: bool, **options: Any) -> None:
    data = cells()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    train(scvi.model.SCVI(data, n_hidden=16, n_latent=3, dropout_rate=0.0 if double else 0.1, **options), callbacks)


def fit_plain(callbacks: list[Any], double: bool) -> None:
    fit_scvi(callbacks, double, gene_likelihood="nb")


def fit_layer_norm(callbacks: list[Any], double: bool) -> None:
    fit_scvi(callbacks, double, gene_likelihood="nb", use_batch_norm="none", use_layer_norm="both")


def fit_scanvi(callbacks: list[Any], double: bool, **options: Any) -> None:
    data = cells()
    scvi.model.SCANVI.setup_anndata(data, labels_key="kind", unlabeled_category="unknown", batch_key="batch")
    train(scvi.model.SCANVI(data, n_hidden=16, n_latent=3, dropout_rate=0.0 if double else 0.1, **options), callbacks)


def fit_scanvi_layer_norm(callbacks: list[Any], double: bool) -> None:
    fit_scanvi(callbacks, double, use_batch_norm="none", use_layer_norm="both")


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    """The loss of one cell with the noise that it had in the batch, once for each label that scANVI tries."""
    if i >= BATCH:
        raise IndexError(i)
    drawn: list[torch.Tensor] = []
    with noise(drawn.append):
        step_of(module, batch)
    with noise(None, iter([all_of[i::BATCH] for all_of in drawn])):
        return step_of(module, cut(batch, i, BATCH))


@contextmanager
def noise(keep: Any, rows: Iterator[torch.Tensor] | None = None) -> Iterator[None]:
    """Note the normal numbers that a distribution draws, or hand out others in their place."""
    draw = normal._standard_normal

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = draw(*args, **kwargs) if rows is None else next(rows)
        if keep is not None:
            keep(found)
        return found

    normal._standard_normal = noted
    try:
        yield
    finally:
        normal._standard_normal = draw


CASES = [
    Case("scvi-tools:scvi", fit_plain),
    Case("scvi-tools:scvi-layernorm", fit_layer_norm, loss_of),
    Case("scvi-tools:scanvi", fit_scanvi),
    Case("scvi-tools:scanvi-layernorm", fit_scanvi_layer_norm, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_scvi_tools(case: Case, check: Any) -> None:
    verify(case, check)
