"""How complex a function of the examples is, as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from lightning_cx.functional import complexity
from lightning_cx.metrics.examples import ExampleMetric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@final
class MedianComplexity(ExampleMetric):
    """Say how complex residuals, predictions or labels are, as functions of the examples: .5 is noise.

    Half of the function's energy lies below the median complexity; its position is the share of the levels of
    complexity below it (`lightning_cx.functional.complexity.median_position`, on the `laplacian_basis` of the
    `default_features`). The residual of a network that still has simple things to learn lies near 0 and rises to .5
    as only noise is left. Predictions that rise towards .5 fit noise. Where more than a few in a hundred examples are
    exact copies of others, noise lies above .5 (.55 for a tenth).

    As input to ``forward`` and ``update`` the metric accepts ``features`` ``[b, ...]`` and ``values`` ``[b]`` or
    ``[b, ...]``; see `update`. As output it returns a float64 scalar in [0, 1]: nan, with the reason once as a
    warning, for fewer than 16 examples, for a value that is not finite, and where nothing varies.

    Args:
        n_neighbors: Neighbours that each example is connected to.
        max_examples: Of more examples than this a fixed pseudo-random sample is kept, the same in every epoch.
        standardize: Whether to z-score each feature. False keeps the distances of the features as they are.
        kwargs: Those of torchmetrics.Metric.

    Raises:
        ValueError: If ``n_neighbors`` is below 1 or ``max_examples`` is not between 16 and 4096.

    References:
        Ishii, low-complexity interference principle of gradients (seed 000), part 1; THEORY sections 1 and 2.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(200).double() / 200
        >>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> metric = MedianComplexity()
        >>> for batch in range(4):
        ...     part = slice(batch * 50, (batch + 1) * 50)
        ...     metric.update(circle[part], torch.cos(angle[part]))
        >>> round(float(metric.compute()), 3)
        0.0
        >>> metric.reset()
        >>> metric.update(circle, torch.randn(200, 50, generator=torch.Generator().manual_seed(0)))  # 50 outputs
        >>> round(float(metric.compute()), 2)
        0.5
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Place the median complexity of the values between the simplest (0) and the most complex (1)."""
        seen = self._basis_and_values()
        if seen is None:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        position = complexity.median_position(*seen)
        if bool(position.isnan()):
            self._warn_once("constant", "is nan: the values are the same for all examples, or the features are.")
        return position

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure | None, Axes]:
        """Plot one position, or several in the order of time.

        Args:
            val: What `forward` or `compute` returned, or a list of such; computed if not given.
            ax: Axes to draw on; a new figure if not given.

        Returns:
            The figure (None if axes were given) and the axes.
        """
        return self._plot(val, ax)
