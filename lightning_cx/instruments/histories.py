"""Histories in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")


class Thinned(Generic[Entry]):
    """Keeps evenly spread entries of a history, the first among them, however many there are.

    Entries fall into cells of equal width, and the first entry of a cell stands for it. Once more than `limit` cells
    are filled, each two neighbours are merged.

    Args:
        limit: Number of entries that are kept at most.

    Example:
        >>> history = Thinned(4)
        >>> for number in range(10):
        ...     _ = history.add(number)
        >>> list(history), history.to_now()
        ([0, 4, 8], [0, 4, 8, 9])
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget all entries."""
        self._cells: dict[int, Entry] = {}
        self._width = 1
        self._first = self._count = 0
        self._left_out: list[Entry] = []

    def add(self, entry: Entry, at: int | None = None) -> bool:
        """Add an entry and return whether it is kept.

        Args:
            entry: The newest one.
            at: Where it lies, in ascending order, if entries at irregular places are to be evened out; None counts
                entries.
        """
        place = self._count if at is None else at
        self._count += 1
        if not self._cells:
            self._first = place
        cell = (place - self._first) // self._width
        kept = cell not in self._cells
        if kept:
            self._cells[cell] = entry
        while len(self._cells) > self.limit:
            self._width *= 2
            merged: dict[int, Entry] = {}
            for number, first in self._cells.items():
                merged.setdefault(number // 2, first)
            kept, self._cells = kept and merged.get(cell // 2) is entry, merged
            cell //= 2
        self._left_out = [] if kept else [entry]
        return kept

    def to_now(self) -> list[Entry]:
        """Return the entries that are kept and the newest one, which may not be among them."""
        return [*self, *self._left_out]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._cells.values())

    def __len__(self) -> int:
        return len(self._cells)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        grid = (self._width, self._first, self._count)
        return {"entries": self.to_now(), "cells": list(self._cells), "grid": grid}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        count = len(state["cells"])
        self._cells = dict(zip(state["cells"], state["entries"][:count], strict=True))
        self._left_out = list(state["entries"][count:])
        self._width, self._first, self._count = state["grid"]
