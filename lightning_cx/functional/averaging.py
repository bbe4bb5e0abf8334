"""Averages of the weights along a run: what they gain over the last weights, measured and in theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor
from lightning_cx.functional.noise import CONFIDENCE


class TailAverage:
    """Average the weights over the last half to three quarters of a run whose length nobody knows yet.

    Two block means are kept: of the block that is running and of the one before. A block lasts until the run has become
    twice as long as it was at its beginning; the tail is both blocks. So it always begins after a quarter to a half of
    the run, forgets the start for good (a loss spike, the way down), and each of its weights counts the same: the plain
    tail average of the theory, which weights that fade out in the past (an exponential or polynomial average) are not.
    Taking in weights costs one addition, since only the running block changes.

    Memory: a float64 and a float32 number for each float32 weight, three times the weights, on their device. The
    running sum is float64, since a running mean in float32 stands still: after 1e5 steps, weights that are less than
    0.3% away from it are rounded away.

    References:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Rakhlin, Shamir & Sridharan
        2012, "Making gradient descent optimal for strongly convex stochastic optimization", section 5 (the tail).

    Example:
        >>> average = TailAverage()
        >>> for step in range(8):
        ...     average.update({"weight": torch.tensor([float(step)])}, step)
        >>> average.count, average.first_step, average.window, float(average.value()["weight"])
        (5, 3, 5, 5.0)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next weights are the first of a run."""
        self._origin: int | None = None  # step of the first weights
        self._block = 0  # the running block holds the weights of elapsed steps 2^block to 2^(block + 1) - 1
        self._sum: dict[str, Tensor] = {}
        self._count, self._first, self._last = 0, 0, 0
        self._mean: dict[str, Tensor] = {}  # of the block before
        self._mean_count, self._mean_first = 0, 0

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after a step; where names or shapes have changed, the run begins anew.

        They are read, not kept. Steps may be left out; the last one again is passed over, and one before it begins a
        new run.
        """
        shapes = {name: values.shape for name, values in parameters.items()}
        if self._count and (shapes != self.shapes or step < self._last):
            self.reset()
        if self._count and step == self._last:
            return
        if self._origin is None:
            self._origin = step
        block = (step - self._origin + 1).bit_length() - 1
        if block > self._block:
            self._close(adjoins=block == self._block + 1, like=parameters)
            self._block = block
        if not self._count:
            self._first = step
            self._sum = {name: values.detach().to(_exact(values), copy=True) for name, values in parameters.items()}
        else:
            for name, values in parameters.items():
                if self._sum[name].device != values.device:  # after a checkpoint
                    self._sum[name] = self._sum[name].to(values.device)
                self._sum[name].add_(values.detach())
        self._count, self._last = self._count + 1, step

    def _close(self, adjoins: bool, like: Mapping[str, Tensor]) -> None:
        """End the running block; it is worth keeping only where the next one begins at its end."""
        self._mean_count, self._mean_first = (self._count, self._first) if adjoins else (0, 0)
        self._mean = {}
        if adjoins:
            for name, held in self._sum.items():
                at_least_single = torch.promote_types(like[name].dtype, torch.float32)
                self._mean[name] = (held / self._count).to(at_least_single)
        self._count, self._sum = 0, {}

    @property
    def count(self) -> int:
        """Number of weights in the average."""
        return self._mean_count + self._count

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of what is averaged, by name."""
        return {name: held.shape for name, held in self._sum.items()}

    @property
    def first_step(self) -> int:
        """Step of the first weights in the average."""
        return self._mean_first if self._mean_count else self._first

    @property
    def window(self) -> int:
        """Steps from the first to the last weights in the average, both counted; 0 before the first."""
        return self._last - self.first_step + 1 if self.count else 0

    def value(self, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the average.

        Args:
            like: Tensors by name whose dtypes and devices it should have; None leaves it in that of the running sum.

        Returns:
            Tensors by name, new ones; none before the first weights.
        """
        average: dict[str, Tensor] = {}
        for name, held in self._sum.items():
            total = held.clone()
            if self._mean_count:
                total += self._mean_count * self._mean[name].to(total)
            total /= self.count
            average[name] = total if like is None else total.to(like[name])
        return average

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        tensors = {"sum": dict(self._sum), "mean": dict(self._mean)}
        numbers = (self._origin, self._block, self._count, self._first, self._last, self._mean_count, self._mean_first)
        return {**tensors, "numbers": list(numbers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sum = {name: held.clone() for name, held in state["sum"].items()}  # which is changed in place
        self._mean = dict(state["mean"])
        self._origin, self._block, self._count, self._first, self._last, self._mean_count, self._mean_first = state[
            "numbers"
        ]


def _exact(values: Tensor) -> torch.dtype:
    """Return the dtype of a running sum; Apple's GPUs have no doubles."""
    return torch.promote_types(values.dtype, torch.float32 if values.device.type == "mps" else torch.float64)


@dataclass(frozen=True, eq=False)
class AveragingGain:
    """How much lower the loss of averaged weights is; every tensor is ``[]`` float64.

    Attributes:
        value: Loss of the last weights less that of their average, in units of the loss; negative where the average is
            worse.
        low: Lower end of the 95% interval; nan with fewer than 2 chunks.
        high: Upper end.
        last: Mean loss of an example under the last weights.
        average: The same under the averaged ones.
        chunks: How many groups of examples the interval rests on.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    last: Tensor
    average: Tensor
    chunks: int

    def __str__(self) -> str:
        if not bool(self.value.isfinite()):
            return "gain of averaging unknown: there are no finite losses"
        interval = f" (95% between {self.low:.3g} and {self.high:.3g})" if bool(self.low.isfinite()) else ""
        return f"loss {self.last:.4g}, of the average {self.average:.4g}: gain {self.value:.3g}{interval}"


def averaging_gain(last: Tensor, average: Tensor) -> AveragingGain:
    """Estimate how much better averaged weights are than the last ones, from losses on the same examples.

    With d_c the difference of the mean losses in chunk c of n_c examples and N = sum n_c, the gain is
    ``sum n_c d_c / N`` and its squared standard error ``C / (C - 1) sum (n_c / N)^2 (d_c - gain)^2`` over the C chunks.
    Differences of the same examples vary far less than the losses do. The interval is Student's with C - 1 degrees of
    freedom.

    Args:
        last: ``[C, 2]`` mean loss and number of examples of each chunk, under the last weights.
        average: ``[C, 2]`` the same under the averaged weights, of the same chunks.

    Returns:
        AveragingGain. All nan for no examples or a loss that is not finite; the interval alone is nan for one chunk.

    Raises:
        ValueError: If the two are not of the same chunks.

    References:
        THEORY section 8; Cochran 1977, "Sampling techniques", section 6.3 (groups of unequal size).

    Example:
        >>> last = torch.tensor([[1.0, 10], [3.0, 10], [2.0, 10]])
        >>> print(averaging_gain(last, torch.tensor([[0.9, 10], [2.9, 10], [1.9, 10]])))
        loss 2, of the average 1.9: gain 0.1 (95% between 0.1 and 0.1)
    """
    last, average = as_tensor(last).detach().double().cpu(), as_tensor(average).detach().double().cpu()
    if (
        last.ndim != 2
        or last.shape[-1] != 2
        or last.shape != average.shape
        or not torch.equal(last[:, 1], average[:, 1])
    ):
        raise ValueError(
            f"a gain is of the same chunks under both weights, [chunks, 2] loss and number of examples, got shapes "
            f"{list(last.shape)} and {list(average.shape)} or unequal numbers of examples."
        )
    share = last[:, 1] / last[:, 1].sum()
    means = [(share * losses[:, 0]).sum() if len(share) else share.new_tensor(torch.nan) for losses in (last, average)]
    value = means[0] - means[1]
    known = bool(value.isfinite())
    chunks = len(share)
    unknown = share.new_tensor(torch.nan)
    low = high = unknown
    if known and chunks > 1:
        spread = share * (last[:, 0] - average[:, 0] - value)
        reach = float(stdtrit(chunks - 1, (1 + CONFIDENCE) / 2)) * (chunks / (chunks - 1) * spread @ spread).sqrt()
        low, high = value - reach, value + reach
    return AveragingGain(value if known else unknown, low, high, means[0], means[1], chunks)


@dataclass(frozen=True)
class QuadraticLosses:
    """Expected losses above the minimum, of the last weights and of their average; see `quadratic_losses`."""

    last: float
    average: float

    def __str__(self) -> str:
        return f"last {self.last:.4g}, average {self.average:.4g}"


def quadratic_losses(curvatures: Tensor, noise: Tensor | float, step_size: float, window: int) -> QuadraticLosses:
    """Compute what averaging gains at best: the losses of SGD with a constant step on a quadratic.

    Along an axis of curvature h the weights follow ``w <- (1 - eta h) w - eta xi``, xi of variance s^2. They settle at
    variance ``v = eta s^2 / (h (2 - eta h))``, and with a = 1 - eta h the mean of n of them has variance
    ``v / n ((1 + a) / (1 - a) - 2 a (1 - a^n) / (n (1 - a)^2))``, which tends to ``s^2 / (h^2 n)`` whatever the step
    size. The loss is half of h times the variance, added over the axes.

    Args:
        curvatures: ``[d]`` h, positive, any float dtype.
        noise: s^2, one number or ``[d]``: the variance of the gradient of a batch along each axis.
        step_size: eta, positive.
        window: Number of successive weights n in the average, at least 1.

    Returns:
        QuadraticLosses; inf where eta h is 2 or more, since SGD diverges then.

    Raises:
        ValueError: If a curvature or the step size is not positive, or the window is below 1.

    References:
        THEORY section 8; Polyak & Juditsky 1992, theorem 1.

    Example:
        >>> print(quadratic_losses([0.5, 1.0], 1.0, step_size=0.1, window=1000))
        last 0.05196, average 0.001476
    """
    h = as_tensor(curvatures).detach().double().cpu()
    if not bool((h > 0).all()) or not step_size > 0 or window < 1:
        raise ValueError(
            f"curvatures and step size are positive and a window has at least one step, got {h.tolist()}, {step_size} "
            f"and {window}."
        )
    if bool((step_size * h >= 2).any()):
        return QuadraticLosses(torch.inf, torch.inf)
    squared = torch.as_tensor(noise, dtype=torch.float64)
    a = 1 - step_size * h
    settled = step_size * squared / (h * (2 - step_size * h))
    of_mean = settled / window * ((1 + a) / (1 - a) - 2 * a * (1 - a**window) / (window * (1 - a) ** 2))
    return QuadraticLosses(float((h * settled).sum() / 2), float((h * of_mean).sum() / 2))
