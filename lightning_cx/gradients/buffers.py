"""How large a work buffer may become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

DEFAULT_BYTES = 16 << 20  # buffers of this size stay on the heap and near the last-level cache (measured)
CACHE_BYTES = 1 << 20  # what is written and read again at once stays in a core's own cache
_BYTES: ContextVar[int] = ContextVar("lightning_cx_buffer_bytes", default=DEFAULT_BYTES)


Workspace = dict[tuple[torch.dtype, torch.device], Tensor]
_WORKSPACE: ContextVar[Workspace | None] = ContextVar("lightning_cx_workspace", default=None)


@contextmanager
def buffers_of(max_bytes: int, workspace: Workspace | None = None) -> Iterator[None]:
    """Bound the work buffers of contractions in this block and thread, and let them share one piece of memory.

    Buffers that come and go between the tensors of a backward leave holes that nothing fits into.
    """
    tokens = _BYTES.set(max_bytes), _WORKSPACE.set(workspace)
    try:
        yield
    finally:
        _BYTES.reset(tokens[0])
        _WORKSPACE.reset(tokens[1])


def work_buffer(entries: int, like: Tensor) -> Tensor:
    """A flat buffer with anything in it, good until the next call."""
    workspace, kind = _WORKSPACE.get(), (like.dtype, like.device)
    if workspace is None:
        return like.new_empty(entries)
    if kind not in workspace or workspace[kind].numel() < entries:
        workspace[kind] = like.new_empty(entries)
    return workspace[kind][:entries]


def how_many(bytes_each: float) -> int:
    """How many things of a size fit into one work buffer, at least one."""
    return max(1, int(_BYTES.get() // max(1, bytes_each)))
