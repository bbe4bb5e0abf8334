"""What the processes of a fit tell each other: each of these has to be called by all of them, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cx.callbacks._trainer import Trainer


def any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process says yes; every process has to ask."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def agreed(trainer: Trainer, number: int) -> bool:
    """Whether all processes have the same number; every process has to ask."""
    every = trainer.strategy.all_gather(torch.tensor(number, device=trainer.strategy.root_device))
    return bool((every == number).all())


def first_process(trainer: Trainer, claim: bool) -> int:
    """Rank of the first process that claims something, 0 if none does; every process has to ask."""
    claims = trainer.strategy.all_gather(torch.tensor(claim, device=trainer.strategy.root_device)).reshape(-1)
    return int(claims.int().argmax())


def from_process(trainer: Trainer, thing: Any, source: int = 0) -> Any:
    """What one process has, in all of them; every process has to call."""
    return trainer.strategy.broadcast(thing, source)


def numbers_of_all(trainer: Trainer, numbers: Sequence[float]) -> Tensor:
    """The numbers of all processes, [processes, numbers] float64; every process has to call, with as many."""
    own = torch.tensor(numbers, dtype=torch.float64, device=trainer.strategy.root_device)
    return trainer.strategy.all_gather(own).cpu().reshape(-1, len(numbers))


def summed(trainer: Trainer, tensor: Tensor) -> Tensor:
    """The sum over all processes; every process has to call, with the same shape. The tensor may be written to."""
    total = trainer.strategy.reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def gathered_rows(trainer: Trainer, rows: Tensor) -> list[Tensor]:
    """The matrices [n_i, C_i] of all processes, widened with zeros to one width; every process has to call."""
    strategy, rows = trainer.strategy, rows.double()
    sizes = strategy.all_gather(torch.tensor(rows.shape, device=strategy.root_device)).reshape(-1, 2)
    padded = rows.new_zeros(tuple(sizes.amax(0).tolist()))
    padded[: rows.shape[0], : rows.shape[1]] = rows
    everything = strategy.all_gather(padded.to(strategy.root_device)).cpu().reshape(-1, *padded.shape)
    return [part[:count] for part, count in zip(everything, sizes[:, 0].tolist(), strict=True)]
