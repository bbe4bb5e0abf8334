"""Tail indices that say how sure they are, and tests that say what they rule out."""

from lightning_cx.functional.tails.coordinates import coordinate_tail
from lightning_cx.functional.tails.ecf import alpha_ecf, project
from lightning_cx.functional.tails.extremes import hill, xi_dedh
from lightning_cx.functional.tails.fit import EXPLORATORY, MIN_SAMPLES, TailFit
from lightning_cx.functional.tails.make_quantiles import PROJECTIONS
from lightning_cx.functional.tails.pooling import MIN_SUMS, centred_norms, grouped_sums, without_drift
from lightning_cx.functional.tails.report import TailReport, refused_report, tail_report

__all__ = [
    "EXPLORATORY",
    "MIN_SAMPLES",
    "MIN_SUMS",
    "PROJECTIONS",
    "TailFit",
    "TailReport",
    "alpha_ecf",
    "centred_norms",
    "coordinate_tail",
    "grouped_sums",
    "hill",
    "project",
    "refused_report",
    "tail_report",
    "without_drift",
    "xi_dedh",
]
