"""The door through which arrays and lists come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """Take tensors as they are, numpy arrays with their dtype, and lists of numbers in float64.

    Example:
        >>> as_tensor([0.1, 0.2]).dtype
        torch.float64
    """
    if isinstance(values, Tensor):
        return values
    if hasattr(values, "__array__"):
        return torch.as_tensor(np.asarray(values, order="C"))  # torch knows no negative strides
    return torch.as_tensor(values, dtype=torch.float64)
