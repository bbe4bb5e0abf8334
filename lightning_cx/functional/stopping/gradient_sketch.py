"""Per-example gradients in a few thousand numbers, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import Tensor

WIDTH = 2048
"""Numbers in a sketch of a gradient: with 512, 1024 and 2048 the leave-one-out loss of a run with 40% wrong labels was
1.02, 1.12 and 1.2 where whole gradients give 1.33 late in training (THEORY section 10)."""


class GradientSketch:
    """Sketches gradients so that their inner products survive: signed sums of entries (count sketch).

    Each parameter has columns of its own, so that whatever scales a parameter can be applied to the sketch. Parameters
    with few entries are kept whole.

    Args:
        sizes: Number of entries of each parameter, by name.
        width: Number of columns, at least one a parameter.

    Attributes:
        columns: Number of columns of the sketch.

    Raises:
        ValueError: If there are fewer columns than parameters.

    Example:
        >>> sketch = GradientSketch({"weight": 6, "bias": 2}, width=100)
        >>> whole = sketch({"weight": torch.ones(5, 3, 2), "bias": torch.zeros(5, 2)})
        >>> whole.shape, (whole @ whole.T)[0, 1]
        (torch.Size([5, 8]), tensor(6.))
        >>> sketch.spread({"weight": 1.0, "bias": 0.0}).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, sizes: Mapping[str, int], width: int = WIDTH) -> None:
        if width < len(sizes):
            raise ValueError(f"a sketch of {len(sizes)} parameters needs as many columns, got width={width}.")
        self._sizes = dict(sizes)
        self._most = _fair_share(list(sizes.values()), width)
        self._counts = {name: min(size, self._most) for name, size in sizes.items()}
        self.columns = sum(self._counts.values())
        self._signs: dict[str, Tensor] = {}

    def __call__(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Sketch gradients ``[n, *shape]`` of each parameter, by name; missing ones are zero.

        Returns:
            ``[n, columns]`` float32 (float64 of float64) on the host.
        """
        parts = []
        n = next((len(values) for values in rows.values()), 0)
        dtype = torch.float64 if any(v.dtype == torch.float64 for v in rows.values()) else torch.float32
        for name, count in self._counts.items():
            values = rows.get(name)
            if values is None:
                parts.append(torch.zeros(n, count, dtype=dtype))
            elif count == self._sizes[name]:
                parts.append(values.reshape(n, -1).to("cpu", dtype))
            else:
                signs = self._signs_of(name, values.device, dtype)
                flat = values.reshape(n, -1).to(dtype) * signs
                # Entry j goes to column j modulo their number: adding up rows is many times as fast as scattering.
                whole = len(signs) // count * count
                columns = flat[:, :whole].view(n, -1, count).sum(1)
                columns[:, : len(signs) - whole] += flat[:, whole:]
                parts.append(columns.cpu())
        return torch.cat(parts, 1)

    def spread(self, values: Mapping[str, float]) -> Tensor:
        """Repeat one number a parameter over its columns, ``[columns]`` float64; missing ones are 0."""
        numbers = torch.tensor([values.get(name, 0.0) for name in self._counts], dtype=torch.float64)
        return numbers.repeat_interleave(torch.tensor(list(self._counts.values())))

    def _signs_of(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Signs of the entries of one parameter, [entries]."""
        key = f"{name} {device} {dtype}"
        if key not in self._signs:
            draw = torch.Generator().manual_seed(crc32(f"{name} of a gradient sketch".encode()))
            signs = torch.randint(0, 2, (self._sizes[name],), generator=draw) * 2 - 1
            self._signs[key] = signs.to(device, dtype)
        return self._signs[key]


def _fair_share(sizes: list[int], width: int) -> int:
    """The most columns that one parameter may take so that all fit into so many."""
    low, high = 1, max(sizes, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= width else (low, middle - 1)
    return low
