"""Fill a probe at once, in a loop of one's own; the callbacks do it bit by bit, to keep to their budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import default_collate

from lightning_cx.probe.probe_set import ProbeSet


def fill(
    probe: ProbeSet, dataset: Any, batch_size: int = 64, collate: Callable[[list[Any]], Any] = default_collate
) -> ProbeSet:
    """Choose the examples of a probe from the training data and fetch them.

    Args:
        probe: To be filled; what it held before is let go, indices of a checkpoint stay.
        dataset: With `__len__` and `__getitem__`; from a stream let `ProbeSet.keep` see its batches instead.
        batch_size: Examples that are passed through the model at a time.
        collate: Makes a batch of a list of examples, as that of the `DataLoader`.

    Returns:
        The same probe.

    Raises:
        ValueError: If `batch_size` is not positive, or the data set has fewer than 128 examples.

    Example:
        >>> import torch
        >>> from lightning_cx.probe import ProbeSet, fill
        >>> data = torch.utils.data.TensorDataset(torch.randn(1000, 3), torch.randn(1000, 1))
        >>> fill(ProbeSet(size=200), data).examples
        200
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")
    probe.forget()
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, collate, batch_size)
    return probe
