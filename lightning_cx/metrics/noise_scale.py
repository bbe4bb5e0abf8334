"""The gradient noise scale, pooled over batches and processes, as a metric."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import NoiseScale, inputs, noise, noise_scale
from lightning_cx.metrics.base import DoubleMetric

SUMS = ("signal", "noise", "covariance", "degrees_of_freedom", "batches")
"""The states that the pooled estimate is made of, in the order of `noise_scale_from_sums`."""


@final
class GradientNoiseScale(DoubleMetric):
    """Estimate the batch size beyond which larger batches stop paying, from the per-example gradients of batches.

    The mean noise of the batches over their mean signal, ``tr Sigma / |G|^2``, exactly as
    `lightning_cx.functional.pool_noise_scales` has it, whichever process saw which batch.

    As input to ``forward`` and ``update`` the metric accepts ``gram`` ``[b, b]``, the inner products of the
    per-example gradients of one batch, for example from `lightning_cx.gradients.per_example_gram`. As output it
    returns a float64 scalar in examples: nan where the signal is not positive. `interval` has the 95% interval,
    which is informative even then.

    Batches of one example and those with NaN or infinite gradients are left out, with one warning. A batch of two
    has no error estimate of its own, and takes the one of the pool with it: the interval becomes ``[0, inf]``. Use
    ``drop_last=True`` where the last batch of an epoch may be that small.

    Args:
        kwargs: Those of torchmetrics.Metric.

    References:
        McCandlish et al. 2018, "An empirical model of large-batch training", section 2.2; THEORY section 8.

    Example:
        >>> metric = GradientNoiseScale()
        >>> draw = torch.Generator().manual_seed(1)
        >>> for _ in range(8):
        ...     gradients = 0.16 + torch.randn(64, 20, dtype=torch.float64, generator=draw)
        ...     metric.update(gradients @ gradients.T)  # the truth: 20 / (20 * 0.16^2) = 39.1
        >>> print(metric.interval())
        noise scale 34.6 examples (95% between 26.7 and 49.1; signal 0.566, noise 19.6)
        >>> round(float(metric.compute()), 1)
        34.6
    """

    plot_lower_bound = 0.0

    signal: Tensor
    noise: Tensor
    covariance: Tensor
    degrees_of_freedom: Tensor
    batches: Tensor
    too_small: Tensor
    non_finite: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, shape in {"signal": (), "noise": (), "covariance": (2, 2)}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("degrees_of_freedom", "batches", "too_small", "non_finite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, gram: Any) -> None:
        """Add the noise scale of one batch.

        Args:
            gram: ``[b, b]`` inner products of per-example gradients, not centred; tensor, array or list.

        Raises:
            ValueError: If the matrix is not square.
        """
        gram = inputs.as_tensor(gram).to(self.device)
        scale = noise_scale(gram)
        if len(gram) < 2:
            self.too_small = self.too_small + 1
        elif not bool(scale.noise.isfinite() & scale.signal.isfinite()):
            self.non_finite = self.non_finite + 1
        else:
            self.batches = self.batches + 1
            for name in SUMS[:-1]:
                setattr(self, name, getattr(self, name) + getattr(scale, name))

    def compute(self) -> Tensor:
        """Divide the mean noise of all batches by their mean signal."""
        return self._pooled().value

    def interval(self) -> NoiseScale:
        """Return the pooled noise scale with its 95% interval, signal and noise.

        Like `compute` it gathers from all processes, so all must call it.

        Returns:
            NoiseScale; all nan if no batch contributed.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._pooled()

    def _pooled(self) -> NoiseScale:
        small, bad = int(self.too_small), int(self.non_finite)
        if small + bad:
            self._warn_once(
                "left out",
                f"leaves out {small + bad} of {small + bad + int(self.batches)} batches: {small} of fewer than two "
                f"examples, {bad} with NaN or infinite gradients.",
            )
        return noise.noise_scale_from_sums(
            self.signal, self.noise, self.covariance, int(self.degrees_of_freedom), int(self.batches)
        )
