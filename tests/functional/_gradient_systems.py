"""Gradients with a planted relation between strength and complexity, and networks in which it is found or fails."""

import math

import torch
from torch import Tensor, nn

from lightning_cx.functional import Basis
from lightning_cx.gradients import per_example_gram

N, P = 128, 2000
RANKS = 1.0 + torch.arange(N, dtype=torch.float64)

SIZES = {
    "decaying as 1/k": 1 / RANKS,
    "decaying as 1/sqrt(k)": RANKS**-0.5,
    "flat": torch.ones(N, dtype=torch.float64),
    "growing as 1/k": 1 / RANKS.flip(0),
    "growing as 1/sqrt(k)": RANKS.flip(0) ** -0.5,
}


def gaussian_gradients(basis: Basis, sizes: Tensor, seed: int, rotate: bool = False, width: int = P) -> Tensor:
    """Gradients whose part along column k has the given size; rotated, the sizes no longer belong to columns."""
    generator = torch.Generator().manual_seed(seed)
    n = len(sizes)
    coefficients = sizes[:, None] * torch.randn(n, width, dtype=torch.float64, generator=generator)
    if rotate:
        rotation, upper = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
        coefficients = (rotation * upper.diagonal().sign()) @ coefficients  # Haar: the signs of QR are no accident
    return basis.vectors @ coefficients


def disjoint_gradients(basis: Basis, sizes: Tensor) -> Tensor:
    """Each column of the basis belongs to one parameter alone: nothing can interfere."""
    return basis.vectors * sizes


def gram_at_initialisation(points: Tensor, seed: int, width: int = 1024, fourier_scale: float | None = None) -> Tensor:
    """Gram matrix of the output's gradients of a ReLU network, on random Fourier features where a scale is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = points[:, None]
        if fourier_scale is not None:
            phases = 2 * math.pi * inputs * (fourier_scale * torch.randn(1, 256, dtype=torch.float64))
            inputs = torch.cat([phases.cos(), phases.sin()], 1)
        net = nn.Sequential(nn.Linear(inputs.shape[1], width), nn.ReLU(), nn.Linear(width, 1)).double()
    return per_example_gram(net, net(inputs)[:, 0])
