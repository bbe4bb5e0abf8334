"""How fast each band of the residual decays, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

MIN_READINGS = 6
"""Fewer points cannot tell how their deviations from a line hang together."""

MAX_CORRELATION = 0.95
"""Of neighbouring deviations: so few readings cannot show more, and the error must stay finite."""

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class DecayRates:
    """Exponential decay of several energies; every tensor is ``[B]`` float64, one entry per band.

    Attributes:
        rate: Relative loss of energy per step, ``-d log(energy) / dt``; negative where the energy grows.
        low: Lower end of the rate's 95% interval.
        high: Upper end.
    """

    rate: Tensor
    low: Tensor
    high: Tensor

    @property
    def falls(self) -> Tensor:
        """``[B]`` bool: whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def half_life(self) -> Tensor:
        """Steps in which half of the energy goes, ``log 2 / rate``; inf where no fall is certain, nan where unknown."""
        half_life = torch.where(self.falls, math.log(2) / self.rate, torch.inf)
        return torch.where(self.rate.isnan(), torch.nan, half_life)


def decay_rates(steps: Tensor, energies: Tensor) -> DecayRates:
    """Say how fast each band is being learned, as a rate per step with its interval.

    The rate is minus the slope of a least-squares line through ``log energy`` over the steps. Readings of one run are
    not independent, and a decay is rarely one exponential, so the usual standard error is multiplied by
    ``sqrt((1 + rho) / (1 - rho))``: rho in [0, .95] is the correlation of neighbouring deviations from the line,
    corrected for what fitting the line takes of it. Under deviations that are an autoregression of correlation
    0, .5 and .8 the interval held the truth in 97, 90 and 83% of 2000 runs of 8 readings, in 96, 93 and 90% of 64.

    Args:
        steps: ``[S]`` ascending.
        energies: ``[S, B]`` energies at these steps.

    Returns:
        DecayRates in 1/step; nan for a band with fewer than 6 positive finite energies, or with all at one step.

    Raises:
        ValueError: If there is not one row of energies for each step.

    References:
        THEORY section 4; Bartlett 1935 for the variance of autocorrelated readings;
        Marriott & Pope 1954 for the bias of their correlation.

    Example:
        >>> import torch
        >>> steps = torch.arange(0, 100, 10)
        >>> rates = decay_rates(steps, torch.exp(-0.02 * steps)[:, None])
        >>> round(float(rates.rate), 6), round(float(rates.half_life), 3)
        (0.02, 34.657)
    """
    steps, energies = as_tensor(steps).double(), as_tensor(energies).double()
    if steps.ndim != 1 or energies.ndim != 2 or len(steps) != len(energies):
        raise ValueError(
            f"each step needs one row of energies, got steps {list(steps.shape)} and energies {list(energies.shape)}."
        )
    ends = [_line(steps, energies[:, band]) for band in range(energies.shape[1])]
    rate, low, high = torch.tensor(ends, dtype=torch.float64).reshape(-1, 3).T
    return DecayRates(rate, low, high)


def _line(steps: Tensor, energy: Tensor) -> tuple[float, float, float]:
    usable = energy.isfinite() & (energy > 0)
    count = int(usable.sum())
    t, y = steps[usable], energy[usable].log()
    t, y = t - t.mean(), y - y.mean()
    spread = float(t.square().sum()) if count else 0.0
    if count < MIN_READINGS or spread == 0:
        return math.nan, math.nan, math.nan
    slope = float((t * y).sum()) / spread
    deviation = y - slope * t
    squares = float(deviation.square().sum())
    seen = float((deviation[1:] * deviation[:-1]).sum()) / squares if squares > 0 else 0.0
    rho = min(max((count * seen + 2) / (count - 4), 0.0), MAX_CORRELATION)  # the line takes (2 + 4 rho) / count away
    error = math.sqrt(squares / (count - 2) / spread * (1 + rho) / (1 - rho))
    margin = float(stdtrit(count - 2, (1 + CONFIDENCE) / 2)) * error
    return -slope, -slope - margin, -slope + margin
