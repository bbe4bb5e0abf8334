"""Per-example gradients in a few thousand numbers, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import Tensor

WIDTH = 1024
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
        self._maps: dict[str, tuple[Tensor, Tensor]] = {}

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
                columns, signs = self._map(name, values.device)
                flat = values.reshape(n, -1).to(dtype) * signs.to(dtype)
                parts.append(flat.new_zeros(n, count).index_add_(1, columns, flat).cpu())
        return torch.cat(parts, 1)

    def spread(self, values: Mapping[str, float]) -> Tensor:
        """Repeat one number a parameter over its columns, ``[columns]`` float64; missing ones are 0."""
        numbers = torch.tensor([values.get(name, 0.0) for name in self._counts], dtype=torch.float64)
        return numbers.repeat_interleave(torch.tensor(list(self._counts.values())))

    def _map(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Column and sign of each entry; columns are filled evenly."""
        key = f"{name} {device}"
        if key not in self._maps:
            draw = torch.Generator().manual_seed(crc32(f"{name} of a gradient sketch".encode()))
            size, count = self._sizes[name], self._counts[name]
            rounds = [torch.randperm(count, generator=draw) for _ in range(-(-size // count))]
            signs = torch.randint(0, 2, (size,), generator=draw, dtype=torch.int8) * 2 - 1
            self._maps[key] = torch.cat(rounds)[:size].to(device), signs.to(device)
        return self._maps[key]


def _fair_share(sizes: list[int], width: int) -> int:
    """The most columns that one parameter may take so that all fit into so many."""
    low, high = 1, max(sizes, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= width else (low, middle - 1)
    return low
