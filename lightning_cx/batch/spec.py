"""What a batch is, said by the user instead of being found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Key: TypeAlias = "str | int"
Named: TypeAlias = "Key | Sequence[Key] | Callable[[Any], Tensor] | None"


class BatchSpecError(ValueError):
    """A specification does not fit a batch; the message says what the batch holds."""


@dataclass(frozen=True)
class BatchSpec:
    """Say outright what the examples of a batch are, and which of its tensors are inputs and targets.

    Everything that is None is found out from the first batch, and logged. A specification that does not fit the first
    batch is refused there, with what was found instead.

    Args:
        size: Number of examples: a number, the key of a tensor that has them along its first axis (or of a number that
            the batch holds), or a function from the batch to a number.
        inputs: What orders the examples: the key or position of a tensor, several of them, or a function from the
            batch to a tensor [n, ...]. What a function returns is taken as it is; tensors are standardised.
        targets: What the model is to predict, said in the same ways.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a size is below 1, or an empty list of keys was given.

    Example:
        >>> BatchSpec(size="encoder_lengths", inputs=["encoder_cont", "decoder_cont"], targets=1).size
        'encoder_lengths'
        >>> BatchSpec(size=0)
        Traceback (most recent call last):
            ...
        ValueError: BatchSpec(size=0): a batch has at least one example.
    """

    size: int | str | Callable[[Any], int] | None = None
    inputs: Named = None
    targets: Named = None

    def __post_init__(self) -> None:
        """Refuse what can be no specification."""
        known = self.size is None or isinstance(self.size, int | str) or callable(self.size)
        if isinstance(self.size, bool) or not known:
            raise TypeError(
                f"BatchSpec(size={self.size!r}): pass a number, a key of the batch, or a function from the batch to a "
                "number."
            )
        if isinstance(self.size, int) and self.size < 1:
            raise ValueError(f"BatchSpec(size={self.size}): a batch has at least one example.")
        for name, value in (("inputs", self.inputs), ("targets", self.targets)):
            if value is None or callable(value):
                continue
            keys = [value] if isinstance(value, str | int) else list(value) if isinstance(value, Sequence) else [None]
            if not keys:
                raise ValueError(f"BatchSpec({name}=[]): name at least one tensor, or leave it out.")
            if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in keys):
                raise TypeError(
                    f"BatchSpec({name}={value!r}): pass a key or position, a list of them, or a function from the "
                    "batch to a tensor [n, ...]."
                )
