"""Draws of known laws, and the slow, plain versions of the estimators of a tail."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from lightning_cx.functional.tails.stable import elliptical_stable


def draw(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def stable(alpha: float, n: int, seed: int) -> Tensor:
    """Symmetric stable numbers by numpy, whose stream is the same in all versions of torch."""
    rng = np.random.default_rng(seed)
    angle, wait = rng.uniform(-math.pi / 2, math.pi / 2, n), rng.exponential(size=n)
    bent = (np.cos((1 - alpha) * angle) / wait) ** ((1 - alpha) / alpha)
    return torch.from_numpy(np.sin(alpha * angle) / np.cos(angle) ** (1 / alpha) * bent)


def anisotropic_stable(alpha: float, n: int, d: int, seed: int) -> Tensor:
    generator = draw(seed)
    scales = torch.randn(d, generator=generator, dtype=torch.float64).exp()
    return elliptical_stable(alpha, n, d, generator) * scales


def heteroscedastic(n: int, d: int, seed: int, log_sd: float = 1.5) -> Tensor:
    """Normal noise whose coordinates differ in scale."""
    generator = draw(seed)
    scales = (log_sd * torch.randn(d, generator=generator, dtype=torch.float64)).exp()
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales


def scale_mixture(n: int, seed: int, d: int | None = None, ratio: float = 10.0) -> Tensor:
    """Nine in ten normal with one scale, the tenth with another."""
    generator = draw(seed)
    wide = torch.rand(n, generator=generator) < 0.1
    scale = torch.where(wide, ratio, 1.0).double()
    if d is None:
        return scale * torch.randn(n, generator=generator, dtype=torch.float64)
    return scale[:, None] * torch.randn(n, d, generator=generator, dtype=torch.float64)


def pareto(alpha: float, n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=draw(seed), dtype=torch.float64) ** (-1 / alpha)


def student(df: float, n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(df, n))


def naive_alpha(samples: Tensor) -> float:
    """The regression of THEORY section 6, term by term, in numpy."""
    x = samples.double().numpy()
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    z = (x - middle) / ((high - low) / 2)
    n, log_t, height = len(z), [], []
    for t in np.linspace(0.1, 1, 10):
        modulus = abs(np.mean(np.exp(1j * t * z))) ** 2
        log_t.append(math.log(t))
        height.append(math.log(-math.log((n * modulus - 1) / (n - 1))))
    return min(2.0, float(np.polyfit(log_t, height, 1)[0]))


def naive_hill(samples: Tensor, k: int) -> float:
    ordered = sorted((abs(float(x)) for x in samples), reverse=True)
    return k / sum(math.log(ordered[i] / ordered[k]) for i in range(k))


def naive_xi(samples: Tensor, k: int) -> float:
    ordered = sorted((abs(float(x)) for x in samples), reverse=True)
    excess = [math.log(ordered[i] / ordered[k]) for i in range(k)]
    first, second = sum(excess) / k, sum(e * e for e in excess) / k
    return first + 1 - 0.5 / (1 - first * first / second)
