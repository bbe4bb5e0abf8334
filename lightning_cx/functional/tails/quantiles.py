"""The interval of a tail index: all indices under which the fitted one would not be unusual."""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("quantiles.csv")
"""Written by `make_quantiles.py`: 2.5% and 97.5% quantile of the fitted index for each true index and sample size."""

MANY = 16
"""Projections whose median the second half of the table is for."""


def interval(index: float, n: int, projections: int, correlation: float) -> tuple[float, float]:
    """Invert the table: the lowest and the highest true index under which `index` lies within 95% of all fits.

    The variance of a median over k projections whose squared correlations are c on average is that of one projection
    times ``s + (1 - s) (1 - (1 - c)(1 - 1 / k))``, where s comes from the scale that all projections share; the two
    halves of the table (one projection; 16 without correlation) leave no unknown in it.

    Args:
        index: Fitted index.
        n: Number of samples, at least 64. Beyond the table, scatter falls with the square root of n.
        projections: Number k of projections whose median the index is.
        correlation: Mean squared correlation c between two projections, 0 to 1; of no account for a single one.

    Returns:
        Lower and upper end, between 0 and 2. Below the lowest index of the table, .4, the lower end is 0.
    """
    apart = (1 - correlation) * (1 - 1 / projections)
    share = max(0.0, 1 - apart / (1 - 1 / MANY))  # how far the scatter is that of a single projection
    alphas, one, many = _table(n)
    lows, highs = [], []
    for alpha, (below, above), (below_many, above_many) in zip(alphas, one, many, strict=True):
        lows.append(alpha - math.sqrt(share * below**2 + (1 - share) * below_many**2))
        highs.append(min(2.0, alpha + math.sqrt(share * above**2 + (1 - share) * above_many**2)))
    low = _inverse(highs, alphas, index) if index >= highs[0] else 0.0
    return low, max(_inverse(lows, alphas, index), low)


def _inverse(values: list[float], alphas: list[float], target: float) -> float:
    """Where a rising, piecewise linear function first reaches a value; the last place if it never does."""
    rising = [max(values[: i + 1]) for i in range(len(values))]
    above = bisect_left(rising, target)
    if above == 0:
        return alphas[0]
    if above == len(rising):
        return alphas[-1]
    share = (target - rising[above - 1]) / (rising[above] - rising[above - 1])
    return alphas[above - 1] + share * (alphas[above] - alphas[above - 1])


@cache
def _table(n: int) -> tuple[list[float], list[tuple[float, float]], list[tuple[float, float]]]:
    """Indices, and for both kinds of samples how far the quantiles lie below and above them at this sample size."""
    by_kind, sizes = _read()
    place = min(max(math.log2(n / sizes[0]), 0.0), len(sizes) - 1.0)  # sizes double from one to the next
    below = min(int(place), len(sizes) - 2)
    share = place - below
    kinds = []
    for cells in by_kind.values():
        deviations = []
        for _, of_alpha in sorted(cells.items()):
            first, second = of_alpha[below], of_alpha[below + 1]
            scaled = [(1 - share) * a + share * b for a, b in zip(first, second, strict=True)]
            deviations.append((scaled[0] / math.sqrt(n), scaled[1] / math.sqrt(n)))
        kinds.append(deviations)
    alphas = sorted(next(iter(by_kind.values())))
    return alphas, kinds[0], kinds[1]


@cache
def _read() -> tuple[dict[int, dict[float, list[tuple[float, float]]]], list[int]]:
    """Deviations of the quantiles times sqrt(n), by kind and index, in the order of sizes; and the sizes."""
    cells: dict[int, dict[float, list[tuple[float, float]]]] = {1: {}, MANY: {}}
    sizes: list[int] = []
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            n, alpha = int(row["n"]), float(row["alpha"])
            deviation = (alpha - float(row["low"])) * math.sqrt(n), (float(row["high"]) - alpha) * math.sqrt(n)
            cells[int(row["projections"])].setdefault(alpha, []).append(deviation)
            if n not in sizes:
                sizes.append(n)
    return cells, sizes
