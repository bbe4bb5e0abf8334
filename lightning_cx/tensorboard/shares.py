"""What both pictures of the bands start from: how much of each band is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_COLUMNS = 400
"""More columns than this would be narrower than two pixels."""


def shares_of_first(values: Array) -> Array:
    """Divide each band's energies by its first positive finite one; nan where there is none or an energy is none.

    Args:
        values: ``[S, B]`` energies.

    Example:
        >>> shares_of_first(np.array([[0.0, 4.0], [2.0, 1.0], [1.0, np.nan]])).tolist()
        [[0.0, 1.0], [1.0, 0.25], [0.5, nan]]
    """
    usable = np.isfinite(values) & (values > 0)
    first = values[usable.argmax(0), np.arange(values.shape[1])]
    first = np.where(usable.any(0), first, np.nan)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        shares = values / first
    return np.where(np.isfinite(values) & (values >= 0), shares, np.nan)


def thin_out(steps: Array, shares: Array) -> tuple[Array, Array]:
    """Keep at most `MAX_COLUMNS` steps, evenly and with both ends."""
    if len(steps) <= MAX_COLUMNS:
        return steps, shares
    kept = np.linspace(0, len(steps) - 1, MAX_COLUMNS).round().astype(int)
    return steps[kept], shares[kept]
