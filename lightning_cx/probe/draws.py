"""See whether something draws random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_cx.probe.isolation import isolated


@contextmanager
def watched_pass(module: nn.Module, training: bool, seed: int) -> Iterator[list[str]]:
    """Run a module again and leave no trace, parameters included, but the names of the streams that it drew from.

    Args:
        module: The module.
        training: Whether in training mode, if it is in it.
        seed: Of the random streams inside.
    """
    with isolated(module, training=training and module.training, seed=seed, guard=True), drawing() as drawn:
        yield drawn


@contextmanager
def drawing() -> Iterator[list[str]]:
    """Collects the names of the random streams that were drawn from inside the block."""
    drawn: list[str] = []
    before = _streams()
    yield drawn
    after = _streams()
    drawn += [name for name, state in before.items() if state != after.get(name)]


def _streams() -> dict[str, Any]:
    of_numpy: Any = np.random.get_state()  # noqa: NPY002 - the legacy stream is the one that user code draws from
    streams: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (of_numpy[1].tobytes(), *of_numpy[2:]),
        "python": random.getstate(),
    }
    for name, device in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if device.is_available() and device.is_initialized():
            streams[name] = device.get_rng_state().numpy().tobytes()
    return streams
