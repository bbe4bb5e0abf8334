"""A short linear image of all parameters: where training stands, in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_cx.gradients.directions import Directions

DIRECTIONS = 64
"""A norm read off so many is right within 9% where a change is spread over many weights, within 28% where it is of rank
one in a single matrix (measured over 200 draws); the factor stays the same while the kind of change does. Gradients
that are projected on as many, with the same seed, meet the sketch."""


class ParameterSketch:
    """Inner products of all trainable parameters with fixed random directions: distances survive, memory does not grow.

    For parameters theta the sketch s has ``E |s|^2 = k |theta|^2``, and so have differences: how far two points of the
    trajectory lie apart can be read off their sketches. Large matrices are projected as ``left^T theta right`` with 16
    columns each, so a sketch costs 16 multiplications per parameter, in float64: what one step changes is small.

    Args:
        count: Number of directions k.
        seed: Seed of the directions; they depend on names and shapes besides.

    Raises:
        ValueError: If `count` is not positive.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> sketch = ParameterSketch(count=8)
        >>> before = sketch(net.named_parameters())
        >>> with torch.no_grad():
        ...     _ = net.weight.mul_(2.0)
        >>> change = sketch(net.named_parameters()) - before
        >>> change.shape, bool(change.abs().sum() > 0)
        (torch.Size([8]), True)
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"a sketch takes at least one direction, got count={count}.")
        self.count = count
        self.seed = seed
        self._directions: dict[tuple[str, torch.Size, torch.device], Directions] = {}

    @torch.no_grad()
    def __call__(self, named_parameters: Iterable[tuple[str, Tensor]]) -> Tensor:
        """Sketch the parameters as they are; nothing of them is changed.

        Args:
            named_parameters: Pairs as `module.named_parameters()` gives them; frozen and empty ones are skipped.

        Returns:
            ``[count]`` float64 on the device of the first parameter.

        Raises:
            ValueError: If there is no trainable parameter.
        """
        total: Tensor | None = None
        for name, parameter in named_parameters:
            if parameter.requires_grad and parameter.numel():
                values = parameter.detach().double()
                part = self._of(name, values).of_rows(values[None])[0]
                total = part if total is None else total + part.to(total.device)
        if total is None:
            raise ValueError("there is no trainable parameter to sketch.")
        return total

    def _of(self, name: str, values: Tensor) -> Directions:
        """Directions are kept: to draw them takes longer than to use them."""
        key = (name, values.shape, values.device)
        if key not in self._directions:
            self._directions[key] = Directions.draw(name, tuple(values.shape), self.count, self.seed, values)
        return self._directions[key]
