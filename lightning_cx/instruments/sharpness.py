"""The largest curvature of the loss on the probe, by itself and as the optimizer feels it, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_cx.functional import curvature, largest_eigenvalue, step_size
from lightning_cx.probe import ProbePasses

PARTS = 8
"""Stretches of the probe whose curvatures along the leading direction are compared: 7 degrees of freedom for the price
of 3.5 products."""

NOISE = 0.1
"""Length of the random part of a start at the last leading direction, see `functional.lanczos.MIN_PRODUCTS`."""

Interval: TypeAlias = tuple[float, float, float]  # value, lower and upper end
UNKNOWN: Interval = (math.nan, math.nan, math.nan)


class Sharpness:
    """Finds lambda_max of the Hessian, and of the Hessian between the square roots of an optimizer's gains.

    It remembers both leading directions, one vector of the size of the parameters each, and goes on from there: they
    turn slowly. An interval reaches down by what examples differ, and up by that and what Lanczos may still miss.

    Args:
        iterations: Products at most for each.
        seed: Of the first direction.
    """

    def __init__(self, iterations: int, seed: int) -> None:
        self.iterations, self.seed = iterations, seed
        self._directions: dict[str, Tensor] = {}

    def __call__(
        self, view: ProbePasses, examples: int, gains: step_size.StepGains | None
    ) -> tuple[Interval, Interval]:
        """Sharpness and ratio to the edge of stability; the ratio is nan where gains are unknown.

        Args:
            view: The model.
            examples: How many of the probe.
            gains: Of the optimizer.

        Raises:
            UnsupportedGradientError: If something in the model has no second derivative.
        """
        flat = None if gains is None or gains.common is not None else gains.flat(view.parameters())
        with view.hessian(examples) as products:
            size = products.size
            plain = self._keep("sharpness", largest_eigenvalue(products, size, **self._how("sharpness", size)))
            felt = None
            if flat is not None:
                scale, decay = flat

                def penalised(vector: Tensor) -> Tensor:
                    image = products(vector)
                    return image + decay.to(image) * vector.to(image)

                how = self._how("edge", size)
                felt = self._keep("edge", largest_eigenvalue(penalised, size, scale=scale, **how))
        directions, tops = [plain.vector], [float(plain.value)]
        if felt is not None and flat is not None:
            scale, decay = (part.to(felt.vector) for part in flat)
            directions.append(scale.sqrt() * felt.vector)
            tops.append(float(felt.value - decay @ directions[1].square()))
        widths = _half_widths(view, directions, tops, examples)
        sharpness = _interval(plain, widths[0])
        if felt is not None:
            return sharpness, _interval(felt, widths[1])
        if gains is None or gains.common is None:
            return sharpness, UNKNOWN
        gain, penalty = gains.common
        value, low, high = sharpness
        return sharpness, (gain * (value + penalty), gain * (low + penalty), gain * (high + penalty))

    def _how(self, name: str, size: int) -> dict[str, Any]:
        """Where to look for an eigenvalue: from where it was found last, with some noise."""
        start = self._directions.get(name)
        if start is None or len(start) != size:  # a layer was frozen, or set free
            return {"iterations": self.iterations, "seed": self.seed}
        noise = torch.randn(size, generator=torch.Generator().manual_seed(self.seed)).to(start)
        return {"iterations": self.iterations, "start": start + NOISE * noise / noise.norm()}

    def _keep(self, name: str, found: curvature.LeadingEigenvalue) -> curvature.LeadingEigenvalue:
        if bool(found.value.isfinite()):
            self._directions[name] = found.vector.float()
        return found


def _half_widths(view: ProbePasses, directions: Sequence[Tensor], tops: Sequence[float], examples: int) -> list[float]:
    """Half of the 95% interval of each curvature as a mean over examples, the direction held fixed."""
    share = examples / view.training_examples if view.training_examples else 0.0
    if share >= 1:
        return [0.0 for _ in tops]
    if examples < 2 * PARTS or not all(map(math.isfinite, tops)):
        return [math.nan for _ in tops]
    counts = [examples * part // PARTS for part in range(1, PARTS + 1)]
    means = []
    for count in counts[:-1]:
        with view.hessian(count) as products:
            means.append([float(v.double() @ products(v).double()) for v in directions])
    of_parts = torch.tensor([*means, list(tops)], dtype=torch.float64)
    errors = [curvature.nested_mean_error(column, torch.tensor(counts)) for column in of_parts.unbind(1)]
    return [curvature.half_width(float(error), PARTS - 1, share) for error in errors]


def _interval(found: curvature.LeadingEigenvalue, width: float) -> Interval:
    value = float(found.value)
    return value, value - width, value + float(found.residual) + width
