"""Products of the Hessian of the loss with a vector, on a few fixed examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.passes import Chunk, LossOf, Reduction
from lightning_cx.probe.slopes import reachable


class HessianProducts:
    """The Hessian H of the mean loss over some examples, as what it does to a vector; H itself is never formed.

    Args:
        parameters: Trainable parameters by name; a vector holds their entries one after another.
        slopes: Gradient of the mean loss in each of them, with its graph; None where the loss does not reach it.

    Attributes:
        size: Number of trainable parameters P.
        gradient: Gradient of the mean loss, [P].
    """

    def __init__(self, parameters: Mapping[str, Tensor], slopes: Sequence[Tensor | None]) -> None:
        self._parameters = list(parameters.values())
        self._slopes = slopes
        self.size = sum(p.numel() for p in self._parameters)
        self.gradient = self._flat([None if s is None else s.detach() for s in slopes])

    def __call__(self, vector: Tensor) -> Tensor:
        """H v, [P] in the dtype of the parameters.

        Args:
            vector: v, [P].

        Raises:
            UnsupportedGradientError: If something in the model has no second derivative.
        """
        parts = torch.split(vector.to(self.gradient), [p.numel() for p in self._parameters])
        pairs = [
            (slope, part.view_as(slope))
            for slope, part in zip(self._slopes, parts, strict=True)
            if slope is not None and slope.requires_grad
        ]
        if not pairs:  # the loss is linear in all parameters
            return torch.zeros_like(self.gradient)
        slopes, directions = zip(*pairs, strict=True)
        try:
            return self._flat(
                torch.autograd.grad(slopes, self._parameters, directions, retain_graph=True, allow_unused=True)
            )
        except RuntimeError as error:
            raise _no_second_derivative(error) from error

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(self._parameters, parts, strict=True)
        return torch.cat([(torch.zeros_like(p) if part is None else part).detach().flatten() for p, part in pairs])


@contextmanager
def hessian_products(
    module: nn.Module, chunks: Sequence[Callable[[], Chunk]], loss_of: LossOf, reduction: Reduction
) -> Iterator[HessianProducts]:
    """Hold the graph of the gradient on some examples, for products with its Hessian.

    Args:
        module: The model; run in eval mode and in isolation until the block ends.
        chunks: Functions that put a chunk on the device; the graphs of all of them are held at once.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        reduction: How the loss adds up.

    Raises:
        UnsupportedGradientError: If the loss has no graph, or something in the model has no second derivative.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    # Fused attention and recurrence have first derivatives only.
    plain = torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
    with isolated(module, guard=True), eagerly(), plain[0], plain[1], torch.enable_grad():
        total: Tensor | None = None
        examples = 0
        for make in chunks:
            chunk = make()
            loss = loss_of(chunk.batch)
            scale = chunk.examples if reduction.mean and loss.numel() == 1 else 1
            total = loss.sum() * scale if total is None else total + loss.sum() * scale
            examples += chunk.examples
        if total is None or total.grad_fn is None:
            raise UnsupportedGradientError("the loss of the probe has no autograd graph, so it has no curvature")
        try:
            slopes = torch.autograd.grad(
                total / examples, list(parameters.values()), create_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise _no_second_derivative(error) from error
        if any(
            node.name().endswith("::Error") for s in slopes if s is not None for node in reachable(s.grad_fn, set())
        ):
            # A function marked as differentiable once is cut off from what it was made of: no product would show it.
            raise UnsupportedGradientError("a function in the model is marked as differentiable only once")
        yield HessianProducts(parameters, slopes)


def _no_second_derivative(error: RuntimeError) -> UnsupportedGradientError:
    return UnsupportedGradientError(f"something in the model has no second derivative ({str(error).splitlines()[0]})")
