"""Per-example gradients on the fixed probe: which examples agree, asked of the same ones from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.gradients import CONTRIBUTION, GradientSample, GradientTap, LayerGradients, ride
from lightning_cx.probe.batches import join, take
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.passes import LossOf, Reduction

MAX_CHUNKS = 8  # each two have to meet in one pass: 28 passes of two chunks


def probe_gradients(
    module: nn.Module,
    chunks: Sequence[tuple[Any, int]],
    place: Callable[[Any], Any],
    loss_of: LossOf,
    reduction: Reduction,
    per_layer: bool,
    projections: int = 0,
) -> GradientSample:
    """Gram matrix of the per-example gradients of all chunks, in eval mode and without a trace.

    A tap sees inner products within one batch, so every two chunks pass through the module together once: exact, and
    never more in memory than two of the training's batches.

    Args:
        module: The model.
        chunks: Batches in host memory and how many examples each holds.
        place: Puts a batch on the model's device.
        loss_of: Loss of a batch: a scalar, or one loss for each example.
        reduction: How the loss adds up.
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
    with isolated(module, guard=True), eagerly():
        for batch, members in _meetings(chunks):
            places = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in members])
            sample = _gradients_of(module, place(batch), len(places), loss_of, reduction, per_layer, projections)
            status, notes = sample.status, sample.notes
            _put(whole, places, sample.gram)
            if onto is not None and sample.projections is not None:
                onto[places] = sample.projections.cpu()
            for name, layer in sample.layers.items():
                if layer.gram is not None:
                    layers.setdefault(name, replace(layer, gram=torch.zeros_like(whole), squared_norms=None))
                    _put(layers[name].gram, places, layer.gram)
    return GradientSample(
        batch_size=len(whole),
        status=CONTRIBUTION if reduction.coupled else status,
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
            chosen.append((batch, count) if count <= missing else (take(batch, 0, missing, count), missing))
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


def _gradients_of(
    module: nn.Module,
    batch: Any,
    examples: int,
    loss_of: LossOf,
    reduction: Reduction,
    per_layer: bool,
    projections: int,
) -> GradientSample:
    with torch.enable_grad():
        loss = loss_of(batch)
        per_example = loss.numel() > 1
        loss = loss.mean() if per_example else loss.reshape(())
    parameters = dict(module.named_parameters())
    scale = 1.0 if per_example or reduction.mean else float(examples)
    tap = GradientTap(parameters.items(), examples, per_layer=per_layer, projections=projections, loss_scale=scale)
    return ride(tap, loss, parameters)


def _put(whole: Tensor | None, places: Tensor, block: Tensor | None) -> None:
    if whole is not None and block is not None:
        whole[places[:, None], places] = block.cpu()
