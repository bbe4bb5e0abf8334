"""See what a network is learning while it trains, from one Lightning callback.

    from lightning_cx import ComplexityMonitor
    Trainer(callbacks=[ComplexityMonitor()])

`ComplexityMonitor` rides on the training's own backward passes and logs what single examples want of the weights, and
what of the target is still unlearned. `ProbeSet` chooses the fixed examples on which the latter is measured. The rooms
below work without a Trainer and without importing Lightning: `lightning_cx.functional` (maths on tensors),
`lightning_cx.gradients` (per-example gradients), `lightning_cx.metrics` (torchmetrics for any loop) and
`lightning_cx.instruments` (what is measured).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_cx.callbacks import ComplexityMonitor
    from lightning_cx.probe import ProbeSet

__version__ = version("lightning_cx")

__all__ = ["ComplexityMonitor", "ProbeSet", "__version__"]

_HOMES = {"ComplexityMonitor": "lightning_cx.callbacks", "ProbeSet": "lightning_cx.probe"}


def __getattr__(name: str) -> Any:
    # Late, so that who only wants the maths does not wait seconds for Lightning to be imported.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
