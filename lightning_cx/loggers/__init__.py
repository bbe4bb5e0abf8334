"""Where readings go, and how finished runs are read back and compared.

`write_reading` puts the numbers, histograms, texts and pictures of a reading into a TensorBoard event file, and
arranges its curves in charts; a Lightning callback does so for its Trainer. `compare_runs` reads the logs of several
runs and compares them at equal training loss.
"""

from lightning_cx.loggers.compare import ComparedValue, RunComparison, compare_runs
from lightning_cx.loggers.run_logs import read_curves
from lightning_cx.loggers.tensorboard import (
    write_histograms,
    write_layout,
    write_pictures,
    write_reading,
    write_texts,
)

__all__ = [
    "ComparedValue",
    "RunComparison",
    "compare_runs",
    "read_curves",
    "write_histograms",
    "write_layout",
    "write_pictures",
    "write_reading",
    "write_texts",
]
