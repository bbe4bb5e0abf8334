"""What of a function of the examples is simple and what complex, octave by octave, as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_cx.functional import complexity, octave_bands
from lightning_cx.metrics.examples import ExampleMetric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
