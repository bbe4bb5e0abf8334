"""Read the curves of a run back from where a logger put them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

Curve: TypeAlias = tuple[Array, Array]
"""Step numbers, ascending, and the finite values there."""

EVENTS, TABLE = "events.out.tfevents.*", "metrics.csv"


def read_curves(logdir: Path | str) -> dict[str, Curve]:
    """Read all curves of one run, of TensorBoard's event files or of a `metrics.csv` as Lightning's CSVLogger writes.

    Args:
        logdir: Folder of the run; where it holds no log itself, the only folder below it that does.

    Returns:
        Steps and values by tag. Values and steps that are no finite numbers are left out; where a step was logged
        twice, as a resumed run does, the later value counts. Tags in both kinds of files come from the event files.

    Raises:
        ValueError: If there is no log, or more than one run.
        ImportError: If there are event files and tensorboard is not installed.
    """
    folder = folder_of(Path(logdir))
    curves = _of_table(folder / TABLE) if (folder / TABLE).exists() else {}
    return {**curves, **(_of_events(folder) if any(folder.glob(EVENTS)) else {})}


def folder_of(logdir: Path) -> Path:
    """The folder that holds the log of a run: this one, or the only one below it that does."""
    if not logdir.is_dir():
        raise ValueError(f"{logdir} is no folder: pass the log directory of a run, as trainer.logger.log_dir has it.")
    if any(logdir.glob(EVENTS)) or (logdir / TABLE).exists():
        return logdir
    found = {path.parent for pattern in (EVENTS, TABLE) for path in logdir.rglob(pattern)}
    if len(found) == 1:
        return found.pop()
    if not found:
        raise ValueError(f"{logdir} holds neither TensorBoard event files nor a {TABLE}: pass the folder of a run.")
    names = ", ".join(str(path) for path in sorted(found)[:4])
    raise ValueError(
        f"{logdir} holds {len(found)} runs ({names}{', ...' if len(found) > 4 else ''}): name one of them."
    )


def _of_events(folder: Path) -> dict[str, Curve]:
    try:  # only here: who logs to CSV files needs no TensorBoard
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError(f"{folder} holds TensorBoard event files: pip install tensorboard reads them.") from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0: all of them
    return _curves({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]})


def _of_table(path: Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet puts a mark before the first name
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            if step is None or not math.isfinite(step):
                continue
            for tag, text in row.items():
                value = _number(text)
                if tag not in ("step", "epoch") and value is not None:
                    points.setdefault(tag, []).append((int(step), value))
    return _curves(points)


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) and text else None
    except ValueError:  # a table may hold words
        return None


def _curves(points: Mapping[str, list[tuple[int, float]]]) -> dict[str, Curve]:
    curves = {}
    for tag, logged in points.items():
        last = {step: value for step, value in logged if math.isfinite(value)}
        steps = sorted(last)
        if steps:
            curves[tag] = (np.array(steps, dtype=np.float64), np.array([last[step] for step in steps]))
    return curves
