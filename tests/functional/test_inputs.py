"""Arrays and lists are as welcome as tensors, and mean the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cx import functional as cx

GRAM = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 1.0]], dtype=torch.float64)
POINTS = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
CALLS: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "median_index": (cx.median_index, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)),
    "median_complexity": (lambda e: cx.median_complexity(e, [0, 1, 4, 9]), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()),
    "energy_spectrum": (lambda v: cx.energy_spectrum(cx.cosine_basis(16), v), torch.cos(6 * POINTS)),
    "cosine_basis": (lambda x: cx.cosine_basis(x).vectors, POINTS),
    "laplacian_basis": (lambda x: cx.laplacian_basis(x, 3).complexity, POINTS[:, None] ** 2),
    "kernel_basis": (lambda k: cx.kernel_basis(k).vectors.abs(), GRAM),
    "noise_scale": (lambda k: cx.noise_scale(k).value, GRAM),
    "participation_ratio": (cx.participation_ratio, torch.tensor([3.0, 1.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_arrays_give_what_tensors_give(name: str) -> None:
    call, values = CALLS[name]
    truth = call(values)
    torch.testing.assert_close(call(values.tolist()), truth, rtol=0, atol=0)
    torch.testing.assert_close(call(values.numpy()), truth, rtol=0, atol=0)
    torch.testing.assert_close(call(np.asarray(values, dtype=np.float32)), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [16, 101, 250])
def test_a_regular_grid_made_in_single_precision_gives_the_cosine_basis_exactly(n: int) -> None:
    rounded = ((torch.arange(n) + 0.5) / n).double()
    basis = cx.cosine_basis(rounded)
    torch.testing.assert_close(basis.vectors, cx.cosine_basis(n).vectors)
    wave = torch.cos(2 * torch.pi * 3 * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert cx.median_complexity(cx.energy_spectrum(basis, wave), basis.complexity).item() == pytest.approx(3, abs=1e-9)
