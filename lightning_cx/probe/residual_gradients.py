"""What leaving examples out of training is estimated from: the gradient of each example's output along its residual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
        kind: How an error is read off them, as `functional.stopping.left_out_errors` has it; after "classes", which
            axis of the model's output they were.
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

    def first(self, examples: int) -> ResidualGradients:
        """The same of the first examples alone."""
        names = "gradients", "residuals", "outputs", "curvature", "bend"
        return replace(self, **{name: getattr(self, name)[:examples] for name in names})

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
    passes: ProbePasses, sketch: stopping.GradientSketch, chunks: Sequence[tuple[Any, int]], kind: str = ""
) -> ResidualGradients:
    """Pass examples through the module, one backward each, and sketch the gradient of each along its residual.

    Args:
        passes: The model and its loss.
        sketch: Of all trainable parameters.
        chunks: Batches in host memory, and how many examples each holds.
        kind: What a call before found; empty finds it out. Residuals near zero no longer show it.

    Raises:
        UnsupportedGradientError: If the tap cannot read the model, by name.
        ValueError: If no output carries the whole loss.
    """
    parameters = passes.trainable()
    largest = max(1, ROWS_BYTES // (4 * max(1, sum(p.numel() for p in parameters.values()))))
    parts = []
    with passes.isolated():
        for batch, count in _pieces(chunks, largest):
            parts.append(_of_chunk(passes, sketch, Chunk(passes.place(batch), count), kind))
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


def _of_chunk(passes: ProbePasses, sketch: stopping.GradientSketch, chunk: Chunk, kind: str) -> ResidualGradients:
    n, parameters = chunk.examples, passes.trainable()
    with recorded_outputs(passes.module) as records:
        loss = passes.loss_of(chunk.batch)
    output, _ = find_output(records, loss.sum(), parameters, n)
    tensors, total = output.tensors, passes.summed(loss, n)
    found = torch.autograd.grad(total, list(tensors), create_graph=True, allow_unused=True)
    slopes = [torch.zeros_like(t) if s is None else s for t, s in zip(tensors, found, strict=True)]
    residuals = [-s.detach() for s in slopes]
    flat = torch.cat([r.reshape(n, -1).double() for r in residuals], 1)
    shape = kind or _shape_of(passes, residuals, [t.detach() for t in tensors], flat)
    if shape.startswith("classes"):
        residuals = [_of_classes(residuals[0], tensors[0].detach(), int(shape.removeprefix("classes")))]
    norm = torch.cat([r.reshape(n, -1).double() for r in residuals], 1).norm(dim=1).clamp_min(1e-300)
    along = [(r.double() / norm.view(-1, *[1] * (r.dim() - 1))).to(t) for r, t in zip(residuals, tensors, strict=True)]
    curvature = _second_derivative(slopes, tensors, along, n)
    bend = _summed_curvature(slopes, tensors, n)
    tap = GradientTap(parameters.items(), n, gram=False, norms=False, rows=True, loss_scale=float(n), batch_first=True)
    # `loss_scale`: what is run backward is the sum of the examples' outputs along their residuals.
    sample = ride(tap, torch.stack([(t * a).sum() for t, a in zip(tensors, along, strict=True)]).sum(), parameters)
    rows = {name: layer.rows for name, layer in sample.layers.items() if layer.rows is not None}
    kind, r, f = _as_kind(shape, residuals, [t.detach() for t in tensors])
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


def _shape_of(passes: ProbePasses, residuals: Sequence[Tensor], outputs: Sequence[Tensor], flat: Tensor) -> str:
    """Find out how an error is read off outputs and residuals; with the axis of the classes, where there are any."""
    if passes.law.squared:
        return "values"
    if len(residuals) == 1 and flat.shape[1] <= MOST_OUTPUTS:
        own = residuals[0].double().cpu()
        for axis in dict.fromkeys((own.dim() - 1, 1)):
            if own.dim() > 1 and own.shape[axis] > 1 and _is_of_softmax(own.movedim(axis, -1)):
                return f"classes{axis}"
        if _is_of_logits(own.reshape(len(own), -1), outputs[0].double().cpu().reshape(len(own), -1)):
            return "binary"
    return "slopes"


def _as_kind(shape: str, residuals: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[str, Tensor, Tensor]:
    """Outputs and residuals as their errors need them, the classes last."""
    if shape.startswith("classes"):
        axis = int(shape.removeprefix("classes"))
        own, out = (t.double().cpu().movedim(axis, -1) for t in (residuals[0], outputs[0]))
        return shape, own, out
    flat = torch.cat([t.reshape(len(t), -1) for t in residuals], 1).double().cpu()
    if shape == "binary":
        return shape, flat, outputs[0].double().cpu().reshape(len(flat), -1)
    kept = sketching.sketch_outputs(flat) if flat.shape[1] > MOST_OUTPUTS else flat
    return shape, kept, torch.zeros_like(kept)


def _of_classes(residuals: Tensor, outputs: Tensor, axis: int) -> Tensor:
    """One-hot less probabilities in double precision: in single, a probability near 1 has no distance from it."""
    own, out = residuals.double().movedim(axis, -1), outputs.double().movedim(axis, -1)
    label = own.argmax(-1, keepdim=True)
    exact = torch.zeros_like(out).scatter_(-1, label, 1.0) - out.softmax(-1)
    rough, size = own.abs().sum(-1, keepdim=True), exact.abs().sum(-1, keepdim=True)
    clear = (size > SAME) & (rough > 0)
    scale = rough / size.clamp_min(1e-300)
    usual = scale[clear].median() if bool(clear.any()) else scale.new_ones(())
    counted = (own != 0).any(-1, keepdim=True) | (size <= SAME)
    return (torch.where(clear, scale, usual) * exact * counted).movedim(-1, axis)


def _is_of_softmax(residuals: Tensor) -> bool:
    """Whether residuals are one-hot targets less probabilities, times a number each: one entry is positive."""
    size = residuals.abs().sum(-1)
    balanced = residuals.sum(-1).abs() <= SAME * size + 1e-6 * size.max()
    return bool(balanced.all()) and bool(((residuals > SAME * size[..., None]).sum(-1) <= 1).all())


def _is_of_logits(residuals: Tensor, outputs: Tensor) -> bool:
    """Whether each output is the logit of a label of its own: the residual is 1 - p or -p, times one number."""
    p = outputs.sigmoid()
    gap = torch.where(residuals > 0, 1 - p, p)
    scale = (residuals.abs() / gap.clamp_min(1e-12))[residuals != 0]
    return bool(scale.numel()) and bool(((scale - scale.median()).abs() <= SAME * scale.median()).all())
