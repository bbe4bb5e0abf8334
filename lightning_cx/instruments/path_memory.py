"""A path in bounded memory: always the same number of points, evenly spread over all steps so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POINTS = 64
"""Points that a path is read from: a tree of them takes 2 ms. Lengths are comparable at one number of points only."""


class PathMemory:
    """Keeps sketches of 64 to 127 steps, about equally far apart, however long the run.

    Steps fall into cells of equal width, and the first sample of a cell stands for it. At 128 cells neighbours are
    merged. Samples that come at irregular steps are evened out so, where there are enough of them.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the path."""
        self._cells: dict[int, tuple[int, Tensor]] = {}
        self._width = 1

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def start(self) -> tuple[int, Tensor] | None:
        """Step and sketch of the first point."""
        return next(iter(self._cells.values()), None)

    def add(self, step: int, sketch: Tensor) -> bool:
        """Take in a point and say whether it is kept."""
        first = step if self.start is None else self.start[0]
        cell = (step - first) // self._width
        if cell in self._cells:
            return False
        self._cells[cell] = (step, sketch)
        while len(self._cells) >= 2 * POINTS:
            self._width *= 2
            merged: dict[int, tuple[int, Tensor]] = {}
            for of_cell in self._cells.values():
                merged.setdefault((of_cell[0] - first) // self._width, of_cell)
            self._cells = merged
        return any(kept == step for kept, _ in self._cells.values())

    def points(self) -> tuple[Tensor, Tensor]:
        """Steps [64] and sketches [64, k], the first and the last among them; fewer where the path is shorter."""
        kept = list(self._cells.values())
        chosen = torch.linspace(0, len(kept) - 1, min(POINTS, len(kept)), dtype=torch.float64).round().long().tolist()
        return torch.tensor([kept[i][0] for i in chosen]), torch.stack([kept[i][1] for i in chosen])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"cells": dict(self._cells), "width": self._width}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._cells, self._width = dict(state["cells"]), state["width"]
