"""Let BatchNorm normalise a probe by the probe's own statistics, and leave its running ones alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_cx._torch import BatchNorm, InstanceNorm, buffers


def running_norms(module: nn.Module) -> list[nn.Module]:
    """Layers whose running statistics follow the weights through training; those that were set to eval do not.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
        >>> len(running_norms(net))
        1
    """
    # A model that is in eval mode as a whole does not tell which of them are frozen.
    follows = [part for part in module.modules() if part.training or not module.training]
    kinds = (BatchNorm, InstanceNorm)
    return [part for part in follows if isinstance(part, kinds) and part.running_mean is not None]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[bool]:
    """Have the layers of `running_norms` use the statistics of each batch inside the block, in eval mode too.

    Running statistics belong to the weights that they were gathered under: under other weights, or an average of
    weights, they are wrong, and a comparison of weights would be one of statistics. The buffers themselves are laid
    aside and come back as they were.

    Args:
        module: The model.

    Yields:
        Whether there are such layers.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> with batch_statistics(norm):
        ...     print(norm(torch.tensor([[2.0], [4.0]])).tolist()[1][0] > 0.99)
        True
        >>> norm.running_mean
        tensor([0.])
    """
    layers = running_norms(module)
    laid_aside = [(layer, buffers(layer)["running_mean"], buffers(layer)["running_var"]) for layer in layers]
    try:
        for layer in layers:
            # Without buffers a layer in eval mode takes the batch's statistics.
            buffers(layer)["running_mean"] = buffers(layer)["running_var"] = None
        yield bool(layers)
    finally:
        for layer, mean, variance in laid_aside:
            buffers(layer)["running_mean"], buffers(layer)["running_var"] = mean, variance
