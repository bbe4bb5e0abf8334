"""Metrics of a function of the examples: they keep examples until the graph over all of them can be built."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_cx.functional import Basis, complexity, default_features, inputs, laplacian_basis
from lightning_cx.metrics.base import DoubleMetric
from lightning_cx.metrics.subset import content_sample

MIN_EXAMPLES = 16
"""Fewer examples than this hardly have more than the 10 neighbours of one of them, and 5 octaves need 16."""

MAX_EXAMPLES = 1024
"""Twice the default probe of the monitor. A graph of 1024 takes 0.6 s on one core, one of 2048 already 7 s."""


class ExampleMetric(DoubleMetric):
    """Keeps features and values of examples; the graph is built over all of them when the metric is computed.

    Features are z-scored, and words counted, over all examples of all processes rather than per batch. Neither the
    order of the examples nor how they are divided among processes and batches changes the answer.

    Args:
        n_neighbors: Neighbours that each example is connected to.
        max_examples: Of more examples than this a fixed pseudo-random sample is kept, the same in every epoch.
        standardize: Whether to z-score each feature. False keeps the distances of the features as they are, say
            those of an embedding; integer token ids ``[b, T]`` become bags of words either way.
        kwargs: Those of torchmetrics.Metric.

    Raises:
        ValueError: If ``n_neighbors`` is below 1 or ``max_examples`` is not between 16 and 4096.
    """

    rows: list[Tensor] | Tensor
    examples: Tensor
    non_finite: Tensor
    layout: Tensor

    def __init__(
        self, n_neighbors: int = 10, max_examples: int = MAX_EXAMPLES, standardize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if n_neighbors < 1:
            raise ValueError(f"each example needs at least one neighbour, got n_neighbors={n_neighbors}.")
        if not MIN_EXAMPLES <= max_examples <= complexity.MAX_DENSE:
            raise ValueError(
                f"a graph needs at least {MIN_EXAMPLES} examples and holds at most {complexity.MAX_DENSE}, "
                f"got max_examples={max_examples}: of more examples a sample of that size is kept."
            )
        self.n_neighbors, self.max_examples, self.standardize = n_neighbors, max_examples, standardize
        # One flat list: a process without data adds an empty one-dimensional tensor, which fits to no matrix.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("examples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("non_finite", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # Numbers of features and of values, and whether token ids or other numbers were seen.
        self.add_state("layout", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="max")

    def update(self, features: Any, values: Any) -> None:
        """Keep a batch of examples.

        Args:
            features: ``[b, ...]`` inputs or an embedding of them: what makes two examples similar. Floats, images or
                integer token ids ``[b, T]``; tensor, array or list.
            values: ``[b]`` or ``[b, ...]`` the function: residuals, predictions, one-hot labels. Outputs add up.

        Raises:
            ValueError: If the two disagree about b, either has no columns or is complex, the features are one id per
                example, or they are not of the kind and size of those before.
        """
        features, values = inputs.as_tensor(features), inputs.as_tensor(values)
        ids = complexity.holds_ids(features)
        if ids and features.ndim < 2:
            default_features(features)  # says why labels are no features, and raises
        left, right = self._matrix("features", features), self._matrix("values", values)
        if len(left) != len(right):
            raise ValueError(f"each example needs features and values, got {len(left)} and {len(right)} rows.")
        self._agree([left.shape[1], right.shape[1], int(ids), int(not ids)])
        rows = torch.cat([left, right], dim=1)
        is_finite = rows.isfinite().all(1)
        assert isinstance(self.rows, list)  # a tensor only between sync and unsync
        self.rows.append(rows[is_finite].flatten())
        self.examples = self.examples + is_finite.sum()
        self.non_finite = self.non_finite + (~is_finite).sum()
        self._drop_surplus()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and compute on this batch alone; costs a graph per batch, so prefer `update` where that is idle."""
        value = super().forward(*args, **kwargs)
        self._drop_surplus()  # update saw the batch only
        return value

    def merge_state(self, incoming_state: Any) -> None:
        """Take in what another metric has seen."""
        super().merge_state(incoming_state)
        self._drop_surplus()

    @abstractmethod
    def compute(self) -> Tensor:
        """Build the graph over all examples and say what the values are on it."""

    def _matrix(self, name: str, values: Tensor) -> Tensor:
        if values.ndim == 0 or values.is_complex() or values.shape[1:].numel() == 0:
            raise ValueError(
                f"{name} must be real, with one row per example and at least one column, "
                f"got {str(values.dtype).removeprefix('torch.')} of shape {list(values.shape)}."
            )
        return values.detach().to(self.device, torch.float64).reshape(len(values), values.shape[1:].numel())

    def _agree(self, layout: list[int]) -> None:
        known = self.layout.tolist()
        if known[0] and known != layout:
            raise ValueError(
                f"examples of {layout[0]} features and {layout[1]} values cannot stand beside those before, of "
                f"{known[0]} and {known[1]}, or token ids beside other numbers: reset the metric first."
            )
        self.layout = self.layout.new_tensor(layout)

    def _drop_surplus(self) -> None:
        # Only when twice as many have gathered, so that sorting stays a small part of the work.
        if sum(len(row) for row in self.rows) > 2 * self.max_examples * int(self.layout[:2].sum()):
            sample = self._sample()
            self.rows, self.examples = [sample.flatten()], self.examples.new_tensor(len(sample))

    def _sample(self) -> Tensor:
        n_features, n_values, has_ids, has_numbers = self.layout.tolist()
        flat, width = dim_zero_cat(self.rows), n_features + n_values
        if flat.numel() != int(self.examples) * width or (has_ids and has_numbers):
            raise ValueError(
                f"{type(self).__name__} was given examples of different kinds or sizes on different processes or in "
                f"different batches, at most {n_features} features and {n_values} values: they must agree."
            )
        return content_sample(flat.reshape(-1, width), n_features, self.max_examples)

    def _basis_and_values(self) -> tuple[Basis, Tensor] | None:
        """Build the graph and return it with the values ``[n, C]`` in its order; None, with a reason, if in vain."""
        n, bad = int(self.examples), int(self.non_finite)
        if bad:
            self._warn_once("finite", f"is nan: {bad} examples have NaN or infinite features or values.")
            return None
        if n < MIN_EXAMPLES:
            self._warn_once("few", f"is nan: it has seen {n} examples, and needs at least {MIN_EXAMPLES}.")
            return None
        n_features, n_values, has_ids, _ = self.layout.tolist()
        features, values = self._sample().split([n_features, n_values], dim=1)
        if has_ids:
            features = default_features(features.long())
        elif self.standardize:
            features = default_features(features)
        return laplacian_basis(features, self.n_neighbors), values
