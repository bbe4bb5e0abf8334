"""The path of the parameters: where it dwells, what it escapes from, and its geometry."""

from lightning_cx.functional.trajectories.blocks import PathBlocks
from lightning_cx.functional.trajectories.convexity import PointConvexity, one_point_convexity
from lightning_cx.functional.trajectories.dwells import DwellReport, dwell, dwell_blocks
from lightning_cx.functional.trajectories.geometry import (
    bound_index,
    distance_from_start,
    noise_level,
    positive_magnitude,
    spanning_tree_length,
)

__all__ = [
    "DwellReport",
    "PathBlocks",
    "PointConvexity",
    "bound_index",
    "distance_from_start",
    "dwell",
    "dwell_blocks",
    "noise_level",
    "one_point_convexity",
    "positive_magnitude",
    "spanning_tree_length",
]
