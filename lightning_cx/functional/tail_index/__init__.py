"""Tail indices that say how sure they are, and tests that say what they rule out."""

from lightning_cx.functional.tail_index.coordinates import CoordinateTail, coordinate_tail
from lightning_cx.functional.tail_index.ecf import alpha_ecf
from lightning_cx.functional.tail_index.extremes import hill, xi_dedh
from lightning_cx.functional.tail_index.fit import TailFit
from lightning_cx.functional.tail_index.goodness import TailTest, aggregation_test, anderson_darling, stable_test
from lightning_cx.functional.tail_index.pooling import without_drift
from lightning_cx.functional.tail_index.report import TailReport, tail_report
from lightning_cx.functional.tail_index.stable import elliptical_stable, symmetric_stable

__all__ = [
    "CoordinateTail",
    "TailFit",
    "TailReport",
    "TailTest",
    "aggregation_test",
    "alpha_ecf",
    "anderson_darling",
    "coordinate_tail",
    "elliptical_stable",
    "hill",
    "stable_test",
    "symmetric_stable",
    "tail_report",
    "without_drift",
    "xi_dedh",
]
