"""The path of the parameters: where it dwells, what it escapes from, and its geometry."""

from lightning_cx.functional.trajectories.blocks import PathBlocks
from lightning_cx.functional.trajectories.diffusion import DiffusionExponent, diffusion_exponent
from lightning_cx.functional.trajectories.dwells import DwellReport, Episode, dwell, dwell_blocks
from lightning_cx.functional.trajectories.geometry import (
    DistanceFromStart,
    PointConvexity,
    bound_index,
    distance_from_start,
    levy_dimension_constant,
    one_point_convexity,
    positive_magnitude,
    spanning_tree_length,
)

__all__ = [
    "DiffusionExponent",
    "DistanceFromStart",
    "DwellReport",
    "Episode",
    "PathBlocks",
    "PointConvexity",
    "bound_index",
    "diffusion_exponent",
    "distance_from_start",
    "dwell",
    "dwell_blocks",
    "levy_dimension_constant",
    "one_point_convexity",
    "positive_magnitude",
    "spanning_tree_length",
]
