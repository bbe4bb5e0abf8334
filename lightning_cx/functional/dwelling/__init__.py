"""Where training dwells: places in which the parameters stay, jumps out of them, and whether a place pulls back.

>>> import numpy as np
>>> noise = 0.1 * np.random.default_rng(0).standard_normal(300)
>>> report = dwell(noise + (np.arange(300) >= 200))          # one place, then another
>>> report.escapes, report.present.start
(1, 200)
>>> dwell(noise.cumsum(0)).reason                            # a random walk stays nowhere
'no stretch of the path stays in one place'
"""

from lightning_cx.functional.dwelling.blocks import PathBlocks
from lightning_cx.functional.dwelling.convexity import PointConvexity, one_point_convexity
from lightning_cx.functional.dwelling.diffusion import DiffusionExponent, diffusion_exponent
from lightning_cx.functional.dwelling.dwells import dwell
from lightning_cx.functional.dwelling.report import DwellReport, Episode

__all__ = [
    "DiffusionExponent",
    "DwellReport",
    "Episode",
    "PathBlocks",
    "PointConvexity",
    "diffusion_exponent",
    "dwell",
    "one_point_convexity",
]
