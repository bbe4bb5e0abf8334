"""How large a work buffer may become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DEFAULT_BYTES = 16 << 20  # buffers of this size stay on the heap and near the last-level cache (measured)
CACHE_BYTES = 1 << 20  # what is written and read again at once stays in a core's own cache
_BYTES: ContextVar[int] = ContextVar("lightning_cx_buffer_bytes", default=DEFAULT_BYTES)


@contextmanager
def buffers_of(max_bytes: int) -> Iterator[None]:
    """Bound the work buffers of contractions in this block and thread."""
    token = _BYTES.set(max_bytes)
    try:
        yield
    finally:
        _BYTES.reset(token)


def how_many(bytes_each: float) -> int:
    """How many things of a size fit into one work buffer, at least one."""
    return max(1, int(_BYTES.get() // max(1, bytes_each)))
