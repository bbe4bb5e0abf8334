"""The model as it is now, for passes of an instrument's own over the fixed probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cx.gradients import GradientSample
from lightning_cx.probe.activations import activations_of
from lightning_cx.probe.batches import join
from lightning_cx.probe.curvature import HessianProducts, hessian_products
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.gradients import first_examples, probe_gradients, some_chunks
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.jacobian import MAX_ROWS, OutputJacobian, output_jacobian
from lightning_cx.probe.passes import Chunk, LossOf, Reduction
from lightning_cx.probe.weights import other_weights

SUMS = (
    "the training loss is the sum over the examples of a batch, so that the learning rate acts on as many times the "
    "gradient of the mean loss: let the loss be a mean, and the learning rate larger by the batch size"
)


class ModelView:
    """Passes over the probe that leave no trace: losses, gradients, Jacobian, curvature and activations.

    All of them run in eval mode and in isolation: weights, buffers, random streams and logs stay as they are. A view
    holds the live model, so it is good for the step at which it was made.

    Args:
        module: The model.
        chunks: The probe as batches in host memory, and how many examples each holds.
        place: Puts a batch on the model's device.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        reduction: How the loss adds up.
        optimizer: What trains the model, if it is one alone.
        training_examples: Size of the training set, where it is known.

    Attributes:
        module: The live model; read only.
        optimizer: The live optimizer; read only. None where there is none, or several share the model.
        training_examples: Size of the training set, or None.
        sums: Why a step is larger than the mean loss tells, in words, where the training loss is a sum; else empty.
    """

    def __init__(
        self,
        module: nn.Module,
        chunks: Sequence[tuple[Any, int]],
        place: Callable[[Any], Any],
        loss_of: LossOf,
        reduction: Reduction,
        optimizer: Optimizer | None = None,
        training_examples: int | None = None,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.training_examples = training_examples
        self.sums = "" if reduction.mean or reduction.each else SUMS
        self._chunks = chunks
        self._place, self._loss_of, self._reduction = place, loss_of, reduction

    @property
    def examples(self) -> int:
        """Number of examples in the probe."""
        return sum(count for _, count in self._chunks)

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name, live and detached: clone what is to be kept."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def at(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Let passes inside the block see other weights; the live ones come back bit for bit.

        Args:
            parameters: Values by name; those that are missing stay.

        Raises:
            ValueError: If a name is unknown or a shape does not fit.
        """
        return other_weights(self.module, parameters)

    def loss(self, examples: int | None = None) -> float:
        """Mean loss of an example, over the first of the probe (None: all)."""
        losses, counts = self.losses(examples).unbind(1)
        return float((losses * counts).sum() / counts.sum())

    def losses(self, examples: int | None = None) -> Tensor:
        """Mean loss of an example in each chunk and the number of examples in it, [chunks, 2] float64."""
        found = []
        with isolated(self.module, guard=True), eagerly(), torch.enable_grad():  # a loss may take derivatives itself
            for make in self._first(examples):
                chunk = make()
                loss = self._loss_of(chunk.batch).detach().double()
                mean = loss.sum() if self._reduction.mean and loss.numel() == 1 else loss.sum() / chunk.examples
                found.append([float(mean), float(chunk.examples)])
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
        chunks = some_chunks(self._chunks, examples)
        how = self._loss_of, self._reduction, per_layer, projections
        return probe_gradients(self.module, chunks, self._place, *how)

    def jacobian(self, examples: int) -> OutputJacobian:
        """Gram matrix of the outputs' derivatives on the first examples, and the loss's second derivative there.

        Raises:
            UnsupportedGradientError: If the tap cannot read the model, by name.
            ValueError: If examples act on each other, outputs cannot be found, or there are over 2048 rows.
        """
        chunks = first_examples(self._chunks, min(examples, MAX_ROWS))
        batch, count = reduce(lambda a, b: (join(a[0], b[0], (a[1], b[1])), a[1] + b[1]), chunks)
        return output_jacobian(self.module, batch, count, self._place, self._loss_of, self._reduction)

    def hessian(self, examples: int = 256) -> AbstractContextManager[HessianProducts]:
        """Products with the Hessian of the mean loss over the first examples, while the block runs.

        Raises:
            UnsupportedGradientError: If something in the model has no second derivative.
        """
        return hessian_products(self.module, self._first(examples), self._loss_of, self._reduction)

    def activations(self, examples: int = 256, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """Outputs of the parts that have no parts, on the first examples, [n, ...] float32 on the host, by name.

        Args:
            examples: How many.
            wanted: Which parts, by name.
        """
        return activations_of(self.module, self._first(examples), self._loss_of, wanted)

    def _first(self, examples: int | None) -> list[Callable[[], Chunk]]:
        chunks = self._chunks if examples is None else first_examples(self._chunks, examples)

        def placed(batch: Any, count: int) -> Callable[[], Chunk]:
            return lambda: Chunk(self._place(batch), count)

        return [placed(batch, count) for batch, count in chunks]
