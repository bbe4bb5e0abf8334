"""Samples pooled: over batches without drift of the scale, in sums as a batch makes them, over coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_cx.functional.complexity.spectrum import theil_sen
from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.tails.ecf import FIT_POINTS, decay_of, samples_of, squared_modulus, standardised

NEIGHBOURHOOD = 256
"""Examples from whose batches a scale is taken: known to 6%, which changes no tail."""


def without_drift(samples: Any, batches: Any, neighbourhood: int = NEIGHBOURHOOD) -> Tensor:
    """Remove the drift of the scale from samples of several batches, since a mixture of scales looks heavy-tailed.

    The scale of a batch is the median magnitude of its entries. Its logarithm is followed over the batches first by a
    line (the median slope of all pairs, of Theil and Sen), then, of what is left, by a running median over as many
    batches as hold `neighbourhood` examples. Samples are divided by both. A step size that decays or drops goes out;
    the tail within batches stays, and so does a scale that changes from one batch to the next.

    Args:
        samples: ``[n]`` or ``[n, k]``, real, centred per batch.
        batches: ``[n]`` number of the batch of each sample, in the order of time.
        neighbourhood: Number of examples from which a local scale is taken.

    Returns:
        Samples of the same shape in float64; as they came where fewer than 2 batches have a scale.

    Raises:
        ValueError: If samples and batches differ in length.

    References:
        Sen 1968 for the line. Gaussian noise whose scale falls by e^2 over the window has an `alpha_ecf` of 1.6 without
        this, and of 1.0 if it drops once by that; both come out at 1.99.

    Example:
        >>> noise = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> shrinking = noise * torch.exp(-torch.arange(64.0) / 16)[:, None]
        >>> level = without_drift(shrinking.flatten(), torch.arange(64).repeat_interleave(32)).view(64, 32)
        >>> bool((level[:8].std() / level[-8:].std() - 1).abs() < 0.1)
        True
    """
    samples, batches = as_tensor(samples).double(), as_tensor(batches)
    if batches.ndim != 1 or len(samples) != len(batches):
        shape = list(batches.shape)
        raise ValueError(f"each sample needs its batch, got {len(samples)} samples and batches of shape {shape}.")
    numbers, index, counts = batches.unique(return_inverse=True, return_counts=True)
    if len(numbers) < 2:
        return samples
    magnitudes = samples.abs().flatten(1) if samples.ndim > 1 else samples.abs()[:, None]
    by_batch = magnitudes[index.argsort(stable=True)].split(counts.tolist())
    log_scales = torch.stack([own.median().log() for own in by_batch])
    known = log_scales.isfinite()
    if int(known.sum()) < 2:
        return samples
    places = numbers.double()
    line = _line(places[known], log_scales[known]) * (places - places.mean())
    rest = log_scales - line
    half = int(neighbourhood * len(numbers) / len(samples)) // 2  # batches on either side
    local = _running_median(rest, half)
    trend = torch.exp(line + local - local[known].mean())
    return samples / trend[index].reshape(-1, *[1] * (samples.ndim - 1))


def centred_norms(gram: Tensor) -> Tensor:
    """Compute norms of centred gradients from their Gram matrix: the root of ``K_ii - 2 mean_j K_ij + mean K``.

    Args:
        gram: ``[N, N]`` inner products, not centred.

    Returns:
        ``[N]`` of the same dtype; what rounding brings below 0 is 0.

    Example:
        >>> centred_norms(torch.tensor([[4., 0.], [0., 0.]]))  # gradients 2 and 0: mean 1
        tensor([1., 1.])
    """
    return (gram.diagonal() - 2 * gram.mean(1) + gram.mean()).clamp_min(0).sqrt()


MAX_GROUPS = 256
"""More batches are joined to so many groups of neighbours, for the fit of the line takes all pairs of them."""


def _line(places: Tensor, values: Tensor) -> Tensor:
    """Fit the median slope, over groups of neighbours where there are very many points."""
    if len(places) <= MAX_GROUPS:
        return theil_sen(places, values)
    group_of = torch.arange(len(places), device=places.device) * MAX_GROUPS // len(places)
    joined = [group_of == group for group in range(MAX_GROUPS)]
    return theil_sen(
        torch.stack([places[members].mean() for members in joined]),
        torch.stack([values[members].median() for members in joined]),
    )


def _running_median(values: Tensor, half: int) -> Tensor:
    """Compute the median over `half` neighbours on either side, of those that have a scale."""
    medians = []
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        near = near[near.isfinite()]
        medians.append(near.median() if len(near) else values.new_zeros(()))
    return torch.stack(medians)


MIN_SUMS = 64
"""Fewer sums say nothing about their shape; THEORY section 6."""


def sum_size(batch_size: int, n: int) -> int:
    """Return how many samples to add up: the batch size, at least 2, but so few that 64 sums remain."""
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one example, got batch_size={batch_size}.")
    return min(max(batch_size, 2), max(2, n // MIN_SUMS))


GROUPINGS = 8
"""Ways to group samples into sums, averaged: on a scale mixture that halves the scatter of the shift."""


def grouped_sums(projected: Tensor, size: int, seed: int) -> Tensor:
    """Add up `size` samples of ``[..., n]`` in groups drawn at random, in 8 ways, so that no one grouping decides.

    Returns ``[8, ..., n // size]``, one layer for each way to group.
    """
    n = projected.shape[-1]
    generator = Generator().manual_seed(seed)
    sums = []
    for _ in range(GROUPINGS):
        order = torch.randperm(n, generator=generator)[: n // size * size].to(projected.device)
        sums.append(projected[..., order].unflatten(-1, (-1, size)).sum(-1))
    return torch.stack(sums)


def indices_of_sums(sums: Tensor) -> Tensor:
    """Estimate the tail index ``[...]`` of `grouped_sums` from the mean of ``|phi|^2`` over the ways to group."""
    return decay_of(squared_modulus(standardised(sums), FIT_POINTS).mean(0))[0]


@dataclass(frozen=True, eq=False)
class CoordinateTail:
    """The tail index that pooled coordinates pretend to have.

    Attributes:
        index: ``[]`` float64, the index of all coordinates of all samples pooled; nan where it is refused.
        control: ``[]`` float64, the same of normal noise in which each coordinate has the scale it has here. What the
            two have in common is not the tail but the unequal scales. Where they differ,
            coordinates are correlated or not normal by themselves, which is no heavy tail of the noise either.
        reason: Why there is no number; empty where there is one.
    """

    index: Tensor
    control: Tensor
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"coordinate tail unknown: {self.reason}"
        return f"pooled coordinates: index {self.index:.2f}; normal noise with the same scales: {self.control:.2f}"


def coordinate_tail(samples: Any, seed: int = 0) -> CoordinateTail:
    """Estimate the tail index of pooled coordinates beside that of normal noise with the same scales.

    Much of the literature pools all coordinates of gradient noise and reads a tail index off them. Coordinates of a
    network differ in scale, and a mixture of scales looks heavy: normal noise whose log scales have a standard
    deviation of 0, .5, 1 and 2 gives 2.0, 1.9, 1.6 and 1.0. Noise that is heavy as a whole, such as elliptical
    1.5-stable vectors, gives 2.0. Never read the index without the control; `alpha_ecf` has neither fault.

    With K pooled values in blocks of ``m = sqrt(K)``, ``1 / index = (mean log|block sum| - mean log|value|) / log m``.

    Args:
        samples: ``[n, d]`` gradients less their mean, one row per example, at d coordinates; any real dtype.
        seed: Seed of the control.

    Returns:
        CoordinateTail; refused for fewer than 2 samples or 1024 values in all, for NaN or inf among them, where more
        than half of the values are zero, and where all sums cancel.

    Raises:
        ValueError: If the shape is not ``[n, d]`` or ``[n]``.

    References:
        Mohammadi, Mohammadpour & Ogata 2015, "On estimating the tail index and the spectral measure of multivariate
        alpha-stable distributions", corollary 2.4, as used by Simsekli et al. 2019; THEORY section 6.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> normal = torch.randn(500, 200, generator=draw) * torch.randn(200, generator=draw).exp()
        >>> print(coordinate_tail(normal))
        pooled coordinates: index 1.55; normal noise with the same scales: 1.57
    """
    samples = samples_of(samples)
    samples = samples.double().flatten(1) if samples.ndim > 1 else samples.double()[:, None]
    reason = _why_no_coordinates(samples)
    if reason:
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=samples.device)
        return CoordinateTail(nothing, nothing, reason)
    noise = torch.randn(samples.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
    index, control = _pooled_index(samples), _pooled_index(noise.to(samples.device) * samples.std(0))
    if not bool(index.isfinite() & control.isfinite()):
        return CoordinateTail(index * torch.nan, index * torch.nan, "degenerate: all sums of coordinates cancel")
    return CoordinateTail(index, control)


MIN_VALUES = 1024
"""Of fewer pooled values the estimate scatters beyond use: two samples of 100 gave 4.2."""


def _why_no_coordinates(samples: Tensor) -> str:
    n = len(samples)
    if n < 2 or samples.numel() < MIN_VALUES:
        return f"{n} samples of {samples.shape[1]} coordinates are too few: 2 and {MIN_VALUES} values are needed"
    if not bool(samples.isfinite().all()):
        return "samples are not finite (NaN or inf)"
    zeros = float((samples == 0).double().mean())
    return f"degenerate: {zeros:.0%} of the values are zero" if zeros > 0.5 else ""


def _pooled_index(samples: Tensor) -> Tensor:
    pooled = samples.flatten()
    m = math.isqrt(len(pooled))
    blocks = pooled[: len(pooled) // m * m].view(-1, m).sum(1).abs()
    growth = blocks[blocks > 0].log().mean() - pooled[pooled != 0].abs().log().mean()
    return math.log(m) / growth
