"""How complex a function of the examples is, as metrics: they keep examples until the graph over all can be built."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.utilities import dim_zero_cat

from lightning_cx.functional import Basis, complexity, default_features, inputs, laplacian_basis, octave_bands
from lightning_cx.metrics.base import DoubleMetric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_EXAMPLES = 16
"""Fewer examples than this hardly have more than the 10 neighbours of one of them, and 5 octaves need 16."""

MAX_EXAMPLES = 1024
"""Twice the default probe of the monitor. A graph of 1024 takes 0.6 s on one core, one of 2048 already 7 s."""


class ExampleMetric(DoubleMetric):
    """Keeps features and values of examples; the graph is built over all of them when the metric is computed.

    Features are z-scored, and words counted, over all examples of all processes rather than per batch. Neither the
    order of the examples nor how they are divided among processes and batches changes the answer.
    Integer token ids ``[b, T]`` become bags of words whether features are z-scored or not.
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


@final
class ResidualSpectrum(ExampleMetric):
    """Say which part of the residual is left: the mean, simple functions of the examples, or complex ones.

    Each band holds functions about twice as rough as the last; band 0 is the mean residual
    (`lightning_cx.functional.complexity.octave_energies`, on the `laplacian_basis` of the `default_features`). In a
    healthy run the low bands empty first. When they lie as low as the top bands and only those still fall, the
    network is fitting noise.

    As input to ``forward`` and ``update`` the metric accepts ``features`` ``[b, ...]`` and ``values`` ``[b]`` or
    ``[b, ...]``; see `update`. As output it returns the energies ``[bands]`` per example, float64, in the square of
    the unit of the values: 10 or 11 bands for 512 examples. They add up to the mean squared residual of the examples
    that are kept. nan, with the reason once as a warning, for fewer than 16 examples and for values that are not
    finite.

    Where single numbers are logged, as by Lightning's ``self.log_dict``, wrap it:
    ``torchmetrics.ClasswiseWrapper(ResidualSpectrum())`` computes a dict of scalars, one per band.

    Args:
        n_neighbors: Neighbours that each example is connected to.
        max_examples: Of more examples than this a fixed pseudo-random sample is kept, the same in every epoch.
        standardize: Whether to z-score each feature. False keeps the distances of the features as they are.
        kwargs: Those of torchmetrics.Metric.

    Raises:
        ValueError: If ``n_neighbors`` is below 1 or ``max_examples`` is not between 16 and 4096.

    References:
        THEORY section 4.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(60).double() / 60
        >>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> metric = ResidualSpectrum()
        >>> metric.update(circle, 3 + torch.cos(2 * angle))  # 9 in the mean, 1/2 in two waves
        >>> metric.compute().round(decimals=6).tolist()
        [9.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    """

    plot_legend_name = "band"

    def compute(self) -> Tensor:
        """Add up the energy of the values in each octave of complexity, per example."""
        seen = self._basis_and_values()
        if seen is None:
            bands = len(octave_bands(min(int(self.examples), self.max_examples)))
            return torch.full((max(1, bands),), torch.nan, dtype=torch.float64, device=self.device)
        return complexity.octave_energies(*seen)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> tuple[Figure | None, Axes]:
        """Plot the energy of each band on a logarithmic axis: one spectrum over its bands, or several over time.

        Args:
            val: What `forward` or `compute` returned, or a list of such; computed if not given. A batch of fewer
                examples may lack the uppermost bands.
            ax: Axes to draw on; a new figure if not given.

        Returns:
            The figure (None if axes were given) and the axes. Bands without energy are not on a logarithmic axis;
            it stays linear where no band has any.
        """
        spectra = [self.compute()] if val is None else [val] if isinstance(val, Tensor) else list(val)
        spectra = [spectrum.reshape(-1) for spectrum in spectra]
        most = max(len(spectrum) for spectrum in spectra)
        spectra = [pad(spectrum, (0, most - len(spectrum)), value=torch.nan) for spectrum in spectra]
        is_series = val is not None and not isinstance(val, Tensor)
        figure, axes = self._plot(spectra if is_series else spectra[0], ax)
        if any(bool((spectrum > 0).any()) for spectrum in spectra):
            axes.set_yscale("log")
            axes.autoscale(axis="y")  # torchmetrics' limits are those of a linear axis and may be negative
        if not is_series:
            axes.get_xaxis().set_visible(True)
            axes.set_xticks(range(most))
            axes.set_xlabel("octave of complexity, from the mean to the roughest")
        axes.set_ylabel("energy per example")
        return figure, axes


SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Shifts and multipliers that make every bit of 64 depend on all (Steele, Lea & Flood 2014, `mix64variant13`)."""


def content_sample(rows: Tensor, n_features: int, most: int) -> Tensor:
    """Keep `most` rows ``[n, d + C]`` of features and values, bit by bit the same ones whatever the order of the input.

    The order is that of a hash of the features, so that the first ``most`` are as good as drawn at random, the same
    in every epoch whatever their values have become, and the first of the union of several sets are among the first
    of each (a bottom-k sample; Cohen & Kaplan 2007): processes may drop the others before they are merged. Among equal
    features the values decide; equal rows are interchangeable.
    """
    if len(rows) == 0:
        return rows
    keyed = torch.cat([_hash(rows[:, :n_features])[:, None], rows], dim=1)
    _, rank = torch.unique(keyed, dim=0, return_inverse=True)  # the one lexicographic sort that torch has
    return rows[rank.argsort()[:most]]


def _hash(features: Tensor) -> Tensor:
    """Map each row to one of 2^53 equally likely numbers."""
    bits = (features + 0.0).contiguous().view(torch.int64)  # -0.0 equals 0.0, and so must its bits
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(-(2**62), 2**62, bits.shape[1:], generator=generator) + 1
    return (_mix((_mix(bits) * odd.to(bits.device)).sum(1)) >> 11).double()


def _mix(bits: Tensor) -> Tensor:
    for shift, multiplier in SPLITMIX:
        bits = (bits ^ (bits >> shift)) * (multiplier - 2**64)  # the same number modulo 2^64, as int64 has it
    return bits ^ (bits >> 31)
