"""How training ends: the law of the last stretch of the loss, and the rate that the Jacobian predicts."""

from lightning_cx.functional.convergence.local_rate import (
    RANK_TOLERANCE,
    LocalModel,
    jacobian_rank,
    local_model,
    local_rate,
)
from lightning_cx.functional.convergence.loss_tail import LossTail, loss_tail, short

__all__ = [
    "RANK_TOLERANCE",
    "LocalModel",
    "LossTail",
    "jacobian_rank",
    "local_model",
    "local_rate",
    "loss_tail",
    "short",
]
