"""The fixed examples on which spectra are compared, and the pass over them that leaves no trace."""

from lightning_cx.probe.filling import fill
from lightning_cx.probe.isolation import isolated, isolated_rng
from lightning_cx.probe.probe_set import ProbeSet
from lightning_cx.probe.reading import ProbeReading

__all__ = ["ProbeReading", "ProbeSet", "fill", "isolated", "isolated_rng"]
