"""Paths whose dwells are known: particles in a double well, and the controls in which there is nothing to leave."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_cx.functional.trajectories import DwellReport

Array = NDArray[np.float64]
BARRIER = 0.25  # of V = (x^2 - 1)^2 / 4, between its minima at -1 and 1


def kramers(eps: float) -> float:
    """Mean time from one minimum to the other: ``2 pi / sqrt(V''(1) |V''(0)|) exp(barrier / eps)``."""
    return 2 * math.pi / math.sqrt(2) * math.exp(BARRIER / eps)


def double_well(eps: float, chains: int, time: int, seed: int, dt: float = 0.02) -> Array:
    """``dx = -V'(x) dt + sqrt(2 eps) dW`` from -1, seen once in a unit of time: [time, chains]."""
    draw = np.random.default_rng(seed)
    x, size = np.full(chains, -1.0), math.sqrt(2 * eps * dt)
    seen = np.empty((time, chains))
    for row in seen:
        for noise in draw.standard_normal((round(1 / dt), chains)):
            x += (x - x**3) * dt + size * noise
        row[:] = x
    return seen


def passages(x: Array, bottom: float = 0.8) -> list[tuple[int, int]]:
    """Times at which a particle was last in one well and first in the other."""
    side = np.where(x > bottom, 1, np.where(x < -bottom, -1, 0))
    known = np.flatnonzero(side)
    changes = np.flatnonzero(np.diff(side[known]))
    return list(zip(known[changes].tolist(), known[changes + 1].tolist(), strict=True))


def matched(report: DwellReport, true: list[tuple[int, int]]) -> tuple[list[bool], int]:
    """Which passages an escape of its own shows, within three blocks; and how many escapes are none."""
    left = [(here.end, there.start) for here, there in pairwise(report.episodes) if here.escaped]
    near, found = 3 * report.width, []
    for gone, arrived in true:
        hit = next((e for e in left if e[0] - near <= arrived and e[1] + near >= gone), None)
        found.append(hit is not None)
        if hit is not None:
            left.remove(hit)
    return found, len(left)


def walks(length: int, directions: int, count: int, seed: int) -> Array:
    """Random walks, averaged over four steps each: [count, length, directions]."""
    steps = np.random.default_rng(seed).standard_normal((count, 4 * length, directions))
    return steps.cumsum(1).reshape(count, length, 4, directions).mean(2)


def relaxing(length: int, times: Array | float, count: int, seed: int, directions: int = 1) -> Array:
    """Ornstein-Uhlenbeck paths with these relaxation times and variance 1: [count, length, directions]."""
    draw = np.random.default_rng(seed)
    keep = np.exp(-1 / np.broadcast_to(times, directions) / 4)
    x = draw.standard_normal((count, directions))
    seen = np.zeros((length, count, directions))
    for row in seen:
        for _ in range(4):
            x = keep * x + np.sqrt(1 - keep**2) * draw.standard_normal(x.shape)
            row += x / 4
    return seen.transpose(1, 0, 2)


def stable_noise(alpha: float, draw: np.random.Generator, count: int) -> Array:
    """Symmetric alpha-stable numbers with characteristic function ``exp(-|t|^alpha)`` (Chambers, Mallows & Stuck)."""
    angle = draw.uniform(-math.pi / 2, math.pi / 2, count)
    wait = draw.exponential(size=count)
    bent = (np.cos((1 - alpha) * angle) / wait) ** ((1 - alpha) / alpha)
    return np.sin(alpha * angle) / np.cos(angle) ** (1 / alpha) * bent


def stable_double_well(alpha: float, eps: float, chains: int, time: int, seed: int, dt: float = 0.05) -> Array:
    """``dx = -V'(x) dt + eps dL`` from -1 with alpha-stable L, held within [-2, 2]: [time, chains]."""
    draw = np.random.default_rng(seed)
    x, size = np.full(chains, -1.0), eps * dt ** (1 / alpha)
    seen = np.empty((time, chains))
    for row in seen:
        for _ in range(round(1 / dt)):
            x = np.clip(x + (x - x**3) * dt + size * stable_noise(alpha, draw, chains), -2, 2)
        row[:] = x
    return seen
