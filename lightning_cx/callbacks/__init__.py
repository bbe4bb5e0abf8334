"""The Trainer's door to the instruments."""

from lightning_cx.callbacks.early_stopping import ComplexityEarlyStopping
from lightning_cx.callbacks.monitor import ComplexityMonitor

__all__ = ["ComplexityEarlyStopping", "ComplexityMonitor"]
