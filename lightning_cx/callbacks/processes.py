"""Work that several processes do together: it succeeds in all of them, or is known in all of them to have failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lightning_cx.callbacks._trainer import PassedOverError, Trainer
from lightning_cx.callbacks.collectives import any_process, first_process, from_process
from lightning_cx.gradients import UnsupportedGradientError

T = TypeVar("T")


@dataclass(frozen=True)
class Trouble:
    """What went wrong in the first process where anything did.

    Attributes:
        process: Its rank.
        kind: What to raise elsewhere: a ValueError where it lies in the model or the data, and will not change.
        words: What it was.
    """

    process: int
    kind: type[Exception]
    words: str

    @property
    def lasting(self) -> bool:
        """Whether it will not change."""
        return self.kind is ValueError


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Do it, and hand on what went wrong: the other processes have to hear of it before anything is raised."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def trouble(trainer: Trainer, error: Exception | None) -> Trouble | None:
    """What went wrong in any process, None if nothing did; every process has to ask."""
    if not any_process(trainer, error is not None):
        return None
    source = first_process(trainer, error is not None)
    kind = ValueError if isinstance(error, (ValueError, UnsupportedGradientError)) else RuntimeError
    kind = PassedOverError if isinstance(error, PassedOverError) else kind
    words = f"{type(error).__name__}: {error}" if kind is RuntimeError else str(error)
    return Trouble(source, *from_process(trainer, (kind, words), source))


def together(trainer: Trainer, work: Callable[[], T]) -> T:
    """Do something in every process, and raise in all of them if it failed in one; every process has to call.

    Raises:
        Exception: What went wrong here; where it did elsewhere, a ValueError or RuntimeError that says where and what.
    """
    done, error = attempt(work)
    met = trouble(trainer, error)
    if error is not None:
        raise error
    if met is not None:
        raise met.kind(f"process {met.process}: {met.words}")
    return done  # type: ignore[return-value]  # nothing was raised
