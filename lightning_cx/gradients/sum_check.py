"""The check that costs nothing: what all examples want together must be the batch gradient, for every parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_cx.gradients.errors import UnsupportedGradientError
from lightning_cx.gradients.uses import working

# The batch gradient is summed in the training's precision and the Gram matrix in ours: they agree to rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.1}
# Gradients that cancel exactly, as those of a key's bias in attention, leave rounding of other layers' size.
ROUNDING = 64  # machine epsilons


@dataclass
class SumCheck:
    """Compares 1^T K 1 with |batch gradient|^2, parameter by parameter: both count every use of it.

    Attributes:
        sums: For each parameter, or for each few that were contracted together, the sums of the Gram matrix and of
            its diagonal.
        batch: For each parameter, the norm of its batch gradient.
    """

    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    batch: dict[str, Tensor] = field(default_factory=dict)

    def see_batch(self, name: str, gradient: Tensor) -> None:
        """Take the batch gradient of one parameter."""
        values = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
        self.batch[name] = torch.linalg.vector_norm(working(values))

    def coverage(
        self,
        dtypes: Iterable[torch.dtype],
        parameters: Mapping[str, Tensor],
        members: Mapping[str, tuple[str, ...]],
        nodes: Mapping[str, list[str]],
    ) -> float:
        """1^T K 1 / |batch gradient|^2 over all parameters that both sides have seen, nan for none or zero.

        Raises:
            UnsupportedGradientError: If the sides disagree on a parameter beyond what rounding explains.
        """
        used = set(dtypes)
        names = [name for name in self.sums if all(member in self.batch for member in members[name])]
        if used & {torch.float16, torch.bfloat16}:  # normalisation layers may add up their own gradients in 16 bits
            names = [name for name in names if not any("Norm" in node for node in nodes[name])]
        if not names:
            return float("nan")
        rows = [number for name in names for number in self.sums[name]]
        parts = [self.batch[member] for name in names for member in members[name]]
        numbers = torch.stack([number.to(rows[0]) for number in (*rows, *parts)]).tolist()  # one synchronisation
        squares = iter([norm**2 for norm in numbers[len(rows) :]])
        batches = [sum(next(squares) for _ in members[name]) for name in names]
        seen = list(zip(numbers[: len(rows) : 2], numbers[1 : len(rows) : 2], batches, strict=True))
        summed, size, batch = (sum(column) for column in zip(*seen, strict=True))
        tolerance = max(TOLERANCE.get(dtype, 0.2) for dtype in used)
        rounding = max(ROUNDING * torch.finfo(dtype).eps for dtype in used) ** 2
        for name, (of_rows, own_size, of_batch) in zip(names, seen, strict=True):
            # Examples that cancel leave a small sum of large terms, known no better than the terms are.
            if abs(of_rows - of_batch) > tolerance * (of_batch + own_size) + rounding * size:
                read = of_rows / of_batch if of_batch else float("inf")
                raise UnsupportedGradientError(
                    f"{name} has a use that the graph does not show: the sum check reads {read:.3g}, not 1",
                    "a hook on it may change its gradient"
                    if any(parameters[m]._backward_hooks for m in members[name])
                    else "",
                )
        return summed / batch if batch > 0 else float("nan")
