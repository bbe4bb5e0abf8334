"""The Gauss-Newton curvature of a training batch, from nothing but the Gram matrix of its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_cx.functional import curvature
from lightning_cx.gradients import EXACT, GradientSample, UnsupportedGradientError
from lightning_cx.probe import ProbePasses

EXAMPLES = 31  # probe examples on which the output bias and the loss are recognised

ALIKE = 1e-3  # relative miss of the output bias's Gram matrix; a float32 backward misses by 1e-6


@dataclass(frozen=True)
class BatchReader:
    """Knows which parameter is the output bias and what law the loss follows, or why there is no such thing.

    Attributes:
        bias: Name of the output bias; None where the curvature of a batch cannot be read.
        law: Of the loss.
        why: Then, the reason.
    """

    bias: str | None
    law: curvature.ResidualLaw | None
    why: str = ""

    def read(self, sample: GradientSample) -> tuple[curvature.GaussNewton | None, str]:
        """Gauss-Newton matrix of a batch, or None and the reason.

        Args:
            sample: Its gradients, with the Gram matrices of single parameters.
        """
        if self.bias is None or self.law is None:
            return None, self.why
        if sample.status != EXACT:
            return None, "examples act on each other in this batch, so gradients are not those of single losses"
        if sample.blocks:
            return None, "processes share the batch, and each knows the inner products of its own examples only"
        layer = sample.layers.get(self.bias)
        if sample.gram is None or layer is None or layer.gram is None:
            return None, f"the gradients of {self.bias} were not read"
        found = curvature.gauss_newton_from_gradients(sample.gram, layer.gram, self.law)
        return found, "" if bool(found.value.isfinite()) else "the gradients of this batch are zero or not finite"


def batch_reader(view: ProbePasses, outputs: int) -> BatchReader:
    """Find the output bias and the law of the loss on a few probe examples.

    Args:
        view: The model.
        outputs: How many it has.
    """
    if outputs != 1:
        why = f"with {outputs} outputs a loss gradient shows the Jacobian only along the residual of its example"
        return BatchReader(
            None, None, f"{why}; the Gram matrix of gradients gives the Gauss-Newton matrix of one output"
        )
    try:
        examples = min(EXAMPLES, view.examples)
        jacobian, sample = view.jacobian(examples), view.gradients(examples, per_layer=True)
    except (UnsupportedGradientError, ValueError) as error:
        return BatchReader(None, None, str(error))
    truth = torch.outer(jacobian.residuals[:, 0], jacobian.residuals[:, 0])
    single = [name for name, p in view.parameters().items() if p.numel() == 1]
    for name in single:
        gram = sample.layers[name].gram if name in sample.layers else None
        if gram is not None and float((gram - truth).norm()) <= ALIKE * float(truth.norm()):
            law = curvature.residual_law(jacobian.residuals[:, 0], jacobian.hessian[:, 0, 0])
            why = "" if law else "the loss was not recognised as squared error or logistic on labels of 0 and 1"
            return BatchReader(name if law else None, law, why)
    return BatchReader(None, None, "the model has no output bias, which alone shows the residuals in a gradient")
