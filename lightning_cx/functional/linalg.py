"""Eigendecompositions of the size that a sampled step needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

ONE_THREAD_UP_TO = 1024
"""Rows up to which one thread is the better choice.

LAPACK's tridiagonalisation crosses a thread barrier for every column. With 512 rows on two idle cores one thread took
39 ms and two took 46; with one more busy process on the machine, a data loader say, one thread still took 39 ms and
two took 5 to 10 seconds.
"""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, at a cost that other processes do not change.

    Args:
        matrix: ``[n, n]`` symmetric, floating point.

    Returns:
        ``[n]`` eigenvalues and ``[n, n]`` eigenvectors in columns.

    Example:
        >>> values, vectors = eigh(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> values
        tensor([1., 2.])
    """
    small = matrix.device.type == "cpu" and matrix.shape[-1] <= ONE_THREAD_UP_TO
    with one_thread() if small else nullcontext():
        values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small work on one thread: many short parallel regions stall as soon as another process is busy."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
