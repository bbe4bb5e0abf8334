"""See what a network is learning while it trains, from one Lightning callback.

    from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor
    Trainer(callbacks=[ComplexityMonitor(), ComplexityEarlyStopping()])

`ComplexityMonitor` rides on the training's own backward passes and logs what single examples want of the weights, and
what of the target is still unlearned. `ComplexityEarlyStopping` stops the run, without a validation set, when it begins
to fit noise; `PathLeaveOneOut`, `SpectralRisk`, `HighComplexityDominance` and `ResidualWhiteness` are its rules.
`ProbeSet` chooses the fixed examples on which both look. `compare_runs` compares runs that are over, at equal training
loss. The rooms below work without a Trainer and without importing Lightning: `lightning_cx.functional` (maths on
tensors), `lightning_cx.gradients` (per-example gradients), `lightning_cx.metrics` (torchmetrics for any loop),
`lightning_cx.instruments` (what is measured) and `lightning_cx.rules` (when to stop).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_cx._version import __version__

if TYPE_CHECKING:
    from lightning_cx.batch import BatchSpec
    from lightning_cx.callbacks import ComplexityEarlyStopping, ComplexityMonitor
    from lightning_cx.loggers import compare_runs
    from lightning_cx.probe import ProbeSet
    from lightning_cx.rules import HighComplexityDominance, PathLeaveOneOut, ResidualWhiteness, SpectralRisk

__all__ = [
    "BatchSpec",
    "ComplexityEarlyStopping",
    "ComplexityMonitor",
    "HighComplexityDominance",
    "PathLeaveOneOut",
    "ProbeSet",
    "ResidualWhiteness",
    "SpectralRisk",
    "__version__",
    "compare_runs",
]

_HOMES = {
    "BatchSpec": "lightning_cx.batch",
    "ComplexityEarlyStopping": "lightning_cx.callbacks",
    "ComplexityMonitor": "lightning_cx.callbacks",
    "HighComplexityDominance": "lightning_cx.rules",
    "PathLeaveOneOut": "lightning_cx.rules",
    "ProbeSet": "lightning_cx.probe",
    "ResidualWhiteness": "lightning_cx.rules",
    "SpectralRisk": "lightning_cx.rules",
    "compare_runs": "lightning_cx.loggers",
}


def __getattr__(name: str) -> Any:
    # Late, so that who only wants the maths does not wait seconds for Lightning to be imported.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
