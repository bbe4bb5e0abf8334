"""Passes over the fixed probe, in isolation: the one object through which a model is asked about these examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cx.batch import join, padded_cat, take
from lightning_cx.functional import stopping
from lightning_cx.gradients import CONTRIBUTION, EXACT, Calibration, GradientSample, calibrate_rows, unchanged
from lightning_cx.probe.conditions import eagerly, other_weights
from lightning_cx.probe.derivatives import (
    HessianProducts,
    OutputJacobian,
    first_examples,
    hessian_products,
    output_jacobian,
    probe_gradients,
    some_chunks,
)
from lightning_cx.probe.isolation import drawing, isolated
from lightning_cx.probe.outputs import Chunk, ChunkReading, LossOf, ResidualLaw, residuals_of
from lightning_cx.probe.reading import Columns
from lightning_cx.probe.residual_gradients import ResidualGradients, residual_gradients

PAIR = 2  # examples that are compared together where one alone has no loss
SUMS = (
    "the training loss is the sum over the examples of a batch, so that the learning rate acts on as many times the "
    "gradient of the mean loss: let the loss be a mean, and the learning rate larger by the batch size"
)


def _as_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class ProbeOutputs:
    """What one pass over the probe shows.

    Attributes:
        outputs: Model outputs, [n, C] float64 on the host.
        residuals: Minus the derivative of each example's own loss with respect to them, in the unit of the targets
            where the law of the loss is known, [n, C] float64 on the host.
        source: In words, which tensor was taken for the model's output.
        loss: Mean loss of an example.
    """

    outputs: Tensor
    residuals: Tensor
    source: str
    loss: float


@dataclass(eq=False)
class ProbePasses:
    """Pass the probe through a model and leave no trace: outputs, losses, gradients, Jacobian, curvature, activations.

    All passes run in eval mode and in isolation: weights, buffers, random streams and logs stay as they are. The object
    holds the live model, so it is good for the step at which it was made.

    Attributes:
        module: The live model; read only.
        chunks: The probe as batches in host memory, and how many examples each holds.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        place: Puts a batch on the model's device.
        calibration: What the loss of a batch is to its examples: how it adds them up, whether they act on each other.
        law: What the slope of the loss at the outputs is, and in which unit.
        optimizer: The live optimizer; read only. None where there is none, or several share the model.
        training_examples: Size of the training set, where it is known.
    """

    module: nn.Module
    chunks: Sequence[tuple[Any, int]]
    loss_of: LossOf
    place: Callable[[Any], Any] = _as_is
    calibration: Calibration = field(default_factory=Calibration)
    law: ResidualLaw = field(default_factory=ResidualLaw)
    optimizer: Optimizer | None = None
    training_examples: int | None = None

    @property
    def examples(self) -> int:
        """Number of examples in the probe."""
        return sum(count for _, count in self.chunks)

    @property
    def sums(self) -> str:
        """Why a step is larger than the mean loss tells, in words, where the training loss is a sum; else empty."""
        return SUMS if self.calibration.sums else ""

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name, live and detached: clone what is to be kept."""
        return {name: p.detach() for name, p in self.trainable().items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, as the graph holds them."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def at(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Let passes inside the block see other weights; the live ones come back bit for bit.

        Args:
            parameters: Values by name; those that are missing stay.

        Raises:
            ValueError: If a name is unknown or a shape does not fit.
        """
        return other_weights(self.module, parameters)

    def outputs(self) -> ProbeOutputs:
        """Outputs and residuals of all examples.

        Raises:
            ValueError: If the loss has no graph, or no output of a module carries all of it.
        """
        outputs, residuals = Columns(), Columns()
        source, total = "", 0.0
        with self.isolated():
            for chunk in self.placed():
                found = residuals_of(self.module, chunk, self.loss_of, self.law)
                source = source or found.source
                outputs.add(found.outputs)
                scale = 1 if found.per_example else self.calibration.scale(chunk.examples)
                residuals.add(found.residuals, scale=1 if self.law.squared else scale / self.law.unit)
                total += found.loss * scale
        return ProbeOutputs(outputs.rows(), residuals.rows(), source, total / self.examples)

    def loss(self, examples: int | None = None) -> float:
        """Mean loss of an example, over the first of the probe (None: all)."""
        losses, counts = self.losses(examples).unbind(1)
        return float((losses * counts).sum() / counts.sum())

    def losses(self, examples: int | None = None) -> Tensor:
        """Mean loss of an example in each chunk and the number of examples in it, [chunks, 2] float64."""
        with self.isolated():
            found = []
            for chunk in self.placed(examples):
                loss = self.loss_of(chunk.batch).detach().double()
                shares = 1 if loss.numel() == 1 and not self.calibration.sums else chunk.examples
                found.append([float(loss.sum()) / shares, chunk.examples])
        return torch.tensor(found, dtype=torch.float64)

    def gradients(self, examples: int = 256, per_layer: bool = False, projections: int = 0) -> GradientSample:
        """Per-example gradients of the loss on the first examples (at most 8 chunks of them).

        Args:
            examples: How many.
            per_layer: Keep the Gram matrices of the single parameters as well.
            projections: Number of fixed random directions to project on.

        Raises:
            UnsupportedGradientError: If the tap cannot read the model, by name.
            ValueError: If chunks cannot be joined into one batch.
        """
        return probe_gradients(self, some_chunks(self.chunks, examples), per_layer, projections)

    def residual_gradients(self, sketch: stopping.GradientSketch, kind: str = "") -> ResidualGradients:
        """Gradient of the outputs of each example along its residual, sketched; one backward for each chunk.

        Args:
            sketch: Of all trainable parameters.
            kind: Of errors, as an earlier call found it; empty finds it out.

        Raises:
            UnsupportedGradientError: If the tap cannot read the model, by name.
            ValueError: If no output carries the whole loss.
        """
        return residual_gradients(self, sketch, self.chunks, kind)

    def jacobian(self, examples: int) -> OutputJacobian:
        """Gram matrix of the outputs' derivatives on the first examples, and the loss's second derivative there.

        Raises:
            UnsupportedGradientError: If the tap cannot read the model, by name.
            ValueError: If examples act on each other, outputs cannot be found, or there are over 2048 rows.
        """
        return output_jacobian(self, examples)

    def hessian(self, examples: int = 256) -> AbstractContextManager[HessianProducts]:
        """Products with the Hessian of the mean loss over the first examples, while the block runs.

        Raises:
            UnsupportedGradientError: If something in the model has no second derivative.
        """
        return hessian_products(self, examples)

    def activations(self, examples: int = 256, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """Outputs of the submodules that have no submodules, [n, ...] float32 on the host, by name, in order of use.

        A part that runs several times in one pass gives its first output; one whose output is no floating-point tensor
        with the examples along its first axis is left out.

        Args:
            examples: How many of the first examples.
            wanted: Which parts, by name.
        """
        names = {part: name for name, part in self.module.named_modules() if not any(part.children()) and wanted(name)}
        found: dict[str, list[Tensor]] = {}
        seen: dict[str, Tensor] = {}

        def record(part: nn.Module, _: object, output: Any) -> None:
            name = names.get(part)
            if name is not None and name not in seen and isinstance(output, Tensor) and output.is_floating_point():
                seen[name] = output.detach().to("cpu", torch.float32, copy=True)  # before x.relu_() or x += y

        passed = 0
        with self.isolated():
            handle = nn.modules.module.register_module_forward_hook(record)
            try:
                for chunk in self.placed(examples):
                    seen.clear()
                    self.loss_of(chunk.batch)
                    passed += 1
                    for name, values in seen.items():
                        if values.dim() > 0 and values.shape[0] == chunk.examples:
                            found.setdefault(name, []).append(values)
            finally:
                handle.remove()
        return {name: padded_cat(parts) for name, parts in found.items() if len(parts) == passed}

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Let the model run as if it had never run: in eval mode, uncompiled, and with a graph.

        The graph is there even where nothing is differentiated: a loss may take derivatives itself.
        """
        with isolated(self.module, guard=True), eagerly(), torch.enable_grad():
            yield

    def placed(self, examples: int | None = None) -> Iterator[Chunk]:
        """Put the chunks of the first examples (None: all) on the model's device, one after another."""
        for batch, count in self.chunks if examples is None else first_examples(self.chunks, examples):
            yield Chunk(self.place(batch), count)

    def summed(self, loss: Tensor, examples: int) -> Tensor:
        """Turn the loss of a batch into the sum of its examples' own losses."""
        return loss.sum() * (self.calibration.scale(examples) if loss.numel() == 1 else 1)


def calibrate_probe(passes: ProbePasses, company: tuple[Any, int], alone: Sequence[Any]) -> Calibration:
    """Find out how the loss adds up its examples, by the residuals of a few of them in company and alone.

    The tap compares gradients of the loss as training has it; here it is the loss of eval mode, on the probe's own
    batches, at the outputs. Where training batches hold one example, a few are put together: one example is its own
    mean and its own sum, and passes over several go by what is found here.

    Args:
        passes: The model and its loss.
        company: A batch, and how many examples it holds.
        alone: Batches of one example each: the first of the company, or some others where that holds one alone. More
            than one, since one may have an average class weight or a residual of zero.
    """
    singles = [Chunk(passes.place(batch), 1) for batch in alone]
    batch, count = company
    if count == 1 and len(alone) > 1:
        with suppress(Exception):  # no batch of several can be made, or the loss takes none: no pass of several, either
            several = reduce(lambda one, k: join(one, alone[k], (k, 1)), range(1, len(alone)), alone[0])
            return _calibrate(passes, Chunk(passes.place(several), len(alone)), singles)
    return _calibrate(passes, Chunk(passes.place(batch), count), singles[:count])


def _calibrate(passes: ProbePasses, chunk: Chunk, alone: Sequence[Chunk]) -> Calibration:
    with passes.isolated(), drawing() as drawn:
        together = residuals_of(passes.module, chunk, passes.loss_of)
    examples = 1 if together.per_example else chunk.examples
    rows, truth, why = _with(passes, together, alone)
    if why and chunk.examples >= 2 * PAIR:  # that one alone has no loss is no evidence: an axis may have been dropped
        cut = partial(take, chunk.batch, examples=chunk.examples, trim=True)
        pairs = [Chunk(cut(k, k + PAIR), PAIR) for k in (0, PAIR)]
        rows, truth, of_pairs = _with(passes, together, pairs)
        truth, why = truth if together.per_example else truth * PAIR, of_pairs and f"{why}; two: {of_pairs}"
    if why:
        return replace(Calibration.unverified(f"one example alone: {why}"), each=together.per_example)
    # Each example is a part of its own: its residual has to agree, whatever that of the others.
    found = replace(calibrate_rows(rows, truth, examples), each=together.per_example)
    if not (drawn and found.coupled):
        return found
    # One example alone draws others than it does in company, so that comparison tells a mean from a sum at most.
    others = _others_count(passes, chunk)
    return replace(found, status=CONTRIBUTION if others else EXACT, mixed=others, drawn=True)


def _with(passes: ProbePasses, together: ChunkReading, parts: Sequence[Chunk]) -> tuple[Tensor, Tensor, str]:
    """Residuals of the first examples in company and in smaller batches, and why they cannot be compared, if so."""
    seen, truth = Columns(), Columns()
    try:
        with passes.isolated():
            found = [residuals_of(passes.module, part, passes.loss_of).residuals for part in parts]
    except Exception as error:  # the user's code on a batch that it may not be made for
        return torch.empty(0), torch.empty(0), f"{type(error).__name__}: {error}"
    start = 0
    for part, residuals in zip(parts, found, strict=True):
        rows = [t[start : start + part.examples] for t in together.residuals]
        # A padded sequence is shorter among fewer; what it has is compared.
        alike = all(t.dim() == s.dim() for t, s in zip(rows, residuals, strict=True))
        cuts = [tuple(slice(n) for n in s.shape[1:]) if alike else () for s in residuals]
        seen.add([t[(slice(None), *cut)] for t, cut in zip(rows, cuts, strict=True)])
        truth.add(list(residuals))
        start += part.examples
    if not truth.rows().isfinite().all():
        return seen.rows(), truth.rows(), "no finite residual"
    return seen.rows(), truth.rows(), ""


def _others_count(passes: ProbePasses, chunk: Chunk) -> bool:
    """Whether other examples in place of the rest of a batch, and the same draws, change the first residuals."""
    total = (chunk.examples + 1) // 2
    stay, first = max(1, total // 2), partial(take, chunk.batch, examples=chunk.examples, trim=True)
    companies = first(0, total), join(first(0, stay), first(total, 2 * total - stay), (stay, total - stay))
    shown = []
    for company in companies:
        rows = Columns()
        with passes.isolated():
            rows.add([t[:stay] for t in residuals_of(passes.module, Chunk(company, total), passes.loss_of).residuals])
        shown.append(rows.rows())
    return not unchanged(*shown)
