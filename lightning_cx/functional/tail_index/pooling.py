"""Make the samples of several batches comparable: gradients shrink and grow while a network trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional.decay import theil_sen
from lightning_cx.functional.inputs import as_tensor

MAX_GROUPS = 256
"""More batches are joined to so many groups of neighbours, for the fit of the drift takes all pairs of them."""


def without_drift(samples: Any, batches: Any) -> Tensor:
    """Take the drift of the scale out of samples of several batches, since a mixture of scales looks heavy-tailed.

    The scale of a batch is the median magnitude of its entries. The slope of its logarithm over the number of the batch
    is the median slope of all pairs (Theil and Sen), which a few wild batches cannot carry away; samples are divided by
    ``exp(slope (b - mean b))``. A trend of one parameter leaves the tail within the batches alone, which a scale for
    each batch of its own would lighten.

    Args:
        samples: ``[n]`` or ``[n, k]``, real, centred per batch.
        batches: ``[n]`` number of the batch of each sample, in the order of time.

    Returns:
        Samples of the same shape in float64; as they came where fewer than 2 batches have a scale.

    Raises:
        ValueError: If samples and batches differ in length.

    References:
        Sen 1968 for the slope. Gaussian noise whose scale falls by e^2 over the window has an `alpha_ecf` of about 1.8
        without this.

    Example:
        >>> import torch
        >>> noise = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> shrinking = noise * torch.exp(-torch.arange(64.0) / 16)[:, None]
        >>> level = without_drift(shrinking.flatten(), torch.arange(64).repeat_interleave(32)).view(64, 32)
        >>> bool((level[:8].std() / level[-8:].std() - 1).abs() < 0.1)
        True
    """
    samples, batches = as_tensor(samples).double(), as_tensor(batches)
    if len(samples) != len(batches):
        raise ValueError(f"each sample needs its batch, got {len(samples)} samples and {len(batches)} batches.")
    numbers, index = batches.unique(return_inverse=True)
    groups = min(len(numbers), MAX_GROUPS)
    group_of = index * groups // max(1, len(numbers))
    magnitudes = samples.abs().flatten(1) if samples.ndim > 1 else samples.abs()[:, None]
    places, scales = [], []
    for group in range(groups):
        members = group_of == group
        scale = magnitudes[members].quantile(0.5)
        if bool(scale.isfinite() & (scale > 0)):
            places.append(batches[members].double().mean())
            scales.append(scale.log())
    if len(scales) < 2:
        return samples
    slope = theil_sen(torch.stack(places), torch.stack(scales))
    trend = torch.exp(slope * (batches.double() - numbers.double().mean()))
    return samples / trend.reshape(-1, *[1] * (samples.ndim - 1))


def centred_norms(gram: Tensor) -> Tensor:
    """Read norms of gradients less their mean off their Gram matrix: ``K_ii - 2 mean_j K_ij + mean K``, its root.

    Args:
        gram: ``[N, N]`` inner products, not centred.

    Returns:
        ``[N]`` of the same dtype; what rounding brings below 0 is 0.

    Example:
        >>> import torch
        >>> centred_norms(torch.tensor([[4., 0.], [0., 0.]]))  # gradients 2 and 0: mean 1
        tensor([1., 1.])
    """
    return (gram.diagonal() - 2 * gram.mean(1) + gram.mean()).clamp_min(0).sqrt()
