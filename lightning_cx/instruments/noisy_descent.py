"""SGD as noisy descent: what the bound index asks of a run, collected step by step."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from lightning_cx.functional import NoiseScale, bound_index, tails, trajectories
from lightning_cx.instruments.trajectory_tail import STEPS_KEPT, tail_of_steps

Z = 1.96
"""Two-sided 95%."""

FADED = 1e-9
"""Share of a gradient that is left in the momentum buffer when it is forgotten here."""

MEMORIES = 3
"""Steps that are compared lie so many times 1 / (1 - momentum) apart: closer ones share their gradients, and a jump
that lasts over many steps looks like a scale that drifts, no heavy tail. 1.4-stable noise under momentum .9 had an xi
of .3, .0 and -.2 on neighbouring steps (three seeds)."""

TAILS = 9
"""Tail indices of the interval that are tried: the bound index may be lowest between its ends."""

READINGS_PER_WINDOW = 32
"""Steps that are nearly the same give nearly the same index, and a reading takes 70 ms: 2 ms for each new step."""

ROUNDING = 1e-6
"""Noise that is a smaller share of a step than this is rounding."""

HEAVIEST = 1.0
"""Tail index below which the mean of a step does not exist, nor the theorem."""


@dataclass(frozen=True)
class SgdSettings:
    """What SGD makes of a gradient; the same for all parameters.

    Attributes:
        rate: Learning rate.
        momentum: Share of the last step that is kept.
        dampening: Share of a gradient that does not enter the momentum buffer.
        nesterov: Whether the gradient counts ahead of the buffer.
    """

    rate: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @property
    def response(self) -> Tensor:
        """How much of one gradient is in the step of its own batch, of the next, and so on, [J] float64, times rate."""
        if self.momentum == 0:
            return torch.ones(1, dtype=torch.float64)
        count = 1 + math.ceil(math.log(FADED) / math.log(min(self.momentum, 0.9999)))
        left = self.momentum ** torch.arange(count, dtype=torch.float64)
        if not self.nesterov:
            return (1 - self.dampening) * left
        return torch.cat([left.new_tensor([1 + self.momentum]), self.momentum * left[1:]])

    @property
    def memory(self) -> int:
        """Steps after which a gradient has all but left the momentum buffer; 1 without momentum."""
        return math.ceil(MEMORIES / (1 - self.momentum) - FADED) if self.momentum else 1

    @property
    def effective_rate(self) -> float:
        """By how much a gradient moves the parameters in the end: rate / (1 - momentum)."""
        kept = (1 - self.dampening) if self.momentum else 1.0
        return self.rate * kept / (1 - self.momentum)


def sgd_settings(optimizer: Optimizer) -> SgdSettings | str:
    """Read the settings of SGD, or say why there are none."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, SGD):
        return f"it is defined for SGD, whose step is the learning rate times the gradient, not for {name}"
    names = {"rate": "lr", "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"}
    groups = {tuple(float(group[key]) for key in names.values()) for group in optimizer.param_groups}
    if len(groups) != 1:
        return f"it takes one learning rate and momentum for all parameters, and {name} has {len(groups)} settings"
    rate, momentum, dampening, nesterov = groups.pop()
    if not rate > 0 or not 0 <= momentum < 1:
        return f"it takes a positive learning rate and a momentum below 1, got {rate:g} and {momentum:g}"
    return SgdSettings(rate, momentum, dampening, bool(nesterov))


class NoisyDescent:
    """Collects gradients, steps and settings of a run, and reads the bound index off them.

    Args:
        radius: R of `functional.bound_index`.
    """

    def __init__(self, radius: float) -> None:
        self.radius = radius
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self._steps: deque[tuple[int, Tensor]] = deque(maxlen=STEPS_KEPT)  # increments over the learning rate
        self._settings: SgdSettings | None = None
        self._why = "no optimizer was seen: it comes with Observation.model, which a monitor shows as its budget allows"
        self._parameters = self._examples = 0
        self._count, self._rates, self._energy, self._variance = 0, 0.0, 0.0, 0.0
        self._largest_batch = self._new = 0

    def see_model(self, optimizer: Optimizer | None, parameters: int, examples: int | None) -> None:
        """Take in how the model is trained at present, on how many examples."""
        self._settings = None
        if optimizer is None:
            self._why = "no single optimizer trains the model: none is known, or several share it"
        elif examples is None:
            self._why = "the size of the training set is not known"
        elif isinstance(found := sgd_settings(optimizer), str):
            self._why = found
        else:
            self._settings, self._why, self._parameters, self._examples = found, "", parameters, examples

    def see_gradient(self, noise: NoiseScale, batch_size: int) -> None:
        """Take in the gradient of a batch: an unbiased estimate of the squared norm of the whole gradient."""
        self._largest_batch = max(self._largest_batch, batch_size)
        error = float(noise.covariance[0, 0])
        if self._settings is None or not math.isfinite(float(noise.signal) + error):
            return
        rate = self._settings.effective_rate
        self._count += 1
        self._rates += rate
        self._energy += rate * float(noise.signal)
        self._variance += rate**2 * error

    def see_step(self, step: int, increment: Tensor) -> None:
        """Take in a sketch of what a step changed, where momentum has forgotten the last one that was taken in."""
        if self._settings is None or (self._steps and step < self._steps[-1][0] + self._settings.memory):
            return
        if bool((increment != 0).any()):  # one that changed nothing was none
            self._steps.append((step, increment / self._settings.rate))
            self._new += 1

    def index(self, steps: int) -> tuple[float, float, float] | str | None:
        """Return the index with its lowest and highest value, or why there is none; None where few steps are new.

        The tail index of the noise is 1 / xi of the steps where xi is certainly above 1/2, and 2, the normal law's,
        where it is not. The ends take xi and the mean squared gradient to the ends of their 95% intervals.

        Args:
            steps: Number of optimizer steps of the run.
        """
        why = self._why or self._too_little()
        if why:
            return why
        if self._new * READINGS_PER_WINDOW < len(self._steps):
            return None
        self._new = 0
        increments = torch.stack([increment for _, increment in self._steps])
        xi, _ = tail_of_steps(increments)
        if xi.reason:
            return xi.reason
        middle = float(xi.index) if float(xi.low) > 0.5 else 0.0
        interval = torch.linspace(float(xi.low), float(xi.high), TAILS, dtype=torch.float64).tolist()
        alphas = [_stable_index(value) for value in (middle, *interval)]
        sigmas = [self._sigma(alpha, increments) for alpha in alphas]
        error = Z * math.sqrt(self._variance)
        energies = torch.tensor([[self._energy], [max(self._energy - error, 0.0)], [self._energy + error]])
        rate, squared = self._rates / self._count, energies / self._rates
        found = bound_index(alphas, sigmas, steps, rate, squared, self._examples, self._parameters, self.radius)
        noiseless = min(sigmas) <= ROUNDING * float(increments.abs().median()) / math.sqrt(self._parameters)
        if noiseless or not bool(found.isfinite().all()):
            return "the steps show no noise"
        return float(found[0, 0]), float(found.min()), float(found.max())

    def _too_little(self) -> str:
        if self._largest_batch >= self._examples:
            return "a batch of the whole training set has no noise"
        if len(self._steps) < tails.MIN_SAMPLES:
            apart = self._settings.memory if self._settings else 1
            words = f" that lie {apart} steps apart, as momentum asks for," if apart > 1 else ""
            least = tails.MIN_SAMPLES
            return f"{len(self._steps)} sampled steps{words} are too few to show their tail: {least} are needed"
        if not self._count:
            return "no gradients were read, or batches hold fewer than 3 examples"
        return "" if self._energy > 0 else "the gradient of the whole cannot be told from zero in these batches"

    def _sigma(self, alpha: float, increments: Tensor) -> float:
        """Scale of the noise, if alpha is its tail index."""
        assert self._settings is not None
        lag = int(torch.tensor([step for step, _ in self._steps]).diff().median())
        spread = _spread_of_differences(self._settings.response, lag, alpha)
        scale = float(trajectories.noise_level(increments.diff(dim=0), alpha, self._parameters)) / spread
        # One step adds eta times noise of this scale, the Euler scheme eta^(1/alpha) sigma.
        return (self._rates / self._count) ** (1 - 1 / alpha) * scale

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        settings = None if self._settings is None else asdict(self._settings)
        sums = (self._count, self._rates, self._energy, self._variance, self._largest_batch)
        model = (settings, self._why, self._parameters, self._examples)
        return {"steps": list(self._steps), "new": self._new, "sums": sums, "model": model}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reset()
        self._steps.extend(state["steps"])
        self._new = state["new"]
        self._count, self._rates, self._energy, self._variance, self._largest_batch = state["sums"]
        settings, self._why, self._parameters, self._examples = state["model"]
        self._settings = None if settings is None else SgdSettings(**settings)


def _stable_index(xi: float) -> float:
    """Tail index of a power law of extreme value index xi, 2 where its variance is finite."""
    return 2.0 if xi <= 0.5 else max(1 / xi, HEAVIEST)


def _spread_of_differences(response: Tensor, lag: int, alpha: float) -> float:
    """Scale of the difference of two steps so many steps apart, for independent gradients of scale 1.

    Momentum lets a gradient act on many steps: the difference is a sum over gradients with weights ``h_j - h_(j-lag)``,
    and sums of stable noise have the scale ``(sum |weight|^alpha)^(1/alpha)``.
    """
    before, after = torch.nn.functional.pad(response, (0, lag)), torch.nn.functional.pad(response, (lag, 0))
    return float((before - after).abs().pow(alpha).sum() ** (1 / alpha))
