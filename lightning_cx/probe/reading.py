"""What one pass over the fixed probe examples showed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_cx.gradients import GradientSample


@dataclass(frozen=True)
class ProbeReading:
    """Outputs and residuals of the model on the fixed probe.

    Attributes:
        outputs: Model outputs f, [n, C] float64.
        residuals: r = minus the derivative of each example's loss with respect to its outputs, [n, C] float64:
            y - f for half the squared error, onehot - softmax for cross entropy.
        features: The view of the inputs in which neighbours are sought, [n, d] float64.
        coupled: Whether an example's residual depends on the others in its chunk (in-batch losses, class
            weights); the residual is then its share of the chunk's loss.
        source: In words, which tensor was taken for the model's output.
        gradients: Per-example gradients of the first of the examples, in eval mode, where asked for.
        mixed: Whether the others change the direction of a residual, not only its size (mixup, in-batch negatives): it
            then does not say what the example's own output should become.
        loss: Mean loss of an example; nan where it is not known.
        drawn: Whether residuals depend on random numbers that the loss draws, even in eval mode (a diffusion's times
            and noise, the code of a variational autoencoder): they are then those of one draw, the same each time.
    """

    outputs: Tensor
    residuals: Tensor
    features: Tensor
    coupled: bool = False
    source: str = ""
    gradients: GradientSample | None = None
    mixed: bool = False
    loss: float = math.nan
    drawn: bool = False

    def __str__(self) -> str:
        n, c = self.residuals.shape
        energy = self.residuals.square().sum().item() / n
        coupled = ", examples coupled" if self.coupled else ""
        return f"probe of {n} examples with {c} outputs ({self.source}): residual energy {energy:.4g}{coupled}"
