"""One pass over the fixed probe: outputs and residuals, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.probe.batches import padded_cat
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.outputs import ModuleOutput, find_output, recorded_outputs, residual_rows

LossOf = Callable[[Any], Tensor]

MAX_OUTPUTS = 1024  # wider outputs are folded to this width: energies keep their mean, with relative sd sqrt(2/1024)
AGREEMENT = 0.02  # relative; half precision agrees to .01, class weights and in-batch losses differ by far more


@dataclass(frozen=True)
class Chunk:
    """Some examples of the probe as one batch, on the model's device."""

    batch: Any
    examples: int


@dataclass(frozen=True)
class Reduction:
    """How the training loss adds up its examples, found by comparing an example in company with it alone.

    Attributes:
        mean: Whether the loss is a mean (else a sum) over examples.
        coupled: Whether neither explains what was seen: examples act on each other's residual.
    """

    mean: bool = True
    coupled: bool = False


def residuals_of(module: nn.Module, chunk: Chunk, loss_of: LossOf) -> tuple[ModuleOutput, Tensor, Tensor]:
    """Run one chunk and return the model output, its values and minus the slope of the loss there, [n, C].

    Raises:
        ValueError: If the loss has no graph, or no module output carries all of it.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.enable_grad(), recorded_outputs(module) as records:
        loss = loss_of(chunk.batch)
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        raise ValueError("the loss of the probe has no autograd graph, so it has no residual")
    if loss.dim() > 0 and loss.shape != (chunk.examples,):
        raise ValueError(
            f"the loss has shape {tuple(loss.shape)}; a scalar or one loss for each of {chunk.examples} examples is "
            "needed: return one from loss_fn(module, batch)"
        )
    output = find_output(records, loss, parameters, chunk.examples)
    if output is None:
        raise ValueError(
            "no output of a submodule with the examples along its first axis carries the whole loss, so residuals "
            "cannot be found: pass ProbeSet(loss_fn=...), a function (module, batch) -> losses [n] that calls the "
            "module on the batch"
        )
    values, residuals = residual_rows(output, loss.sum())
    return output, values, residuals


def find_reduction(module: nn.Module, chunk: Chunk, alone: Chunk, loss_of: LossOf) -> Reduction:
    """Compare the first example's residual in its chunk with its residual alone."""
    with isolated(module):
        _, _, together = residuals_of(module, chunk, loss_of)
        try:
            _, _, single = residuals_of(module, alone, loss_of)
        except Exception:  # a loss that one example cannot have, as contrastive ones, is coupled by definition
            return Reduction(coupled=True)
    width = min(together.shape[1], single.shape[1])  # a padded sequence is longer in company
    seen, truth = together[0, :width], single[0, :width]
    for mean, scale in ((True, chunk.examples), (False, 1)):
        if (seen * scale - truth).norm() <= AGREEMENT * truth.norm():
            return Reduction(mean=mean)
    return Reduction(coupled=True)


def read_chunks(
    module: nn.Module, chunks: Sequence[Callable[[], Chunk]], loss_of: LossOf, reduction: Reduction | None
) -> tuple[Tensor, Tensor, str]:
    """Outputs and residuals of all chunks, [n, C] float64 on the host, and the name of the output.

    Args:
        module: The model; run in eval mode and in isolation.
        chunks: Functions that put a chunk on the device, called one after another.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        reduction: How a scalar loss adds up; None where `loss_of` gives one loss for each example.
    """
    outputs, residuals = [], []
    name, fold = "", _Fold()
    with isolated(module, guard=True):
        for make in chunks:
            chunk = make()
            output, values, rows = residuals_of(module, chunk, loss_of)
            name = output.name
            scale = chunk.examples if reduction is not None and reduction.mean else 1
            outputs.append(fold(values).cpu())
            residuals.append(fold(rows * scale).cpu())
    return padded_cat(outputs), padded_cat(residuals), name


class _Fold:
    """Fold wide rows to `MAX_OUTPUTS` by random signs and places, the same every time: inner products survive."""

    def __call__(self, rows: Tensor) -> Tensor:
        width = rows.shape[1]
        if width <= MAX_OUTPUTS:
            return rows
        generator = torch.Generator().manual_seed(0)
        # Drawn in one order for any width, so that a shorter padded chunk shares places with a longer one.
        drawn = torch.randint(2 * MAX_OUTPUTS, (width,), generator=generator).to(rows.device)
        signs = (drawn % 2 * 2 - 1).to(rows.dtype)
        return rows.new_zeros(len(rows), MAX_OUTPUTS).index_add_(1, drawn // 2, rows * signs)
