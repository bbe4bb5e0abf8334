"""Say once what failed, let training go on, and give a part up after three failures in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_cx.callbacks._trainer import PassedOverError, rank_zero_info, rank_zero_warn

PATIENCE = 3  # failures in a row after which a part is disabled


class Failures:
    """Count what failed while measuring, part by part.

    Args:
        strict: Let every failure out instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._in_a_row: Counter[str] = Counter()
        self._told: set[str] = set()

    def off(self, part: str) -> bool:
        """Return whether a part failed so often that it is left out from now on."""
        return self._in_a_row[part] >= PATIENCE

    def tell(self, message: str, topic: str | None = None) -> None:
        """Warn, but only once for each topic: the message itself, unless its details differ from time to time."""
        topic = message if topic is None else topic
        if topic not in self._told:
            self._told.add(topic)
            rank_zero_warn(f"lightning_cx: {message}")

    def say(self, message: str, topic: str) -> None:
        """Inform the user, once for each topic; nothing is wrong."""
        if topic not in self._told:
            self._told.add(topic)
            rank_zero_info(f"lightning_cx: {message}")

    def state_dict(self) -> dict[str, int]:
        """Return how often each part failed in a row."""
        return dict(self._in_a_row)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what `state_dict` returned, in another process."""
        self._in_a_row = Counter(state)

    @contextmanager
    def guard(self, part: str, last: bool = True) -> Iterator[None]:
        """Turn an exception of the block into a warning.

        Args:
            part: What the block belongs to.
            last: Whether the part has done all its work for this sample once the block has gone well.
        """
        try:
            yield
        except PassedOverError as reason:
            self.tell(str(reason), topic=PassedOverError.__name__)
        except Exception as error:  # whatever it is, it must not end a training that has nothing to do with it
            if self.strict:
                raise
            self._in_a_row[part] += 1
            self.tell(
                f"{part} failed, training continues: {type(error).__name__}: {error}", part + type(error).__name__
            )
            if self.off(part):
                self.tell(f"{part} is disabled after {PATIENCE} failures in a row (strict=True raises instead)")
        else:
            if last:
                self._in_a_row[part] = 0
