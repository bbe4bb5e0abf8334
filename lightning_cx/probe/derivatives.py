"""Derivatives on the fixed probe: per-example gradients, the Jacobian of the outputs, products with the Hessian."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_cx.batch import join, take
from lightning_cx.gradients import (
    CONTRIBUTION,
    GradientSample,
    GradientTap,
    LayerGradients,
    UnsupportedGradientError,
    ride,
)
from lightning_cx.probe.outputs import find_output, reachable, recorded_outputs

if TYPE_CHECKING:
    from lightning_cx.probe.passes import ProbePasses

MAX_ROWS = 2048
"""Rows of the Jacobian: each is an example of one pass, and its Gram matrix is decomposed in float64 (2 s at 2048)."""

MAX_CHUNKS = 8  # each two have to meet in one pass: 28 passes of two chunks


def probe_gradients(
    passes: ProbePasses, chunks: Sequence[tuple[Any, int]], per_layer: bool, projections: int
) -> GradientSample:
    """Return the Gram matrix of the per-example gradients of all chunks.

    A tap sees inner products within one batch, so every two chunks pass through the module together once: exact, and
    never more in memory than two of the training's batches.

    Args:
        passes: The model and its loss.
        chunks: Batches in host memory and how many examples each holds.
        per_layer: Keep the Gram matrices of the single parameters as well.
        projections: Number of fixed random directions to project on.

    Returns:
        GradientSample on the host.

    Raises:
        UnsupportedGradientError: If the tap cannot read the model, by name.
        ValueError: If the chunks cannot be joined.
    """
    starts = [sum(count for _, count in chunks[:i]) for i in range(len(chunks) + 1)]
    whole = torch.zeros(starts[-1], starts[-1], dtype=torch.float64)
    onto = torch.zeros(starts[-1], projections, dtype=torch.float64) if projections else None
    layers: dict[str, LayerGradients] = {}
    status, notes = "", ()
    with passes.isolated():
        for batch, members in _meetings(chunks):
            rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in members])
            sample = _gradients_of(passes, passes.place(batch), len(rows), per_layer, projections)
            status, notes = sample.status, sample.notes
            _put(whole, rows, sample.gram)
            if onto is not None and sample.projections is not None:
                onto[rows] = sample.projections.cpu()
            for name, layer in sample.layers.items():
                if layer.gram is not None:
                    layers.setdefault(name, replace(layer, gram=torch.zeros_like(whole), squared_norms=None))
                    _put(layers[name].gram, rows, layer.gram)
    return GradientSample(
        batch_size=len(whole),
        status=CONTRIBUTION if passes.calibration.coupled else status,
        gram=whole,
        squared_norms=whole.diagonal(),
        projections=onto,
        layers=layers,
        notes=notes,
    )


def some_chunks(chunks: Sequence[tuple[Any, int]], examples: int) -> list[tuple[Any, int]]:
    """The first chunks, as many as can meet two by two, and no more of the last than is needed for so many examples."""
    return first_examples(chunks[:MAX_CHUNKS], examples)


def first_examples(chunks: Sequence[tuple[Any, int]], examples: int) -> list[tuple[Any, int]]:
    """The first chunks, and no more of the last than is needed for so many examples."""
    chosen: list[tuple[Any, int]] = []
    for batch, count in chunks:
        missing = examples - sum(held for _, held in chosen)
        if missing > 0:
            chosen.append((batch, count) if count <= missing else (take(batch, 0, missing, count, trim=True), missing))
    return chosen


def passes_of(chunk_sizes: Sequence[int]) -> int:
    """How many examples pass through the module when every two chunks meet."""
    return sum(chunk_sizes) * max(1, len(chunk_sizes) - 1)


def _meetings(chunks: Sequence[tuple[Any, int]]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    if len(chunks) == 1:
        yield chunks[0][0], (0,)
    for i, j in combinations(range(len(chunks)), 2):
        (one, count), (other, other_count) = chunks[i], chunks[j]
        yield join(one, other, (count, other_count)), (i, j)


def _gradients_of(passes: ProbePasses, batch: Any, examples: int, per_layer: bool, projections: int) -> GradientSample:
    loss = passes.loss_of(batch)
    per_example = loss.numel() > 1
    parameters = dict(passes.module.named_parameters())
    scale = float(examples) if passes.calibration.sums and not per_example else 1.0
    tap = GradientTap(parameters.items(), examples, per_layer=per_layer, projections=projections, loss_scale=scale)
    return ride(tap, loss.mean() if per_example else loss.reshape(()), parameters)


def _put(whole: Tensor | None, rows: Tensor, block: Tensor | None) -> None:
    if whole is not None and block is not None:
        whole[rows[:, None], rows] = block.cpu()


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


def output_jacobian(passes: ProbePasses, examples: int) -> OutputJacobian:
    """Compute the Gram matrix of the Jacobian, by one tap on a batch that holds every example once for each output.

    Copy c of an example stands for its output c: the tap reads the gradient of the sum of these outputs example by
    example, and that of copy c is row c of the example's Jacobian. No row is formed, and one backward does.

    Args:
        passes: The model and its loss, which says which tensor is the model's output.
        examples: How many of the first examples.

    Raises:
        UnsupportedGradientError: If the tap cannot read the model, by name.
        ValueError: If examples act on each other, outputs cannot be found, or n C exceeds 2048.
    """
    chunks = first_examples(passes.chunks, min(examples, MAX_ROWS))
    batch, n = reduce(lambda a, b: (join(a[0], b[0], (a[1], b[1])), a[1] + b[1]), chunks)
    if passes.calibration.coupled or passes.calibration.drawn:
        coupled = passes.calibration.coupled
        why = "examples affect each other in the loss" if coupled else "the loss draws random numbers"
        raise ValueError(f"the outputs of single examples have no Jacobian of their own: {why}")
    parameters = passes.trainable()
    with passes.isolated():
        outputs, residuals, hessian = _loss_of_outputs(passes, passes.place(batch), n)
        c = outputs.shape[1]
        if n * c > MAX_ROWS:
            raise ValueError(
                f"the Jacobian of {n} examples with {c} outputs has {n * c} rows, over {MAX_ROWS}: take "
                f"{MAX_ROWS // c} examples or fewer"
            )
        repeated = reduce(lambda one, k: join(one, batch, (k * n, n)), range(1, c), batch)
        copies = _outputs(passes, passes.place(repeated), n * c)[1]
        number = torch.arange(c, device=copies.device)
        own = (number.repeat_interleave(n)[:, None] == number).view_as(copies).to(copies)
        tap = GradientTap(parameters.items(), n * c, loss_scale=float(n * c), batch_first=True)
        sample = ride(tap, (copies * own).sum(), parameters)
    assert sample.gram is not None
    gram = sample.gram.cpu().view(c, n, c, n).permute(1, 0, 3, 2).reshape(n * c, n * c)
    count = sum(p.numel() for p in parameters.values())
    return OutputJacobian(gram, hessian, residuals, outputs, count, sample.notes)


def _outputs(passes: ProbePasses, batch: Any, examples: int) -> tuple[Tensor, Tensor]:
    """Return the loss and the outputs it was made from, [n, C], both with their graph."""
    with recorded_outputs(passes.module) as records:
        loss = passes.loss_of(batch)
    output, _ = find_output(records, loss.sum(), passes.trainable(), examples)
    if len(output.tensors) != 1:
        raise ValueError(f"the model has {len(output.tensors)} outputs ({output.name}); the Jacobian is that of one")
    return loss, output.tensors[0]


def _loss_of_outputs(passes: ProbePasses, batch: Any, examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and minus the first and plus the second derivative of each example's own loss there, on the host."""
    loss, output = _outputs(passes, batch, examples)
    columns = output[0].numel()
    if columns > MAX_ROWS:
        raise ValueError(f"the Jacobian of an example with {columns} outputs has over {MAX_ROWS} rows")
    (slope,) = torch.autograd.grad(passes.summed(loss, examples), output, create_graph=True)
    rows = []
    for column in slope.flatten(1).unbind(1) if slope.dim() > 1 else [slope]:
        (row,) = torch.autograd.grad(column.sum(), output, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(output) if row is None else row)
    hessian = torch.stack([row.reshape(examples, -1) for row in rows], 1)
    outputs, residuals = (t.detach().reshape(examples, -1).double().cpu() for t in (output, -slope))
    return outputs, residuals, hessian.detach().double().cpu()


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
def hessian_products(passes: ProbePasses, examples: int) -> Iterator[HessianProducts]:
    """Hold the graph of the gradient on some examples, for products with its Hessian.

    Args:
        passes: The model and its loss; the model is in isolation until the block ends.
        examples: How many of the first examples; the graphs of all of them are held at once.

    Raises:
        UnsupportedGradientError: If the loss has no graph, or something in the model has no second derivative.
    """
    parameters = passes.trainable()
    # Fused attention and recurrence have first derivatives only.
    plain = torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
    with passes.isolated(), plain[0], plain[1]:
        total: Tensor | None = None
        count = 0
        for chunk in passes.placed(examples):
            own = passes.summed(passes.loss_of(chunk.batch), chunk.examples)
            total = own if total is None else total + own
            count += chunk.examples
        if total is None or total.grad_fn is None:
            raise UnsupportedGradientError("the loss of the probe has no autograd graph, so it has no curvature")
        try:
            slopes = torch.autograd.grad(total / count, list(parameters.values()), create_graph=True, allow_unused=True)
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
