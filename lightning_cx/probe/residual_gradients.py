"""What leaving examples out of training is estimated from: the gradient of each example's output along its residual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_cx.batch import padded_cat, take
from lightning_cx.functional import sketching, stopping
from lightning_cx.gradients import GradientTap, ride
from lightning_cx.probe.outputs import Chunk, find_output, recorded_outputs

if TYPE_CHECKING:
    from lightning_cx.probe.passes import ProbePasses

ROWS_BYTES = 2**26  # of per-example gradients that are held at a time; what is kept are their sketches
MOST_COLUMNS = 16  # outputs of one example whose curvature is summed one by one; of more, along random signs
SIGNS = 8  # of these
MOST_OUTPUTS = 4096  # of one example that are kept to see which class is the largest
SAME = 1e-3  # relative, of sums in single precision


@dataclass(frozen=True)
class ResidualGradients:
    """Gradients of the outputs of some examples, each along the example's residual, and its loss as a function of them.

    Attributes:
        gradients: [n, m] sketch (`GradientSketch`) of the gradient of <f_i, u_i>, with u_i the residual's direction.
        residuals: Minus the derivative of each example's own loss with respect to its outputs, [n, ...] float64.
        outputs: Its outputs, the same shape.
        curvature: Second derivative of its own loss along u_i, [n] float64.
        bend: The same summed over all outputs, [n] float64.
        kind: How an error is read off them, as `functional.stopping.left_out_errors` has it.
        loss: Mean loss of an example.
        notes: What a reader should know, in words.
    """

    gradients: Tensor
    residuals: Tensor
    outputs: Tensor
    curvature: Tensor
    bend: Tensor
    kind: str
    loss: float
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> Tensor:
        """Norms of the residuals, [n]."""
        return self.residuals.flatten(1).norm(dim=1)

    @property
    def directions(self) -> Tensor:
        """Directions of the residuals, sketched where they are wide, [n, c]."""
        flat = self.residuals.flatten(1)
        return sketching.sketch_outputs(flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300))


def residual_gradients(
    passes: ProbePasses, sketch: stopping.GradientSketch, chunks: Sequence[tuple[Any, int]]
) -> ResidualGradients:
    """Pass examples through the module, one backward each, and sketch the gradient of each along its residual.

    Args:
        passes: The model and its loss.
        sketch: Of all trainable parameters.
        chunks: Batches in host memory, and how many examples each holds.

    Raises:
        UnsupportedGradientError: If the tap cannot read the model, by name.
        ValueError: If no output carries the whole loss.
    """
    parameters = passes.trainable()
    largest = max(1, ROWS_BYTES // (4 * max(1, sum(p.numel() for p in parameters.values()))))
    parts = []
    with passes.isolated():
        for batch, count in _pieces(chunks, largest):
            parts.append(_of_chunk(passes, sketch, Chunk(passes.place(batch), count)))
    kinds = {part.kind for part in parts}
    n = sum(len(part.curvature) for part in parts)
    return ResidualGradients(
        torch.cat([part.gradients for part in parts]),
        padded_cat([part.residuals for part in parts]),
        padded_cat([part.outputs for part in parts]),
        torch.cat([part.curvature for part in parts]),
        torch.cat([part.bend for part in parts]),
        kinds.pop() if len(kinds) == 1 else "slopes",
        sum(part.loss * len(part.curvature) for part in parts) / n,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _pieces(chunks: Sequence[tuple[Any, int]], largest: int) -> Iterator[tuple[Any, int]]:
    for batch, count in chunks:
        if count <= largest:
            yield batch, count
            continue
        for start in range(0, count, largest):
            stop = min(count, start + largest)
            yield take(batch, start, stop, count, trim=True), stop - start


def _of_chunk(passes: ProbePasses, sketch: stopping.GradientSketch, chunk: Chunk) -> ResidualGradients:
    n, parameters = chunk.examples, passes.trainable()
    with recorded_outputs(passes.module) as records:
        loss = passes.loss_of(chunk.batch)
    output, _ = find_output(records, loss.sum(), parameters, n)
    tensors, total = output.tensors, passes.summed(loss, n)
    found = torch.autograd.grad(total, list(tensors), create_graph=True, allow_unused=True)
    slopes = [torch.zeros_like(t) if s is None else s for t, s in zip(tensors, found, strict=True)]
    residuals = [-s.detach() for s in slopes]
    norm = torch.cat([r.reshape(n, -1).double() for r in residuals], 1).norm(dim=1).clamp_min(1e-300)
    along = [(r.double() / norm.view(-1, *[1] * (r.dim() - 1))).to(r) for r in residuals]
    curvature = _second_derivative(slopes, tensors, along, n)
    bend = _summed_curvature(slopes, tensors, n)
    tap = GradientTap(parameters.items(), n, gram=False, norms=False, rows=True, loss_scale=float(n), batch_first=True)
    # `loss_scale`: what is run backward is the sum of the examples' outputs along their residuals.
    sample = ride(tap, torch.stack([(t * a).sum() for t, a in zip(tensors, along, strict=True)]).sum(), parameters)
    rows = {name: layer.rows for name, layer in sample.layers.items() if layer.rows is not None}
    kind, r, f = _kind_of(passes, residuals, [t.detach() for t in tensors], curvature)
    return ResidualGradients(sketch(rows), r, f, curvature, bend, kind, float(total.detach()) / n, sample.notes)


def _second_derivative(
    slopes: Sequence[Tensor], outputs: Sequence[Tensor], along: Sequence[Tensor], examples: int
) -> Tensor:
    """Curvature of each example's own loss along a direction, [n] float64 on the host."""
    graph = [(s * a).sum() for s, a in zip(slopes, along, strict=True) if s.requires_grad]
    if not graph:
        return torch.zeros(examples, dtype=torch.float64)
    found = torch.autograd.grad(torch.stack(graph).sum(), list(outputs), retain_graph=True, allow_unused=True)
    parts = [
        (product * a).reshape(examples, -1).double().sum(1)
        for product, a in zip(found, along, strict=True)
        if product is not None
    ]
    return torch.stack(parts).sum(0).cpu() if parts else torch.zeros(examples, dtype=torch.float64)


def _summed_curvature(slopes: Sequence[Tensor], outputs: Sequence[Tensor], examples: int) -> Tensor:
    """Trace of the second derivative of each example's own loss, [n] float64: over all outputs, or by random signs."""
    width = sum(t[0].numel() for t in outputs)
    total = torch.zeros(examples, dtype=torch.float64)
    if width <= MOST_COLUMNS:
        for number, t in enumerate(outputs):
            for column in range(t[0].numel()):
                unit = [torch.zeros_like(o) for o in outputs]
                unit[number].reshape(examples, -1)[:, column] = 1
                total += _second_derivative(slopes, outputs, unit, examples)
        return total
    draw = torch.Generator().manual_seed(0)
    for _ in range(SIGNS):
        signs = [(torch.randint(0, 2, t.shape, generator=draw) * 2 - 1).to(t) for t in outputs]
        total += _second_derivative(slopes, outputs, signs, examples) / SIGNS
    return total


def _kind_of(
    passes: ProbePasses, residuals: Sequence[Tensor], outputs: Sequence[Tensor], curvature: Tensor
) -> tuple[str, Tensor, Tensor]:
    """Find out how an error is read off outputs and residuals; return both as needed for it, the classes last."""
    r = torch.cat([t.reshape(len(t), -1) for t in residuals], 1).double().cpu()
    wide = r.shape[1] > MOST_OUTPUTS
    if passes.law.squared:
        kept = sketching.sketch_outputs(r) if wide else r
        return "values", kept, torch.zeros_like(kept)
    if len(residuals) == 1 and not wide:
        own, out = residuals[0].double().cpu(), outputs[0].double().cpu()
        for axis in dict.fromkeys((-1, 1)):
            if own.dim() > 1 and own.shape[axis] > 1 and _is_of_softmax(own.movedim(axis, -1)):
                return "classes", own.movedim(axis, -1), out.movedim(axis, -1)
        own, out = own.reshape(len(own), -1), out.reshape(len(out), -1)
        if _is_of_logits(own, out, curvature):
            return "binary", own, out
    kept = sketching.sketch_outputs(r) if wide else r
    return "slopes", kept, torch.zeros_like(kept)


def _is_of_softmax(residuals: Tensor) -> bool:
    """Whether residuals are one-hot targets less probabilities, times a number each: one entry is positive."""
    size = residuals.abs().sum(-1)
    balanced = residuals.sum(-1).abs() <= SAME * size + 1e-6 * size.max()
    return bool(balanced.all()) and bool(((residuals > SAME * size[..., None]).sum(-1) <= 1).all())


def _is_of_logits(residuals: Tensor, outputs: Tensor, curvature: Tensor) -> bool:
    """Whether each output is the logit of a label of its own: the curvature along the residual is p (1 - p) there.

    With a factor of its own for each example, so that it is told by outputs that differ: one alone tells nothing.
    """
    p = outputs.sigmoid()
    gap = torch.where(residuals > 0, 1 - p, p)  # size of the residual of the label that its sign shows
    counted = residuals != 0
    scale = (residuals.abs() / gap.clamp_min(1e-12))[counted]
    if not scale.numel():
        return False
    even = bool(((scale - scale.median()).abs() <= SAME * scale.median()).all())
    direction = residuals / residuals.norm(dim=1, keepdim=True).clamp_min(1e-300)
    bent = scale.median() * (p * (1 - p) * direction.square()).sum(1)
    return even and bool(((bent - curvature).abs() <= SAME * bent + 1e-9).all())
