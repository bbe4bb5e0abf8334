"""One pass over the fixed probe: outputs and residuals, without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.gradients import UNCHANGED
from lightning_cx.probe.batches import join, take
from lightning_cx.probe.columns import Columns
from lightning_cx.probe.draws import drawing
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.outputs import find_output, recorded_outputs

LossOf = Callable[[Any], Tensor]

AGREEMENT = 0.02  # relative; half precision agrees to .01, class weights and in-batch losses differ by far more


@dataclass(frozen=True)
class Chunk:
    """Some examples of the probe as one batch, on the model's device."""

    batch: Any
    examples: int


@dataclass(frozen=True)
class Reduction:
    """How the training loss adds up its examples, found by comparing examples in company with them alone.

    Attributes:
        mean: Whether the loss is a mean (else a sum) over examples.
        coupled: Whether neither explains what was seen: examples act on each other's residual.
        mixed: Whether they change its direction, too, as mixup does and class weights do not.
        drawn: Whether a residual depends on random numbers that the loss draws, even in eval mode.
        each: Whether the loss was given for each example, so that nothing is known of how training adds it up.
    """

    mean: bool = True
    coupled: bool = False
    mixed: bool = False
    drawn: bool = False
    each: bool = False


@dataclass(frozen=True)
class ChunkReading:
    """What one chunk showed: tensors [n, ...] of the model output and minus the slope of the chunk's loss there."""

    source: str
    outputs: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    per_example: bool
    loss: float


def residuals_of(module: nn.Module, chunk: Chunk, loss_of: LossOf) -> ChunkReading:
    """Run one chunk and return the model output and minus the slope of the loss there.

    Raises:
        ValueError: If the loss has no graph, no module output carries all of it, or the module is one in a wrapper.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "_forward_module"):
        raise ValueError(
            f"the probe got a {type(module).__name__}, which waits for other processes or wants a backward of its own: "
            "pass the model inside (`model.module`); under a precision of Fabric's, with `fabric.autocast()` in loss_fn"
        )
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.enable_grad(), eagerly(), recorded_outputs(module) as records:
        loss = loss_of(chunk.batch)
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        raise ValueError("the loss of the probe has no autograd graph, so it has no residual")
    if loss.numel() != 1 and loss.shape != (chunk.examples,):
        raise ValueError(
            f"the loss has shape {tuple(loss.shape)}; a scalar or one loss for each of {chunk.examples} examples is "
            "needed: return one from loss_fn(module, batch)"
        )
    with torch.enable_grad():
        output, slopes = find_output(records, loss.sum(), parameters, chunk.examples)
    residuals = tuple(-slope for slope in slopes)
    outputs = tuple(t.detach() for t in output.tensors)
    return ChunkReading(output.name, outputs, residuals, loss.numel() > 1, float(loss.detach().double().sum()))


def find_reduction(module: nn.Module, chunk: Chunk, alone: Sequence[Chunk], loss_of: LossOf) -> Reduction:
    """Compare the residuals of the first examples in their chunk with their residuals alone.

    Args:
        module: The model.
        chunk: Several examples.
        alone: The first of them, each in a chunk of its own. More than one, since one may have an average class
            weight or a residual of zero.
        loss_of: Loss of a batch.
    """
    seen, truth = Columns(), Columns()
    with isolated(module, guard=True):
        with drawing() as drawn:
            together = residuals_of(module, chunk, loss_of)
        try:
            singles = [residuals_of(module, one, loss_of).residuals for one in alone]
        except Exception:  # a loss that one example cannot have, as contrastive ones, is coupled by definition
            return Reduction(mean=not together.per_example, coupled=True, mixed=True, each=together.per_example)
    for i, single in enumerate(singles):
        # Alone, a padded sequence is shorter; what it has is compared.
        same_rank = all(t.dim() == s.dim() for t, s in zip(together.residuals, single, strict=True))
        cuts = [tuple(map(slice, s.shape[1:])) if same_rank else () for s in single]
        seen.add([t[i : i + 1][(slice(None), *cut)] for t, cut in zip(together.residuals, cuts, strict=True)])
        truth.add(list(single))
    found = _compare(seen.rows(), truth.rows(), chunk.examples, together.per_example)
    if not (drawn and found.coupled):
        return found
    # One example alone draws others than it does in company, so that comparison tells a mean from a sum at most.
    others = _others_count(module, chunk, loss_of)
    return Reduction(found.mean, coupled=others, mixed=others, drawn=True, each=found.each)


def find_reduction_of(
    module: nn.Module,
    company: tuple[Any, int],
    alone: Sequence[Any],
    place: Callable[[Any], Any],
    loss_of: LossOf,
) -> Reduction:
    """The same of batches in host memory; where training batches hold one example, a few of them are put together.

    One example is its own mean and its own sum, and passes of several go by what is found here.

    Args:
        module: The model.
        company: A batch, and how many examples it holds.
        alone: Batches of one example each: the first of the company, or some others where that holds one alone.
        place: Puts a batch on the model's device.
        loss_of: Loss of a batch.
    """
    ones = [Chunk(place(batch), 1) for batch in alone]
    batch, count = company
    if count == 1 and len(alone) > 1:
        with suppress(Exception):  # no batch of several can be made, or the loss takes none: no pass of several, either
            several = reduce(lambda one, k: join(one, alone[k], (k, 1)), range(1, len(alone)), alone[0])
            return find_reduction(module, Chunk(place(several), len(alone)), ones, loss_of)
    return find_reduction(module, Chunk(place(batch), count), ones[:count], loss_of)


def _others_count(module: nn.Module, chunk: Chunk, loss_of: LossOf) -> bool:
    """Whether other examples in place of the rest of a batch, and the same draws, change the first residuals."""
    total = (chunk.examples + 1) // 2
    stay, first = max(1, total // 2), partial(take, chunk.batch, examples=chunk.examples)
    companies = first(0, total), join(first(0, stay), first(total, 2 * total - stay), (stay, total - stay))
    readings = []
    for company in companies:
        with isolated(module, guard=True):
            readings.append(residuals_of(module, Chunk(company, total), loss_of).residuals)
    pairs = [(one[:stay], other[:stay]) for one, other in zip(*readings, strict=True)]
    return any(bool((one - other).norm() > UNCHANGED * one.norm()) for one, other in pairs)


def _compare(seen: Tensor, truth: Tensor, examples: int, per_example: bool) -> Reduction:
    sizes = seen.norm() + torch.finfo(torch.float64).tiny, truth.norm() + torch.finfo(torch.float64).tiny
    ratio = math.log(float(sizes[0] / sizes[1])) if truth.isfinite().all() and seen.isfinite().all() else -math.inf
    # A mean over n examples shows each of them with 1/n of its residual, a sum with all of it.
    mean = not per_example and ratio < -0.5 * math.log(max(examples, 2))
    agree = (seen * (examples if mean else 1) - truth).norm(dim=1) <= AGREEMENT * truth.norm(dim=1)
    products = seen.norm(dim=1) * truth.norm(dim=1)
    coupled, finite = not bool(agree.all()), bool(seen.isfinite().all() and truth.isfinite().all())
    # A single output has no direction; what weights a batch by its sum, as class weights do, has several.
    mixed = (
        coupled if seen.shape[1] == 1 else bool((((seen * truth).sum(1) <= (1 - AGREEMENT) * products) & ~agree).any())
    )
    return Reduction(mean=mean, coupled=coupled, mixed=mixed and finite, each=per_example)


def read_chunks(
    module: nn.Module, chunks: Sequence[Callable[[], Chunk]], loss_of: LossOf, reduction: Reduction
) -> tuple[Tensor, Tensor, str, float]:
    """Outputs and residuals of all chunks, [n, C] float64 on the host, the name of the output, and the mean loss.

    Args:
        module: The model; run in eval mode and in isolation.
        chunks: Functions that put a chunk on the device, called one after another.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        reduction: How the loss adds up.
    """
    outputs, residuals = Columns(), Columns()
    source, losses, examples = "", 0.0, 0
    with isolated(module, guard=True):
        for make in chunks:
            chunk = make()
            reading = residuals_of(module, chunk, loss_of)
            source = source or reading.source
            outputs.add(reading.outputs)
            scale = chunk.examples if reduction.mean else 1
            residuals.add(reading.residuals, scale=scale)
            losses, examples = losses + reading.loss * scale, examples + chunk.examples
    return outputs.rows(), residuals.rows(), source, losses / examples
