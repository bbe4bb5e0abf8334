"""Tail indices with intervals, and tests of what they rule out."""

from lightning_cx.functional.tails.ecf import EXPLORATORY, MIN_SAMPLES, PROJECTIONS, TailFit, alpha_ecf, project
from lightning_cx.functional.tails.extremes import hill, xi_dedh
from lightning_cx.functional.tails.goodness_of_fit import TailTest, aggregation_test, anderson_darling, stable_test
from lightning_cx.functional.tails.pooling import (
    MIN_SUMS,
    CoordinateTail,
    centred_norms,
    coordinate_tail,
    grouped_sums,
    without_drift,
)
from lightning_cx.functional.tails.report import TailReport, refused_report, tail_report
from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable

__all__ = [
    "EXPLORATORY",
    "MIN_SAMPLES",
    "MIN_SUMS",
    "PROJECTIONS",
    "CoordinateTail",
    "TailFit",
    "TailReport",
    "TailTest",
    "aggregation_test",
    "alpha_ecf",
    "anderson_darling",
    "centred_norms",
    "coordinate_tail",
    "elliptical_stable",
    "grouped_sums",
    "hill",
    "project",
    "refused_report",
    "stable_test",
    "symmetric_stable",
    "tail_report",
    "without_drift",
    "xi_dedh",
]
