"""What every metric keeps to: float64 states, and a reason where there is no number."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class DoubleMetric(Metric, ABC):
    """A torchmetrics.Metric whose states stay in float64 (and int64), on whatever device it is moved to.

    `Metric` itself withstands `half` and `float`, but not ``to(torch.bfloat16)``, which is what
    ``Trainer(precision="bf16-true")`` calls: sums over an epoch would then be kept with three digits.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._said: set[str] = set()

    @property
    def dtype(self) -> torch.dtype:
        """float64. torchmetrics gives it to the empty state of a process that has seen no data."""
        return torch.float64

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another metric of the same class has seen, or its states by name."""
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics would go on returning what it computed before
        self._update_count += incoming_state.update_count if isinstance(incoming_state, Metric) else 1

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure | None, Axes]:
        """Plot one value, or several in the order of time.

        Args:
            val: What `forward` or `compute` returned, or a list of such; computed if not given.
            ax: Axes to draw on; a new figure if not given.

        Returns:
            The figure (None if axes were given) and the axes.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)

    def _warn_once(self, kind: str, reason: str) -> None:
        """Give a reason once per metric and kind, on the first process only: after a sync all know the same."""
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(f"{type(self).__name__} {reason}")
