"""One step of a model in Fabric, tapped in each process; `test_loops_of_ones_own.py` compares it with a plain loop."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_cx import ProbeSet
from lightning_cx.gradients import GradientTap
from lightning_cx.instruments import GradientNoise, SpectralBias, quantities
from lightning_cx.probe import fill

BATCH = 16


def model() -> nn.Module:
    """The same weights everywhere."""
    net, draw = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)), np.random.default_rng(0)
    for parameter in net.parameters():
        parameter.data = torch.tensor(0.4 * draw.normal(size=parameter.shape), dtype=torch.float32)
    return net


def data(count: int = 256) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(count, 5))
    return torch.tensor(x, dtype=torch.float32), torch.tensor((x[:, 0] > 0) + (x[:, 1] > 0).astype(int))


def in_fabric(fabric: Fabric, accumulate: int = 1) -> dict[str, Any]:
    """Accumulate gradients over a few batches of this process, each tapped; then read the probe and step."""
    net, (x, y) = model(), data()
    wrapped, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))

    def losses(module: nn.Module, batch: Any) -> Tensor:
        with fabric.autocast():
            return F.cross_entropy(module(batch[0]), batch[1], reduction="none")

    tap, samples = GradientTap(net.named_parameters(), BATCH, loss_scale=1 / accumulate), []
    probe = fill(ProbeSet(size=128, loss_fn=losses), TensorDataset(x, y))
    for part in range(accumulate):
        rows = slice(*(BATCH * (fabric.global_rank * accumulate + part + end) for end in (0, 1)))
        with fabric.no_backward_sync(wrapped, enabled=part < accumulate - 1):
            loss = losses(wrapped, (x[rows], y[rows])).mean() / accumulate
            with tap(loss):
                fabric.backward(loss)
        assert tap.sample is not None
        samples.append(tap.sample)
    gradient = torch.cat([p.grad.flatten().clone() for p in net.parameters() if p.grad is not None])
    reading = probe.read(net, place=fabric.to_device)
    optimizer.step()
    return {
        "grams": [sample.gram for sample in samples],
        "coverage": [sample.coverage for sample in samples],
        "layers": list(samples[0].layers),
        "norm": GradientNoise().on_gradients(0, samples[0]).scalars[quantities.GRADIENT_NORM],
        "residuals": reading.residuals,
        "energy": SpectralBias().on_probe(0, reading).scalars[quantities.RESIDUAL_ENERGY],
        "gradient": gradient,
        "weights": torch.cat([p.detach().flatten() for p in net.parameters()]),
    }


def work(rank: int, folder: str, port: int) -> None:
    """Be one of two processes, and save what it saw."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ.update(group | {"LOCAL_RANK": str(rank)})
    processes = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    processes.launch()
    torch.save(in_fabric(processes, accumulate=2), Path(folder, f"rank{rank}.pt"))
