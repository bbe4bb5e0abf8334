"""How heavy the tail of gradient noise is, pooled over batches and processes, as a metric."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_cx.functional import inputs, tail_report, tails
from lightning_cx.metrics.base import DoubleMetric

OTHERS = 3
"""Columns beside the projections: norm, whether the gradient is zero, number of the batch."""

MIN_BATCH = 4
"""In a smaller batch the mean that is taken off every gradient is mostly that gradient."""


@final
class TailIndex(DoubleMetric):
    """Say how heavy the tail of the gradient noise of single examples is: 2 is Gaussian, less is heavier.

    Gradients are projected onto fixed random directions, less their mean over the batch; noise of a scale that drifts
    over the batches would look heavy, so the drift is taken out (`lightning_cx.functional.tails.without_drift`).
    All that is kept then goes into `lightning_cx.functional.tail_report`, whichever process saw which batch.

    As input to ``forward`` and ``update`` the metric accepts the gradients of the examples of one batch; see `update`.
    As output it returns a float64 scalar, the index of single examples; `report` has its interval, the index of sums of
    a batch, the extreme value index and a verdict. nan, with the reason once as a warning, for fewer than 128 examples
    and where more than half of the gradients are zero. Batches of fewer than 4 examples and those with NaN or infinite
    gradients are left out, with one warning.

    Args:
        batch_size: How many gradients one step of the optimizer sums, over all processes and accumulated batches. None
            takes the size of the batches that came, over all processes.
        window: Keep only the newest batches, as many as hold this many examples on this process; None keeps all. Each
            kept example takes 17 numbers.
        seed: Seed of directions, groups and nulls.
        kwargs: Those of torchmetrics.Metric.

    Raises:
        ValueError: If `batch_size` or `window` is not positive.

    References:
        THEORY section 6; see `lightning_cx.functional.alpha_ecf` and `tail_report`.

    Example:
        >>> from lightning_cx.functional.tails import elliptical_stable
        >>> draw, metric = torch.Generator().manual_seed(0), TailIndex()
        >>> for _ in range(32):
        ...     metric.update(elliptical_stable(1.5, 64, 300, draw))  # gradients of 64 examples
        >>> f"{metric.compute():.1f}", metric.report().verdict
        ('1.5', 'stable')
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 2.0

    rows: list[Tensor] | Tensor
    steps: Tensor
    columns: Tensor
    kind: Tensor
    too_small: Tensor
    non_finite: Tensor

    def __init__(self, batch_size: int | None = None, window: int | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"a batch holds at least one example, got batch_size={batch_size}.")
        if window is not None and window < 1:
            raise ValueError(f"the window holds at least one example, got window={window}.")
        self.batch_size, self.window, self.seed = batch_size, window, seed
        # Metrics of a collection whose states are equal share them; those of another window or seed must not. It comes
        # first, for torchmetrics 1.6 compares no other.
        self.add_state("kind", torch.tensor([window or 0, seed % 2**62]), dist_reduce_fx="max")
        # One flat list: a process without data adds an empty one-dimensional tensor, which fits to no matrix.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("columns", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")
        for name in ("steps", "too_small", "non_finite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, gradients: Any, norms: Any = None) -> None:
        """Add the gradients of the examples of one batch.

        Args:
            gradients: ``[b, d]``, real; tensor, array or list. Up to 16 columns are taken as projections onto fixed
                random directions, such as the tap gives them; wider ones are projected. ``[b]`` is one projection.
            norms: ``[b]`` norms of the gradients less their mean, where these are known; else the projections tell.

        Raises:
            ValueError: If the shape is not ``[b]`` or ``[b, d]``, norms are not ``[b]``, or the number of projections
                is not that of the batches before.
        """
        gradients = inputs.as_tensor(gradients).detach().to(self.device)
        if gradients.ndim not in (1, 2) or (gradients.ndim == 2 and gradients.shape[1] == 0):
            raise ValueError(f"gradients are [b, d], or [b] for one projection, got shape {list(gradients.shape)}.")
        b = len(gradients)
        projected = tails.project(
            gradients, None if gradients.shape[-1] <= tails.PROJECTIONS else tails.PROJECTIONS, self.seed
        )
        is_zero = (projected == 0).all(1, keepdim=True).double()
        centred = projected - projected.mean(0)
        sizes = centred.square().mean(1).sqrt() if norms is None else inputs.as_tensor(norms).detach().to(centred)
        if sizes.shape != (b,):
            raise ValueError(f"each of {b} gradients has one norm, got shape {list(sizes.shape)}.")
        self._agree(projected.shape[1])
        self.steps = self.steps + 1
        if b < MIN_BATCH:
            self.too_small = self.too_small + 1
        elif not bool(centred.isfinite().all() & sizes.isfinite().all()):
            self.non_finite = self.non_finite + 1
        else:
            step = self.steps.double().expand(b, 1)
            assert isinstance(self.rows, list)  # a tensor only between sync and unsync
            self.rows.append(torch.cat([centred, sizes[:, None], is_zero, step], dim=1).flatten())
            self._drop_oldest()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and compute on this batch alone: nan if it is smaller than 128, so `update` is mostly enough."""
        known = len(self.rows)
        value = super().forward(*args, **kwargs)
        for rows in self.rows[known:]:  # the batch was counted on an empty state
            self._numbers(rows).fill_(self.steps)
        self._drop_oldest()
        return value

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another metric has seen, as batches that came after those seen here."""
        before, own = int(self.steps), list(self.rows)
        state: dict[str, Any] = incoming_state if isinstance(incoming_state, dict) else incoming_state.metric_state
        columns = torch.as_tensor(state["columns"])
        if int(columns):
            self._agree(int(columns))
        super().merge_state(incoming_state)  # which puts what comes in first
        others = [rows.clone() for rows in self.rows[: len(self.rows) - len(own)]]
        for rows in others:
            self._numbers(rows).add_(before)
        self.rows = [*own, *others]
        self._drop_oldest()

    def compute(self) -> Tensor:
        """Return the tail index of single examples."""
        return self._report().alpha

    def report(self) -> tails.TailReport:
        """Return all that can be said, with intervals, verdict and reason.

        Like `compute` it gathers from all processes, so all must call it.

        Returns:
            TailReport of the gradients of single examples, whose sums are those of a batch.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._report()

    @property
    def held(self) -> int:
        """Number of examples kept on this process."""
        return sum(rows.numel() for rows in self.rows) // (max(1, int(self.columns)) + OTHERS)

    @property
    def examples_per_step(self) -> int:
        """How many gradients a step sums: as was said, or the size of the batches that came."""
        if self.batch_size:
            return self.batch_size
        counts = self._parts()[3].unique(return_counts=True)[1]
        return int(counts.median()) if len(counts) else 1

    def assess(self, pooled: tuple[Tensor, Tensor] | None = None) -> tails.TailReport:
        """Return the report of what this process has seen, without a warning; `pooled` saves computing it again."""
        zeros, size = self._parts()[2], self.examples_per_step
        share = float(zeros.mean()) if len(zeros) else 0.0
        if share > 0.5:
            why = f"degenerate: {share:.0%} of the examples have no gradient at all"
            return tails.refused_report(len(zeros), size, why, zeros)
        projections, norms = self.pooled() if pooled is None else pooled
        return tail_report(projections, size, self.seed, projections=None, norms=norms)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Return the projections ``[n, k]`` and norms ``[n]`` held here, float64, without the drift of the scale."""
        projections, norms, _, steps = self._parts()
        level = tails.without_drift(torch.cat([projections, norms[:, None]], dim=1), steps)
        return level[:, :-1], level[:, -1]

    def _report(self) -> tails.TailReport:
        small, bad = int(self.too_small), int(self.non_finite)
        if small + bad:
            self._warn_once(
                "left out",
                f"leaves out {small + bad} of {int(self.steps)} batches: {small} of fewer than {MIN_BATCH} examples, "
                f"{bad} with NaN or infinite gradients.",
            )
        report = self.assess()
        if bool(report.alpha.isnan()):
            self._warn_once("refused", f"is nan: {report.reason}.")
        return report

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Projections, norms, whether the gradient is zero, and number of the batch, of every example kept."""
        columns = max(1, int(self.columns))
        held = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, dtype=self.dtype, device=self.device)
        if held.numel() % (columns + OTHERS):
            raise ValueError(
                f"TailIndex was given different numbers of projections, at most {columns}: they must agree."
            )
        rows = held.view(-1, columns + OTHERS)
        return rows[:, :columns], rows[:, columns], rows[:, columns + 1], rows[:, columns + 2]

    def _numbers(self, rows: Tensor) -> Tensor:
        """The numbers of the batches in a stretch of rows, to be changed in place."""
        return rows.view(-1, max(1, int(self.columns)) + OTHERS)[:, -1]

    def _agree(self, columns: int) -> None:
        known = int(self.columns)
        if known not in (0, columns):
            raise ValueError(f"{columns} projections cannot stand beside {known} of the batches before.")
        self.columns = self.columns.new_tensor(columns)

    def _drop_oldest(self) -> None:
        if self.window is not None and isinstance(self.rows, list):
            sizes = [len(rows) // (int(self.columns) + OTHERS) for rows in self.rows]
            while sizes and sum(sizes) - sizes[0] >= self.window:
                del sizes[0], self.rows[0]
