"""The fixed examples on which spectra are compared, and the pass over them that leaves no trace."""

from lightning_cx._torch import anything_compiled
from lightning_cx.probe.batch_statistics import batch_statistics, running_norms
from lightning_cx.probe.batches import join, leaves, spread_out, take
from lightning_cx.probe.draws import drawing, watched_pass
from lightning_cx.probe.eager import compiled_parts, eagerly
from lightning_cx.probe.filling import fill
from lightning_cx.probe.isolation import isolated, isolated_rng
from lightning_cx.probe.passes import LossOf
from lightning_cx.probe.probe_set import ProbeSet
from lightning_cx.probe.reading import ProbeReading
from lightning_cx.probe.targets import targets_of
from lightning_cx.probe.view import ModelView

__all__ = [
    "LossOf",
    "ModelView",
    "ProbeReading",
    "ProbeSet",
    "anything_compiled",
    "batch_statistics",
    "compiled_parts",
    "drawing",
    "eagerly",
    "fill",
    "isolated",
    "isolated_rng",
    "join",
    "leaves",
    "running_norms",
    "spread_out",
    "take",
    "targets_of",
    "watched_pass",
]
