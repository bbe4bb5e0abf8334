"""The Markdown that comes out."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from _floor import Floor
from _measure import Outcome
from _peers import Contender
from _workloads import Workload

PACKAGES = ("lightning_cx", "torch", "opacus", "backpack-for-pytorch", "torchjd")
WRONG = 1e-2  # relative error above which the table says so: two orders above what float32 leaves on ResNet-18


@dataclass(frozen=True)
class Row:
    """All that was found for one workload."""

    workload: Workload
    plain_seconds: float
    floor: Floor
    outcomes: dict[str, Outcome]


def to_markdown(rows: Sequence[Row], contenders: Sequence[Contender], rounds: int, device: torch.device) -> str:
    parts = [
        "# What the Gram matrix of per-example gradients costs",
        describe(device),
        f"Time of a training step together with its Gram matrix (with squared norms where it says so), over a plain "
        f"forward and backward of the same batch: medians of the ratios of {rounds} interleaved rounds. The floor is "
        f"counted in flops (`benchmarks/_floor.py`). A star marks a single round, for what is slower than the "
        f"patience.",
        times(rows, contenders, rounds),
        "Peak memory above the plain step, in MiB, each in a fresh process (`+0` is less than half a MiB).",
        table(rows, contenders, lambda o: None if o.memory is None else f"{o.memory:+.0f}"),
        "Relative error of the Gram matrix (or norms) in float32 against the naive loop in float64.",
        table(rows, contenders, lambda o: None if o.error is None else f"{o.error:.0e}"),
        failures(rows, contenders),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(device: torch.device) -> str:
    """Machine, versions, date."""
    lines = [
        f"- Date: {date.today().isoformat()}",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}",
        f"- Versions: Python {platform.python_version()}, {', '.join(map(versioned, PACKAGES))}",
    ]
    if device.type == "cuda":
        lines.append(f"- Device: {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    return "\n".join(lines)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def times(rows: Sequence[Row], contenders: Sequence[Contender], rounds: int) -> str:
    """The main table; a floor stands before each kind of way."""
    ways = sorted(contenders, key=lambda c: c.norms)
    first = {kind: next((c.name for c in ways if c.norms is kind), None) for kind in (False, True)}
    head, lines = ["workload", "plain, ms"], []
    for way in ways:
        head += [*(["floor, norms" if way.norms else "floor, Gram"] if way.name in first.values() else []), way.title]
    for row in rows:
        cells = [row.workload.title, f"{row.plain_seconds * 1e3:.1f}"]
        for way in ways:
            if way.name in first.values():
                cells.append(f"{row.floor.ratio(way.norms):.2f}")
            cells.append(cell(row.outcomes[way.name], partial(ratio, rounds)))
        lines.append(cells)
    return layout(head, lines)


def ratio(rounds: int, outcome: Outcome) -> str | None:
    if outcome.ratio is None:
        return None
    is_wrong = outcome.error is not None and not outcome.error < WRONG
    return f"{outcome.ratio:.2f}" + "*" * (outcome.rounds < rounds) + " (wrong)" * is_wrong


def table(rows: Sequence[Row], contenders: Sequence[Contender], show: Callable[[Outcome], str | None]) -> str:
    lines = [[row.workload.title, *(cell(row.outcomes[way.name], show) for way in contenders)] for row in rows]
    return layout(["workload", *(way.title for way in contenders)], lines)


def cell(outcome: Outcome, show: Callable[[Outcome], str | None]) -> str:
    return "fails" if outcome.failure is not None else show(outcome) or "-"


def layout(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def failures(rows: Sequence[Row], contenders: Sequence[Contender]) -> str:
    found = [
        f"- {way.title}, {row.workload.title}: {row.outcomes[way.name].failure}"
        for way in contenders
        for row in rows
        if row.outcomes[way.name].failure is not None
    ]
    return "\n".join(["What fails, and what it says:", "", *found]) if found else ""
