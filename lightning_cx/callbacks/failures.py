"""Say once what failed, let training go on, and give a part up after three failures in a row.

What is refused goes through `logging` at WARNING, to the logger `lightning_cx`: filters of Python's warnings leave it
alone. What is only worth knowing goes where Lightning's own information goes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lightning_cx.batch import BatchSpecError
from lightning_cx.callbacks._trainer import PassedOverError, rank_zero_info, rank_zero_warning

PATIENCE = 3  # failures in a row after which a part is disabled


class Failures:
    """Count what failed while measuring, part by part, and say each cause once.

    Args:
        strict: Let every failure out instead.
        told: What other callbacks of the same fit have said already.
        verbose: Whether to say what is only worth knowing.
    """

    def __init__(self, strict: bool, told: set[str] | None = None, verbose: bool = True) -> None:
        self.strict, self.verbose = strict, verbose
        self._in_a_row: Counter[str] = Counter()
        self._told: set[str] = set() if told is None else told
        self._without_number: dict[str, tuple[str, dict[str, None]]] = {}  # cause -> in words, tags
        self._explained: set[tuple[str, str]] = set()  # cause and tag

    def off(self, part: str) -> bool:
        """Return whether a part failed so often that it is left out from now on."""
        return self._in_a_row[part] >= PATIENCE

    def tell(self, message: str, topic: str | None = None) -> None:
        """Warn, but only once for each topic: the message itself, unless its details differ from time to time."""
        topic = message if topic is None else topic
        if topic not in self._told:
            self._told.add(topic)
            rank_zero_warning(f"lightning_cx: {message}")

    def say(self, message: str, topic: str) -> None:
        """Inform the user, once for each topic; nothing is wrong."""
        if self.verbose and topic not in self._told:
            self._told.add(topic)
            rank_zero_info(f"lightning_cx: {message}")

    def no_number(self, tags: Iterable[str], why: str) -> None:
        """Note why curves are nan, for `tell_reasons`."""
        cause = re.sub(r"\d+", "#", why)
        _, known = self._without_number.get(cause, ("", {}))
        fresh = {tag: None for tag in tags if (cause, tag) not in self._explained}
        if fresh:
            self._without_number[cause] = why, known | fresh

    def has_number(self, tags: Iterable[str]) -> None:
        """Forget why curves were nan that are not any more, where too little data was the cause, which counts it."""
        counted = [known for cause, (_, known) in self._without_number.items() if "#" in cause]
        for tag in tags if counted else ():
            for known in counted:
                known.pop(tag, None)

    def tell_reasons(self) -> None:
        """Say in one line why curves are nan, each cause once."""
        found = [(why, list(tags)) for why, tags in self._without_number.values() if tags]
        self._explained.update((cause, tag) for cause, (_, tags) in self._without_number.items() for tag in tags)
        self._without_number = {}
        if found:
            self.tell("; ".join(f"{', '.join(tags)}: nan, {why}" for why, tags in found))

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
            if isinstance(error, BatchSpecError):  # it will not fit the next batch either
                self._in_a_row[part] = PATIENCE
                self.tell(f"{part} is off: {error}", str(error))
                return
            self._in_a_row[part] += 1
            self.tell(
                f"{part} failed, training continues: {type(error).__name__}: {error}", part + type(error).__name__
            )
            if self.off(part):
                self.tell(f"{part} is disabled after {PATIENCE} failures in a row (strict=True raises instead)")
        else:
            if last:
                self._in_a_row[part] = 0
