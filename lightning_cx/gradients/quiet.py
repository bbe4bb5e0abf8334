"""What surrounds our own computations inside a user's backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def quiet(tensor: Tensor | None) -> AbstractContextManager[object]:
    """No graph and no autocast for what we compute, whatever the user's backward runs under."""
    device = "cpu" if tensor is None else tensor.device.type
    return _silence(device) if torch.is_grad_enabled() or torch.is_autocast_enabled(device) else _NOTHING


@contextmanager
def _silence(device: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield


_NOTHING = nullcontext()
