"""Per-example gradients from one ordinary backward.

A training step computes, on its way to the batch gradient, everything that tells how the gradients of single
examples lie to each other. `GradientTap` reads it off while it passes by:

    >>> import torch
    >>> from lightning_cx.gradients import GradientTap
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> x, y = torch.randn(6, 4), torch.randint(3, (6,))
    >>> loss = torch.nn.functional.cross_entropy(net(x), y)
    >>> tap = GradientTap(net.named_parameters(), batch_size=6)
    >>> with tap(loss):
    ...     loss.backward()
    >>> tap.sample.gram.shape, round(tap.sample.coverage, 4)
    (torch.Size([6, 6]), 1.0)

The batch gradient is the mean of the rows, so the mean of the Gram matrix is its squared norm; the tap checks that
each time. `per_example_gram`, `per_example_norms` and `per_example_gradients` do the same in one call;
`replay_gradients` is the slow way that needs no rule for the model's layers.
"""

from lightning_cx.gradients.calibration import (
    Calibration,
    calibrate,
    calibrate_in_training,
    calibrate_rows,
    find_layout,
    unchanged,
)
from lightning_cx.gradients.errors import (
    AmbiguousLayoutError,
    InseparableError,
    UnreachedError,
    UnsupportedGradientError,
)
from lightning_cx.gradients.factors.products import Products, Rows
from lightning_cx.gradients.functions import per_example_gradients, per_example_gram, per_example_norms, ride
from lightning_cx.gradients.graph.example_axis import first_input
from lightning_cx.gradients.graph.loss_terms import averaged_rows
from lightning_cx.gradients.graph.nodes import NodeRecord, register_node
from lightning_cx.gradients.projections import DIRECTIONS, ParameterSketch
from lightning_cx.gradients.replay import add_up, affordable_examples, replay_gradients
from lightning_cx.gradients.sample import CONTRIBUTION, EXACT, UNVERIFIED, Block, GradientSample, LayerGradients
from lightning_cx.gradients.tap import GradientTap

__all__ = [
    "CONTRIBUTION",
    "DIRECTIONS",
    "EXACT",
    "UNVERIFIED",
    "AmbiguousLayoutError",
    "Block",
    "Calibration",
    "GradientSample",
    "GradientTap",
    "InseparableError",
    "LayerGradients",
    "NodeRecord",
    "ParameterSketch",
    "Products",
    "Rows",
    "UnreachedError",
    "UnsupportedGradientError",
    "add_up",
    "affordable_examples",
    "averaged_rows",
    "calibrate",
    "calibrate_in_training",
    "calibrate_rows",
    "find_layout",
    "first_input",
    "per_example_gradients",
    "per_example_gram",
    "per_example_norms",
    "register_node",
    "replay_gradients",
    "ride",
    "unchanged",
]
