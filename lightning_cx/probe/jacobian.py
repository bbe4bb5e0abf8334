"""How each output of a few examples depends on the parameters: the Gram matrix of the Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.gradients import GradientTap, ride
from lightning_cx.probe.batches import join
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.outputs import find_output, recorded_outputs
from lightning_cx.probe.passes import LossOf, Reduction

MAX_ROWS = 2048
"""Rows of the Jacobian: each is an example of one pass, and its Gram matrix is decomposed in float64 (2 s at 2048)."""


@dataclass(frozen=True)
class OutputJacobian:
    """Inner products of the derivatives of all outputs of n examples, and the loss as a function of the outputs.

    With f in R^{n x C} the outputs and P parameters, J = df/dtheta has n C rows; row (i, c) stands at i C + c.

    Attributes:
        gram: J J^T, [n C, n C] float64, the empirical neural tangent kernel.
        hessian: Second derivative of each example's own loss with respect to its outputs, [n, C, C] float64.
        residuals: Minus its first derivative, [n, C] float64.
        outputs: f, [n, C] float64.
        parameters: Number of trainable parameters P.
        notes: What a reader should know, in words.
    """

    gram: Tensor
    hessian: Tensor
    residuals: Tensor
    outputs: Tensor
    parameters: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        n, c = self.outputs.shape
        return f"Jacobian of {n} examples x {c} outputs with respect to {self.parameters} parameters"


def output_jacobian(
    module: nn.Module,
    batch: Any,
    examples: int,
    place: Callable[[Any], Any],
    loss_of: LossOf,
    reduction: Reduction,
) -> OutputJacobian:
    """Gram matrix of the Jacobian, by one tap on a batch that holds every example once for each output.

    Args:
        module: The model; run in eval mode and in isolation.
        batch: The examples, in host memory.
        examples: How many there are.
        place: Puts a batch on the model's device.
        loss_of: Loss of a batch; it says which tensor is the model's output.
        reduction: How the loss adds up.

    Raises:
        UnsupportedGradientError: If the tap cannot read the model, by name.
        ValueError: If examples act on each other, outputs cannot be found, or n C exceeds 2048.
    """
    if reduction.coupled or reduction.drawn:
        why = "examples act on each other in the loss" if reduction.coupled else "the loss draws random numbers"
        raise ValueError(f"the outputs of single examples have no Jacobian of their own: {why}")
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with isolated(module, guard=True), eagerly(), torch.enable_grad():
        outputs, residuals, hessian = _loss_of_outputs(module, place(batch), examples, loss_of, reduction, parameters)
        n, c = outputs.shape
        if n * c > MAX_ROWS:
            raise ValueError(
                f"the Jacobian of {n} examples with {c} outputs has {n * c} rows, over {MAX_ROWS}: take "
                f"{MAX_ROWS // c} examples or fewer"
                if c <= MAX_ROWS
                else f"the Jacobian of an example with {c} outputs has over {MAX_ROWS} rows"
            )
        repeated = reduce(lambda one, k: join(one, batch, (k * n, n)), range(1, c), batch)
        copies = _outputs(module, place(repeated), n * c, loss_of, parameters)[1]
        number = torch.arange(c, device=copies.device)  # copy k of an example stands for its output k
        own = (number.repeat_interleave(n)[:, None] == number).view_as(copies).to(copies)
        tap = GradientTap(parameters.items(), n * c, loss_scale=float(n * c), batch_first=True)
        sample = ride(tap, (copies * own).sum(), parameters)
    assert sample.gram is not None
    gram = sample.gram.cpu().view(c, n, c, n).permute(1, 0, 3, 2).reshape(n * c, n * c)
    count = sum(p.numel() for p in parameters.values())
    return OutputJacobian(gram, hessian, residuals, outputs, count, sample.notes)


def _outputs(
    module: nn.Module, batch: Any, examples: int, loss_of: LossOf, parameters: dict[str, nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """The loss and the outputs it was made from, [n, C], both with their graph."""
    with recorded_outputs(module) as records:
        loss = loss_of(batch)
    output, _ = find_output(records, loss.sum(), parameters, examples)
    if len(output.tensors) != 1:
        raise ValueError(f"the model has {len(output.tensors)} outputs ({output.name}); the Jacobian is that of one")
    return loss, output.tensors[0]


def _loss_of_outputs(
    module: nn.Module,
    batch: Any,
    examples: int,
    loss_of: LossOf,
    reduction: Reduction,
    parameters: dict[str, nn.Parameter],
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and minus the first and plus the second derivative of each example's own loss there, on the host."""
    loss, output = _outputs(module, batch, examples, loss_of, parameters)
    columns = output[0].numel()
    if columns > MAX_ROWS:
        raise ValueError(f"the Jacobian of an example with {columns} outputs has over {MAX_ROWS} rows")
    scale = examples if reduction.mean and loss.numel() == 1 else 1
    (slope,) = torch.autograd.grad(loss.sum() * scale, output, create_graph=True)
    rows = []
    for column in slope.flatten(1).unbind(1) if slope.dim() > 1 else [slope]:
        (row,) = torch.autograd.grad(column.sum(), output, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(output) if row is None else row)
    hessian = torch.stack([row.reshape(examples, -1) for row in rows], 1)
    plain = (t.detach().reshape(examples, -1).double().cpu() for t in (output, -slope))
    outputs, residuals = plain
    return outputs, residuals, hessian.detach().double().cpu()
