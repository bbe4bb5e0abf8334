"""At which width of blocks a path is judged: so fine that short dwells are seen, so wide that blocks forget."""

from __future__ import annotations

import math

import numpy as np

from lightning_cx.functional.dwelling.blocks import Blocks
from lightning_cx.functional.dwelling.diffusion import CONFINED, Array

FEW = 512
"""A path that no width shows confined is judged in so many blocks at most: there is nothing short to be seen."""

STEP = 4
"""Widths differ by so much: blocks of a width average the noise that hides a jump from the next finer ones."""

_LAG = 4  # blocks over which the displacement is compared with that over one


def widths(blocks: Blocks) -> list[Blocks]:
    """The same path in blocks of the widths that are worth judging, the finest first.

    The finest is the first whose blocks forget: the median squared displacement, which jumps do not move, grows with an
    exponent below .5 from one block to four. Then come wider ones, of which there are 256 at least.

    Args:
        blocks: The path as fine as it is known.

    Returns:
        At least one; that with at most 512 blocks where no width forgets.
    """
    while len(blocks.means) > FEW and _exponent(blocks.means) >= CONFINED:
        blocks = blocks.coarser(2)
    found = [blocks]
    while len(found[-1].means) > 2 * FEW:
        found.append(found[-1].coarser(STEP))
    return found


def _exponent(means: Array) -> float:
    """Growth of the median squared displacement from one block to four."""
    means = means / (float(np.abs(means).max()) or 1.0)  # squares of huge numbers are none any more
    near, far = (float(np.median(np.square(means[lag:] - means[:-lag]).sum(1))) for lag in (1, _LAG))
    return math.log(far / near) / math.log(_LAG) if near > 0 and far > 0 else 0.0
