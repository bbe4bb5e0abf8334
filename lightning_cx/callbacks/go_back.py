"""All processes go back to the same weights."""

from __future__ import annotations

from typing import Any

from lightning_cx.callbacks._trainer import Callback, LightningModule, Trainer
from lightning_cx.callbacks.collectives import agreed, any_process, first_process
from lightning_cx.callbacks.kept_weights import KeptWeights, put_back

WAY_OUT = "the last of the two in the list has the last word, and restore_best=False leaves it to the average"


def go_back(trainer: Trainer, module: LightningModule, kept: KeptWeights, wanted: bool, claim: bool) -> int | None:
    """Put kept weights back into the module if any process wants it; every process has to call.

    Args:
        trainer: Of the fit.
        module: Whose weights are replaced.
        kept: This process's copy.
        wanted: Whether this process wants to go back.
        claim: Whether its copy is the one to take where copies are of different steps, as streams make them.

    Returns:
        The step of the weights; None if no process wanted to go back.

    Raises:
        RuntimeError: If the copy cannot be read in some process.
    """
    if not any_process(trainer, wanted):
        return None
    tensors: dict[str, Any] = {}
    error: Exception | None = None
    try:
        tensors = kept.tensors()
    except Exception as problem:  # a file that is gone; the other processes have to hear of it
        error = problem
    if any_process(trainer, error is not None):
        raise RuntimeError("a process could not read its copy of the best weights") from error
    step = kept.step
    if not agreed(trainer, -1 if step is None else step):
        step, tensors = trainer.strategy.broadcast((step, tensors), first_process(trainer, claim))
    put_back(module, tensors)
    return step


def averages_beside(trainer: Trainer, callback: Callback) -> str | None:
    """Whose weights the module ends with where another callback averages weights, in words; None if none does.

    At the end of a fit each puts weights of its own into the module, one after another.
    """
    callbacks, own = trainer.callbacks, type(callback).__name__  # type: ignore[attr-defined]
    place = callbacks.index(callback)
    behind = next((type(c).__name__ for c in callbacks[place + 1 :] if _averages(c)), None)
    if behind:
        return f"{behind} stands behind {own} and may replace the best weights by its average; {WAY_OUT}"
    front = next((type(c).__name__ for c in callbacks[:place] if _averages(c)), None)
    return front and f"{front} stands in front of {own}: best weights that go back will replace its average; {WAY_OUT}"


def _averages(callback: Callback) -> bool:
    return any(kind.__name__.endswith("WeightAveraging") for kind in type(callback).__mro__)
