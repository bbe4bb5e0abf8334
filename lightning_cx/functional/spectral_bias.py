"""Does a network learn the simple part of its target first?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cx.functional.spectrum import low_weights


def spectral_bias_index(initial: Tensor, current: Tensor) -> Tensor:
    """Say whether what was learned so far was the simple part: 1 all of it, 0 no preference, -1 the complex part.

    With w the low weights of the initial residual (so that both sides start with half of its energy),
    ``rho_L = w.e / w.e0`` and ``rho_H = (1 - w).e / (1 - w).e0`` are the shares that remain, and
    ``SBI = (rho_H - rho_L) / (rho_H + rho_L)``. Read it when half of the energy is gone (`energies_at_half`): at the
    very start it is noise, and in the end both sides may be gone.

    Args:
        initial: ``[L]`` energies of the initial residual, in order of complexity, without the constant.
        current: ``[L]`` energies now.

    Returns:
        ``[]`` float64 in ``[-1, 1]``; nan where the initial or the current energy is zero or not finite.

    Raises:
        ValueError: If the shapes differ.

    References:
        THEORY section 4. Under exact linear dynamics with rates a (low) and b (high): ``tanh((a - b) t)``.

    Example:
        >>> import torch
        >>> spectral_bias_index(torch.tensor([1.0, 1.0]), torch.tensor([0.25, 0.75]))
        tensor(0.5000, dtype=torch.float64)
    """
    if initial.shape != current.shape:
        raise ValueError(f"energies of different length: {list(initial.shape)} and {list(current.shape)}.")
    initial, current = initial.double(), current.double()
    weights = low_weights(initial)
    low = (weights * current).sum() / (weights * initial).sum()
    high = ((1 - weights) * current).sum() / ((1 - weights) * initial).sum()
    index = (high - low) / (high + low)
    return torch.where(index.isfinite(), index, torch.full_like(index, torch.nan))


def energies_at_half(initial: Tensor, before: Tensor, after: Tensor) -> Tensor | None:
    """Find the energies at the moment when half of the initial energy was gone, between two readings.

    Energies decay exponentially in the linear regime, so the interpolation is linear in their logarithms.

    Args:
        initial: ``[L]`` energies of the initial residual.
        before: ``[L]`` energies at the reading before.
        after: ``[L]`` energies at this reading.

    Returns:
        ``[L]`` float64, or None if the sum does not cross half of the initial one between the two.

    Example:
        >>> import torch
        >>> one = torch.ones(2)
        >>> energies_at_half(one, one, one / 4)
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> energies_at_half(one, one, one * 0.9) is None
        True
    """
    initial, before, after = initial.double(), before.double(), after.double()
    half = initial.sum() / 2
    if not (before.sum() > half >= after.sum()):
        return None
    tiny = torch.finfo(torch.float64).tiny
    log_before, log_after = before.clamp_min(tiny).log(), after.clamp_min(tiny).log()
    near, far = 0.0, 1.0
    for _ in range(60):  # bisection: the sum falls from above to below the half
        middle = (near + far) / 2
        if torch.lerp(log_before, log_after, middle).exp().sum() > half:
            near = middle
        else:
            far = middle
    return torch.lerp(log_before, log_after, far).exp()
