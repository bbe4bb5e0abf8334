"""The published rules that train on everything and look at nothing else, each with what we had to choose."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import combinations
from time import process_time

import torch
from _evidence import evidence_of_moments, moments, per_example_gradients
from _stopping_networks import unrolled
from _stopping_stoppers import Epoch, LeftOut, Lightning, Look, Rule, Stopper
from scipy.stats import gamma
from torch import Tensor

from lightning_cx.rules import HighComplexityDominance, ResidualWhiteness, SpectralRisk

GRADIENT_EXAMPLES = 512  # of which rules that need the gradient of each example look at
GRADIENTS_EVERY = 2  # checks, for their cost; so five in a row span as many checks as PATIENCE
COLUMNS = 512  # parameters whose gradients are held in float64 at a time, few enough for the processor's cache
WAVE = 3  # epochs of Label Wave's moving average, as in the paper
DISPARITY_BATCHES = 5  # whose gradients are compared in pairs, as in the paper
RISES = 5  # of the gradient disparity, after which the paper stops
CREDIBILITY = 0.5  # of the weights at which GradStop stops: the paper draws it from (0, 1)


class ExampleGradients:
    """Gradients of single examples, computed once for all who ask at the same check."""

    def __init__(self) -> None:
        self.number, self.rows, self.seconds = -1, torch.empty(0), 0.0

    def at(self, look: Look) -> tuple[Tensor, float]:
        """Of all training examples, the first 512 if there are more.

        Returns:
            ``[n, parameters]``, and the seconds that they took if somebody else had asked before.
        """
        if look.number == self.number:
            return self.rows, self.seconds
        start = process_time()
        x, y = look.data.x[:GRADIENT_EXAMPLES], look.data.y[:GRADIENT_EXAMPLES]
        with unrolled(look.network):
            self.rows = per_example_gradients(look.network, look.data.losses, x, y, chunk=128)
        self.number, self.seconds = look.number, process_time() - start
        return self.rows, 0.0


class ByGradients(Stopper):
    """Stops by the gradients of single examples.

    Args:
        gradients: Shared with others.
    """

    def __init__(self, gradients: ExampleGradients) -> None:
        self.gradients = gradients

    def fires(self, look: Look) -> bool:
        if look.number % GRADIENTS_EVERY:
            return False
        rows, seconds = self.gradients.at(look)
        self.seconds += seconds
        return self.fires_by(rows)

    @abstractmethod
    def fires_by(self, rows: Tensor) -> bool:
        """Take in the gradients of a check."""


class Evidence(ByGradients):
    """Stops where the gradients of all examples cannot be told from noise (Mahsereci et al. 2017).

    Args:
        gradients: Shared with others.
        in_a_row: Times that this must be so; the paper stops at the first.
    """

    def __init__(self, gradients: ExampleGradients, in_a_row: int) -> None:
        super().__init__(gradients)
        self.in_a_row, self.times = in_a_row, 0

    def fires_by(self, rows: Tensor) -> bool:
        self.times = self.times + 1 if evidence_by_columns(rows) > 0 else 0
        return self.times >= self.in_a_row


def evidence_by_columns(rows: Tensor) -> float:
    parts = [moments(block.double()) for block in rows.split(COLUMNS, dim=1)]
    mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return float(evidence_of_moments(mean, variance, len(rows)))


class GradStop(ByGradients):
    """Stops where the weights are credible under the posterior that the gradients tell of (Jamshidi et al. 2025).

    Near its mode the posterior exp(-L) of a sum of losses is Gaussian with the Hessian as its precision, for which the
    covariance C of the gradients of single examples stands. Drawn from it, weights have a summed gradient g ~ N(0, C),
    and their credibility is the probability of one as large as g. We had the abstract and reviews of the paper and not
    its text, and chose: the length of g, since C has no inverse where there are more weights than examples; the
    weighted sum of chi-squares that ||g||^2 then is, as the gamma distribution of its mean tr C and variance 2 tr C^2
    (Satterthwaite); and a credibility of 1/2 where the paper draws it at random. The weights at the stop are kept.
    """

    def fires_by(self, rows: Tensor) -> bool:
        return credibility(rows) >= CREDIBILITY


def credibility(rows: Tensor) -> float:
    """Probability of a summed gradient at least as long, from per-example gradients ``[n, parameters]``."""
    n = len(rows)
    gram = (rows @ rows.T).double()
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    covariance = centred * n / (n - 1)
    mean, variance = float(covariance.trace()), 2 * float(covariance.square().sum())
    if not (math.isfinite(mean) and mean > 0 and variance > 0):
        return 0.0
    return float(gamma.sf(float(gram.sum()), mean**2 / variance, scale=variance / mean))


class LabelWave(Stopper):
    """Stops at the first minimum of how many training examples change their class (Yuan, Feng & Liu, ICLR 2024).

    As in the authors' code an example has the class it was given when its batch came by, before that step; changes are
    counted from epoch to epoch. Smoothed over three epochs, the count first rises: the weights before the rise are
    kept. For classification alone.
    """

    by_epoch = True

    def __init__(self) -> None:
        self.predictions: Tensor | None = None
        self.changes: list[int] = []
        self.waves: list[float] = []
        self.before = 0

    def fires(self, look: Look) -> bool:
        if not look.data.classifies:
            self.refusal = "there are no classes that could change."
        return False

    def fires_after(self, epoch: Epoch) -> bool:
        if self.predictions is not None:
            self.changes.append(int((epoch.predictions != self.predictions).sum()))
        self.predictions = epoch.predictions.clone()
        if len(self.changes) >= WAVE:
            self.waves.append(sum(self.changes[-WAVE:]) / WAVE)
        self.before = epoch.last_step
        return len(self.waves) > 1 and self.waves[-1] > self.waves[-2]

    def kept(self, last: int) -> int:
        return last if self.stopped is None else self.before


class GradientDisparity(Stopper):
    """Stops once gradients of batches have moved apart five times (Forouzesh & Thiran 2021).

    The mean distance between the gradients of five batches, ten pairs, after every epoch; the losses of a batch are
    first divided by their standard deviation. The paper has two ways to count and reports its tables with this one:
    five rises in all since the start. Where steps take all examples, we chose fifths of them as batches. The weights
    at the stop are kept.
    """

    by_epoch = True

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.latest, self.rises = math.inf, 0

    def fires(self, look: Look) -> bool:
        return False

    def fires_after(self, epoch: Epoch) -> bool:
        disparity = self.disparity(epoch)
        self.rises += disparity > self.latest
        self.latest = disparity
        return self.rises >= RISES

    def disparity(self, epoch: Epoch) -> float:
        size = min(epoch.batch, len(epoch.data.x) // DISPARITY_BATCHES)
        order = torch.randperm(len(epoch.data.x), generator=self.generator)
        gradients = [scaled_gradient(epoch, rows) for rows in order[: size * DISPARITY_BATCHES].split(size)]
        pairs = list(combinations(gradients, 2))
        return sum(float((one - other).norm()) for one, other in pairs) / len(pairs)


def scaled_gradient(epoch: Epoch, rows: Tensor) -> Tensor:
    """Of the mean loss of a batch in units of its own standard deviation."""
    losses = epoch.data.losses(epoch.network(epoch.data.x[rows]), epoch.data.y[rows])
    spread = losses.detach().std().clamp(min=torch.finfo(losses.dtype).tiny)
    parameters = [p for p in epoch.network.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad((losses / spread).mean(), parameters)])


def on_full_data() -> dict[str, Stopper]:
    """All ways to stop that train on everything."""
    gradients = ExampleGradients()
    return {
        "evidence": Evidence(gradients, 1),
        "evidence-5": Evidence(gradients, 5),
        "gradstop": GradStop(gradients),
        "disparity": GradientDisparity(),
        "label-wave": LabelWave(),
        "train-loss": Lightning(held_out=False),
        "dominance": Rule(HighComplexityDominance()),
        "whiteness": Rule(ResidualWhiteness()),
        "spectral-risk": Rule(SpectralRisk()),
        "ours": LeftOut(),
    }
