"""Tail indices that say how sure they are, and tests that say what they rule out."""

from lightning_cx.functional.tail_index.ecf import alpha_ecf
from lightning_cx.functional.tail_index.extremes import hill, xi_dedh
from lightning_cx.functional.tail_index.fit import TailFit
from lightning_cx.functional.tail_index.goodness import TailTest, aggregation_test, anderson_darling, stable_test
from lightning_cx.functional.tail_index.report import TailReport, tail_report
from lightning_cx.functional.tail_index.stable import elliptical_stable, symmetric_stable

__all__ = [
    "TailFit",
    "TailReport",
    "TailTest",
    "aggregation_test",
    "alpha_ecf",
    "anderson_darling",
    "elliptical_stable",
    "hill",
    "stable_test",
    "symmetric_stable",
    "tail_report",
    "xi_dedh",
]
