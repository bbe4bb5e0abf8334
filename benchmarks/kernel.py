"""The numbers of docs/kernel.md that are not of its example: planted decays, coverage of shares, chance, and CPU time.

python benchmarks/kernel.py        # half a minute on one core
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lightning_cx.functional import (
    block_shares,
    chance_alignment,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
)


def planted_decays(draws: int = 12) -> None:
    """Gaussian features of variance k^-beta."""
    for beta in (1.2, 1.5, 2.0):
        found = []
        for seed in range(1000, 1000 + draws):
            features = np.random.default_rng(seed).standard_normal((512, 4096)) * np.arange(1, 4097) ** (-beta / 2)
            decay = eigenvalue_decay(torch.from_numpy(features @ features.T))
            found.append((float(decay.exponent), float(decay.spread)))
        exponents, spreads = np.array(found).T
        print(
            f"decay {beta}: {exponents.mean():.2f}, from {exponents.min():.2f} to {exponents.max():.2f}, sd "
            f"{exponents.std():.3f}, claimed {spreads.mean():.3f}"
        )


def coverage_of_shares(draws: int = 400) -> None:
    """Three blocks that give 60, 40 and 0% of the descent."""
    for n in (32, 64):
        draw, truth = np.random.default_rng(n), torch.tensor([0.6, 0.4, 0.0]).double()
        covered, taken = torch.zeros(3), torch.zeros(3)
        for _ in range(draws):
            rows = [torch.from_numpy(draw.standard_normal((n, d)) + mean) for d, mean in ((5, 0.9), (30, 0.3), (60, 0))]
            found = block_shares({str(i): own @ own.T for i, own in enumerate(rows)})
            covered += (found.low <= truth) & (truth <= found.high)
            taken += found.low > 0
        covers, takes = (" ".join(f"{float(x) / draws:.1%}" for x in counts) for counts in (covered, taken))
        print(f"shares, {n} examples: intervals hold the truth {covers}; surely above 0: {takes}")


def random_pairings(draws: int = 2000) -> None:
    """The chance line, against targets paired at random."""
    draw = np.random.default_rng(0)
    for n, outputs, classes in ((40, 1, False), (64, 10, True), (30, 3, False), (100, 2, True)):
        features = draw.standard_normal((n, 30)) * np.arange(1, 31) ** -0.7
        gram = features @ features.T + 0.3
        y = np.eye(outputs)[draw.integers(0, outputs, n)] if classes else draw.standard_normal((n, outputs))
        paired = np.array([float(kernel_target_alignment(gram, y[draw.permutation(n)])) for _ in range(draws)])
        chance = chance_alignment(gram, y)
        beyond = np.mean(paired > float(chance.high))
        print(f"{chance}; pairings {paired.mean():.3f} +- {paired.std():.3f}, {beyond:.1%} beyond the chance line")


def cpu_time() -> None:
    """Of one reading, without the tap."""
    for n in (64, 128, 256, 512):
        features = torch.randn(n, 2 * n, dtype=torch.float64) * torch.arange(1, 2 * n + 1) ** -0.5
        gram, y = features @ features.T, torch.randn(n, 10, dtype=torch.float64)
        reads = (eigenvalue_decay, kernel_dimension)
        fits = (kernel_target_alignment, chance_alignment, cumulative_power)
        whole = sum(_milliseconds(partial(read, gram)) for read in reads)
        whole += sum(_milliseconds(partial(fit, gram, y)) for fit in fits)
        shares = _milliseconds(partial(block_shares, {str(i): gram for i in range(12)}))
        print(f"CPU time, {n} examples: {whole:.0f} ms, shares of 12 blocks {shares:.0f} ms")


def _milliseconds(work: Callable[[], object], repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


if __name__ == "__main__":
    planted_decays()
    coverage_of_shares()
    random_pairings()
    cpu_time()
