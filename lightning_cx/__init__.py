"""See what a network is learning while it trains, from one Lightning callback.

    from lightning_cx import ComplexityMonitor
    Trainer(callbacks=[ComplexityMonitor()])

`ComplexityMonitor` rides on the training's own backward passes and logs what single examples want of the weights, and
what of the target is still unlearned. `ProbeSet` chooses the fixed examples on which the latter is measured. The rooms
below work without a Trainer: `lightning_cx.functional` (maths on tensors), `lightning_cx.gradients` (per-example
gradients) and `lightning_cx.instruments` (what is measured).
"""

from importlib.metadata import version

from lightning_cx.callbacks import ComplexityMonitor
from lightning_cx.probe import ProbeSet

__version__ = version("lightning_cx")

__all__ = ["ComplexityMonitor", "ProbeSet", "__version__"]
