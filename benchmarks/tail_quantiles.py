"""Simulate how the tail index of `alpha_ecf` scatters under stable laws, and write the table that it reads.

``python benchmarks/tail_quantiles.py`` takes about half an hour on one core. Each cell has a seed of its own, so that
`tests/functional/test_tail_quantiles.py` can draw single cells again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from zlib import crc32

import torch
from torch import Generator, Tensor

from lightning_cx.functional.tails.ecf import PROJECTIONS, TABLE, indices
from lightning_cx.functional.tails.stable import elliptical_stable, symmetric_stable

HEADER = ("projections", "alpha", "n", "low", "high")

ALPHAS = (*(round(0.1 * tenths, 3) for tenths in range(4, 19)), 1.85, 1.9, 1.95, 1.975, 2.0)
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SAMPLES = {1: 10_000, PROJECTIONS: 4_000}
"""Fits per cell, of scalars and of the median over 16 projections of a vector with very many equal directions. Its
quantiles are then known to 3% and 4% of a standard deviation."""

LEVELS = (0.025, 0.975)
_NUMBERS = 1 << 20  # drawn at once


def simulated_indices(projections: int, alpha: float, n: int, count: int, generator: Generator) -> Tensor:
    """Fit the index of `count` samples of size n of a stable law, or the median over several projections."""
    fits = []
    step = max(1, _NUMBERS // (n * projections))
    for start in range(0, count, step):
        some = min(step, count - start)
        if projections == 1:
            fits.append(indices(symmetric_stable(alpha, (some, n), generator)))
        else:
            drawn = elliptical_stable(alpha, some * n, projections, generator).view(some, n, projections)
            fits.append(indices(drawn.transpose(1, 2)).quantile(0.5, dim=-1))
    return torch.cat(fits)


def cell(projections: int, alpha: float, n: int) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantile of the fitted index in one cell of the table."""
    generator = Generator().manual_seed(crc32(f"{projections} {alpha} {n}".encode()))
    fits = simulated_indices(projections, alpha, n, SAMPLES[projections], generator)
    low, high = torch.quantile(fits, fits.new_tensor(LEVELS)).tolist()
    return low, high


def rows() -> Iterator[tuple[int, float, int, str, str]]:
    """Yield all rows of the table."""
    for projections in SAMPLES:
        for alpha in ALPHAS:
            for n in SIZES:
                low, high = cell(projections, alpha, n)
                yield projections, alpha, n, f"{low:.4f}", f"{high:.4f}"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for row in rows():
            writer.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
