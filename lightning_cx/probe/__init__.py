"""The fixed examples on which spectra are compared, and the passes over them that leave no trace."""

from lightning_cx._torch import anything_compiled
from lightning_cx.probe.conditions import batch_statistics, compiled_parts, eagerly, running_norms
from lightning_cx.probe.dataset import keyed
from lightning_cx.probe.isolation import drawing, isolated, isolated_rng, used_up, watched_pass
from lightning_cx.probe.outputs import LossOf
from lightning_cx.probe.passes import ProbePasses
from lightning_cx.probe.probe_set import ProbeSet, fill
from lightning_cx.probe.reach import Found
from lightning_cx.probe.reading import ProbeReading
from lightning_cx.probe.residual_gradients import ResidualGradients

__all__ = [
    "Found",
    "LossOf",
    "ProbePasses",
    "ProbeReading",
    "ProbeSet",
    "ResidualGradients",
    "anything_compiled",
    "batch_statistics",
    "compiled_parts",
    "drawing",
    "eagerly",
    "fill",
    "isolated",
    "isolated_rng",
    "keyed",
    "running_norms",
    "used_up",
    "watched_pass",
]
