"""Per-example gradients the slow and sure way: one example at a time through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from lightning_cx.gradients.projections import Directions, spread
from lightning_cx.gradients.sample import EXACT, GradientSample, LayerGradients

MEMORY_BYTES = 256 << 20  # rows are held while their inner products are formed; fewer examples are read beyond this


def affordable_examples(parameters: Iterable[Tensor], wanted: int) -> int:
    """How many examples `replay_gradients` may hold at once: at least two, at most `wanted`."""
    size = sum(p.numel() * max(4, p.element_size()) for p in parameters if p.requires_grad)
    return min(wanted, max(2, MEMORY_BYTES // max(1, size)))


def replay_gradients(
    loss_of: Callable[[int], Tensor],
    named_parameters: Iterable[tuple[str, Tensor]],
    examples: int,
    projections: int = 0,
    seed: int = 0,
    coordinates: int = 0,
) -> GradientSample:
    """Per-example gradients of any model, by a pass of its own for each example: sure, and as slow as it sounds.

    g_i = d loss_of(i) / d parameters; K_ij = <g_i, g_j>.

    Args:
        loss_of: Returns the loss of example i alone, a scalar with a graph.
        named_parameters: Pairs as `module.named_parameters()` gives them; frozen ones are skipped.
        examples: Number of examples to read, from the first; all rows are held at once (see
            `affordable_examples`).
        projections: Number of fixed random directions, the same as those of `GradientTap`.
        seed: Seed of the directions.
        coordinates: Number of fixed entries of the gradient to keep, the same as those of `GradientTap`.

    Returns:
        A sample of status `exact` with `gram`, `squared_norms` and, where asked for, `projections` and `coordinates`.
        `.grad` is not touched.

    Raises:
        ValueError: If no parameter is trainable, or no example is asked for.
    """
    if examples < 1:
        raise ValueError(f"replay_gradients needs at least one example, got examples={examples}.")
    parameters = {name: p for name, p in named_parameters if p.requires_grad}
    if not parameters:
        raise ValueError("replay_gradients got no trainable parameter: there is no gradient to read.")
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for i in range(examples):
        with torch.enable_grad(), _without_reentry():
            loss = loss_of(i)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            rows[name].append(_real(torch.zeros_like(parameter) if gradient is None else gradient.detach().to_dense()))
    parameters = {name: _real(parameter.detach()) for name, parameter in parameters.items()}
    gram = next(iter(parameters.values())).new_zeros(examples, examples, dtype=torch.float64)
    projected = gram.new_zeros(examples, projections)
    layers: dict[str, LayerGradients] = {}
    chosen = spread(parameters, coordinates, seed)
    entries: list[Tensor] = []
    for name, parameter in parameters.items():
        stacked = torch.stack(rows.pop(name)).to(torch.promote_types(parameter.dtype, torch.float32))
        flat = stacked.reshape(examples, -1)
        own = (flat @ flat.T).double()
        gram += own
        along = None
        if projections:
            directions = Directions.draw(name, tuple(parameter.shape), projections, seed, parameter)
            along = directions.of_rows(stacked).double()
            projected += along
        if name in chosen:
            entries.append(chosen[name].of_rows(stacked).double())
        layers[name] = LayerGradients("replay", own, flat.square().sum(1).double(), projections=along)
    return GradientSample(
        batch_size=examples,
        status=EXACT,
        gram=gram,
        squared_norms=gram.diagonal(),
        projections=projected if projections else None,
        coordinates=torch.cat(entries, 1) if entries else None,
        layers=layers,
        notes=(f"read by replaying {examples} examples one at a time",),
    )


def _real(tensor: Tensor) -> Tensor:
    """A complex number as the two real ones it is to an optimizer, [..., 2]."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def add_up(alone: GradientSample, together: GradientSample, tolerance: float = 0.05) -> bool:
    """Whether the gradient of a batch is as large as the mean, or the sum, of those of its examples alone.

    Args:
        alone: The examples, replayed one by one.
        together: The same examples, replayed as if they were one.
        tolerance: Relative; bfloat16 agrees to .02.
    """
    assert alone.gram is not None
    assert together.gram is not None
    total, batch = float(alone.gram.sum()), float(together.gram.sum())
    return any(abs(total / scale - batch) <= tolerance * batch for scale in (len(alone.gram) ** 2, 1))


@contextmanager
def _without_reentry() -> Iterator[None]:
    """Run what reentrant checkpointing wraps directly: its backward refuses `autograd.grad`.

    One example needs little memory, and `.backward()` instead would write to `.grad` and set off the hooks that
    optimizers and distributed training hang on it.
    """

    def run(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        del preserve_rng_state
        return function(*arguments)

    CheckpointFunction.apply = run  # covers the inherited one
    try:
        yield
    finally:
        del CheckpointFunction.apply
