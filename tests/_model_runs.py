"""Short fits of the networks of `_architectures`, and everything that was seen and said of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from _architectures import BATCH, COUNT, Network, Training, drawn, images, texts, vectors
from _lightning import fit
from _networks_more import (
    RING,
    Adapted,
    Contrastive,
    DenseNet,
    Diffusion,
    GraphNet,
    LstmLm,
    Normed,
    PooledGraphs,
    ResNet,
    Siamese,
    SparseTable,
    UNet,
    Vae,
    big_graph,
)
from _transformers import CausalLm, DenseExperts, MixtureLm, Vit
from test_monitor import Watch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_cx import ComplexityMonitor, ProbeSet

PREFIX = "lightning_cx: "


def graphs() -> list[dict[str, Tensor]]:
    """Graphs of five nodes; the sign of a feature is the label of a node."""
    x = drawn(COUNT, 5, 6)
    return [{"x": nodes, "edges": RING, "label": (nodes[:, 0] > 0).long()} for nodes in x]


def labelled_graphs() -> list[dict[str, Tensor]]:
    return [{**graph, "label": graph["label"][0]} for graph in graphs()]


def node_rows() -> Dataset:
    return [{"x": graph["x"], "label": graph["label"]} for graph in graphs()]  # type: ignore[return-value]


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(2, width)


MODELS: dict[str, tuple[Callable[[], Network], Callable[[], Any]]] = {
    "a causal language model with tied embeddings": (CausalLm, texts),
    "a causal language model with padded labels": (CausalLm, lambda: texts(ragged=True)),
    "an LSTM language model": (LstmLm, texts),
    "an LSTM over packed sequences": (lambda: LstmLm(packed=True), lambda: texts(ragged=True)),
    "a ResNet with BatchNorm": (ResNet, images),
    "a ResNet with GroupNorm": (lambda: ResNet(group_norm), images),
    "a U-Net": (UNet, images),
    "a vision transformer with stochastic depth": (Vit, images),
    "experts that tokens are scattered to": (MixtureLm, texts),
    "experts that see every token": (lambda: MixtureLm(DenseExperts), texts),
    "experts with a load-balancing loss": (lambda: MixtureLm(DenseExperts, 0.1), texts),
    "a DenseNet": (DenseNet, images),
    "weight norm and spectral norm": (Normed, images),
    "message passing in graphs alike": (GraphNet, node_rows),
    "one big graph with labels for nodes": (GraphNet, graphs),
    "one big graph with labels for graphs": (PooledGraphs, labelled_graphs),
    "a variational autoencoder": (Vae, vectors),
    "a contrastive loss": (Contrastive, vectors),
    "low-rank adapters of a frozen base": (Adapted, texts),
    "a diffusion model": (Diffusion, images),
    "a sparse table with SparseAdam": (SparseTable, texts),
    "a Siamese tower": (Siamese, vectors),
}
BIG = ("one big graph with labels for nodes", "one big graph with labels for graphs")


def batches(name: str) -> DataLoader:
    return DataLoader(MODELS[name][1](), batch_size=BATCH, collate_fn=big_graph if name in BIG else None)


def module_of(name: str, network: Network | None = None, watched: bool = False) -> Training:
    torch.manual_seed(0)
    made = MODELS[name][0]() if network is None else network
    return Training(made, "SparseAdam" if "SparseAdam" in name else "SGD", watched)


class Run:
    """A fit of one epoch with callbacks.

    Attributes:
        told: All that was said, information and warnings.
        warnings: The warnings alone.
        samples: Gradients of the sampled steps.
        probes: Readings of the probe.
        trainer: After the fit.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        data: Any,
        folder: Path,
        log: pytest.LogCaptureFixture,
        callbacks: list[pl.Callback] | None = None,
        **options: Any,
    ) -> None:
        watch = Watch()
        monitor = ComplexityMonitor([watch], every_n_steps=1, probe=ProbeSet(size=128))
        with warnings.catch_warnings(record=True) as caught, log.at_level("INFO"):
            warnings.simplefilter("always")
            chosen = [monitor] if callbacks is None else callbacks
            self.trainer = fit(module, chosen, folder, data=data, **{"max_epochs": 1, **options})
        ours = [str(w.message) for w in caught if str(w.message).startswith(PREFIX)]
        self.warnings = [text.removeprefix(PREFIX) for text in ours]
        lines = [r.getMessage() for r in log.records if r.getMessage().startswith(PREFIX)]
        self.told = [line.removeprefix(PREFIX) for line in lines] + self.warnings
        self.samples = [o.gradients for o in watch.seen if o.gradients is not None]
        self.probes = [o.probe for o in watch.seen if o.probe is not None]

    def says(self, part: str) -> bool:
        return any(part in text for text in self.told)
