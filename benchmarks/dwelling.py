"""The numbers of docs/dwelling.md: passages found between two wells, and escapes where there is nothing to leave.

python benchmarks/dwelling.py            # some three minutes on one core
python benchmarks/dwelling.py --seed 7   # other draws
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_cx.functional import dwell

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "functional"))
from _wells import Array, double_well, kramers, matched, passages, relaxing, walks

CHAINS = 12
TIMES = 20  # of the mean time between escapes


def wells(seed: int) -> None:
    """Chains of 20 mean times each, seen once in a unit of time; the width of blocks is left to `dwell`."""
    print("| temperature | mean time, Kramers | mean time, found | passages | found | made up |")
    print("|---|---|---|---|---|---|")
    for eps in (0.05, 0.06, 0.08):
        time = round(TIMES * kramers(eps))
        hits = made_up = count = 0
        for x in double_well(eps, CHAINS, time, seed).T:
            true = passages(x)
            found, others = matched(dwell(x), true)
            hits, made_up, count = hits + sum(found), made_up + others, count + len(true)
        mean = CHAINS * time / (hits + made_up)
        print(f"| {eps} | {kramers(eps):.0f} | {mean:.0f} | {count} | {hits / count:.1%} | {made_up} |", flush=True)


def controls(length: int, count: int, seed: int) -> Iterator[tuple[str, Array]]:
    steps = np.arange(length)[:, None] / length
    for time in (0.2, 5.0, 20.0, 100.0):
        yield f"noise around one minimum that forgets in {time:g}", relaxing(length, time, count, seed)
    yield (
        "noise, and slow noise of half its size",
        relaxing(length, 0.2, count, seed) + relaxing(length, length / 8, count, seed + 1) / 2,
    )
    yield "random walk", walks(length, 1, count, seed)
    yield "random walk under noise", walks(length, 1, count, seed) + 10 * relaxing(length, 0.2, count, seed + 1)
    yield "drift under noise", 20 * steps + relaxing(length, 0.5, count, seed)
    yield "slow drift under noise", 2 * steps + relaxing(length, 0.5, count, seed)
    yield "fall to a minimum", 30 * np.exp(-10 * steps) + relaxing(length, 0.5, count, seed)
    yield "noise that shrinks a hundredfold", 10 ** (-2 * steps) * relaxing(length, 5.0, count, seed)
    step_sizes = np.repeat([1, 0.1, 0.01, 1], length // 4)[:, None]
    yield "noise that shrinks in steps and comes back", step_sizes * relaxing(length, 2.0, count, seed)
    if length <= 2048:
        few, spread = count // 4, np.geomspace(0.2, 300, 64)
        yield "64 directions, fast and slow", relaxing(length, spread, few, seed, directions=64)
        yield "64 directions, random walk", walks(length, 64, few, seed)


def nothing_to_leave(seed: int) -> None:
    print("\n| control | steps | paths | with an escape | with a dwell |\n|---|---|---|---|---|")
    for length, count in ((512, 120), (2048, 60), (8192, 20)):
        for name, paths in controls(length, count, seed):
            reports = [dwell(path) for path in paths]
            escaped, dwelt = sum(r.escapes > 0 for r in reports), sum(bool(r.episodes) for r in reports)
            print(f"| {name} | {length} | {len(paths)} | {escaped} | {dwelt} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args().seed
    wells(chosen)
    nothing_to_leave(chosen)
