"""The problems on which stopping rules are compared: with noise and without, drawn and real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _networks import mlp
from _workloads import Losses, cross_entropies, squared_errors
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn

Array = Any  # of numpy, float64 unless it holds classes
Random = np.random.Generator

TEST = 4000  # fresh examples; real data sets test on what is not trained on


@dataclass(frozen=True)
class Data:
    """Training examples with their noise, test examples without.

    Attributes:
        x: ``[n, d]`` inputs.
        y: ``[n, 1]`` targets or ``[n]`` classes, noise included.
        test_x: ``[m, d]``.
        test_y: ``[m, 1]`` or ``[m]``, as they were before any noise was added.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classifies(self) -> bool:
        return not self.y.is_floating_point()

    @property
    def losses(self) -> Losses:
        return cross_entropies if self.classifies else squared_errors

    def take(self, rows: Tensor) -> Data:
        """Some of the training examples, with the same test."""
        return Data(self.x[rows], self.y[rows], self.test_x, self.test_y)


Draw = Callable[[Random], Data]


@dataclass(frozen=True)
class Problem:
    """One row of the table.

    Attributes:
        name: Key on the command line.
        title: What the table calls it.
        draw: Draws the data.
        network: Builds the model.
        steps: Length of a full run, in optimizer steps.
        rate: Learning rate.
        batch: Examples per step; None takes all.
        sgd: SGD with momentum .9 instead of Adam.
        noisy: Whether there is noise in the training targets.
        listed: Whether it is run unless asked otherwise.
    """

    name: str
    title: str
    draw: Draw
    network: Callable[[], nn.Module]
    steps: int
    rate: float
    batch: int | None = None
    sgd: bool = False
    noisy: bool = True
    listed: bool = True

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        if self.sgd:
            return torch.optim.SGD(network.parameters(), self.rate, momentum=0.9)
        return torch.optim.Adam(network.parameters(), self.rate)


def wave(u: Array) -> Array:
    return np.sin(3 * u[:, 0]) + 0.5 * np.sin(9 * u[:, 0] + 1)


def waves(u: Array) -> Array:
    return np.sin(3 * u[:, 0]) * np.cos(2 * u[:, 1]) + 0.5 * np.sin(4 * u[:, 1] - u[:, 0])


def torus_waves(u: Array) -> Array:
    return np.sin(np.pi * u[:, 0]) + np.cos(np.pi * u[:, 1]) * np.sin(2 * np.pi * u[:, 0])


def friedman(u: Array) -> Array:
    """Friedman 1991, with inputs in [-1, 1]; five of the ten do nothing."""
    products = 10 * np.sin(np.pi * (u[:, 0] + 1) * (u[:, 1] + 1) / 4)
    return products + 5 * u[:, 2] ** 2 + 5 * u[:, 3] + 2.5 * u[:, 4]


def torus(rng: Random) -> Callable[[Array], Array]:
    """Two angles as points of a torus, laid at random into 20 dimensions."""
    frame = rng.normal(size=(4, 20)) / 2
    return lambda u: np.hstack([np.cos(np.pi * u), np.sin(np.pi * u)]) @ frame


def regression(
    examples: int,
    dimensions: int,
    target: Callable[[Array], Array],
    noise: float,
    embedding: Callable[[Random], Callable[[Array], Array]] | None = None,
) -> Draw:
    """Targets of unit variance, Gaussian noise of standard deviation `noise`; tested against the noiseless function."""

    def draw(rng: Random) -> Data:
        embed = embedding(rng) if embedding is not None else lambda u: u
        u, test_u = (rng.uniform(-1, 1, (count, dimensions)) for count in (examples, TEST))
        y, test_y = target(u), target(test_u)
        scale = y.std()
        noisy = y / scale + noise * rng.normal(size=examples)
        return as_data(embed(u), noisy[:, None], embed(test_u), test_y[:, None] / scale)

    return draw


def mixture(examples: int, noise: float, classes: int = 4, dimensions: int = 8) -> Draw:
    """Two Gaussian clusters to each class."""

    def draw(rng: Random) -> Data:
        centres = 1.1 * rng.normal(size=(2 * classes, dimensions))
        clusters, test_clusters = (rng.integers(0, 2 * classes, count) for count in (examples, TEST))
        x, test_x = (centres[k] + 0.8 * rng.normal(size=(len(k), dimensions)) for k in (clusters, test_clusters))
        return as_data(x, redrawn(clusters % classes, noise, classes, rng), test_x, test_clusters % classes)

    return draw


def real_classes(load: Callable[..., Any], scaled: Callable[[Array], Array], examples: int, noise: float) -> Draw:
    def draw(rng: Random) -> Data:
        x, y = load(return_X_y=True)
        x, rows = scaled(x), rng.permutation(len(y))
        train, test = rows[:examples], rows[examples:]
        return as_data(x[train], redrawn(y[train], noise, int(y.max()) + 1, rng), x[test], y[test])

    return draw


def real_values(load: Callable[..., Any], examples: int, noise: float) -> Draw:
    """Noise of the data set's own stays in, in the test as well."""

    def draw(rng: Random) -> Data:
        x, y = load(return_X_y=True)
        x, y, rows = z_scores(x), z_scores(y)[:, None], rng.permutation(len(y))
        train, test = rows[:examples], rows[examples:]
        return as_data(x[train], y[train] + noise * rng.normal(size=(examples, 1)), x[test], y[test])

    return draw


def redrawn(classes: Array, share: float, count: int, rng: Random) -> Array:
    """Labels of which a share is drawn anew, so that 1 / count of these stay right."""
    chosen = rng.random(len(classes)) < share
    return np.where(chosen, rng.integers(0, count, len(classes)), classes)


def pixels(x: Array) -> Array:
    """Of the digits, which have 17 levels."""
    return x / 16


def z_scores(x: Array) -> Array:
    return (x - x.mean(0)) / x.std(0)


def as_data(x: Array, y: Array, test_x: Array, test_y: Array) -> Data:
    kind = torch.float32 if y.ndim == 2 else torch.int64
    inputs = (torch.as_tensor(values, dtype=torch.float32) for values in (x, test_x))
    targets = (torch.as_tensor(values, dtype=kind) for values in (y, test_y))
    return Data(next(inputs), next(targets), next(inputs), next(targets))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def deep(inputs: int, outputs: int = 1) -> Callable[[], nn.Module]:
    return lambda: mlp(inputs, 128, 128, 128, outputs)


def shallow(inputs: int, outputs: int = 1) -> Callable[[], nn.Module]:
    return lambda: mlp(inputs, 128, 128, outputs)


def on_plane(noise: float) -> Draw:
    return regression(512, 2, waves, noise)


def on_torus(noise: float) -> Draw:
    return regression(512, 2, torus_waves, noise, torus)


def in_ten(noise: float) -> Draw:
    return regression(768, 10, friedman, noise)


def digits(noise: float) -> Draw:
    return real_classes(load_digits, pixels, 1000, noise)


def cancer(noise: float) -> Draw:
    return real_classes(load_breast_cancer, z_scores, 380, noise)


ALL = [
    Problem("reg1", "1-D regression", regression(512, 1, wave, 0.5), deep(1), 4000, 2e-3),
    Problem("reg2", "2-D regression", on_plane(0.5), deep(2), 3000, 2e-3),
    Problem("reg2-sgd", "2-D regression, SGD", on_plane(0.5), deep(2), 3000, 0.03, 32, sgd=True),
    Problem("torus", "torus in R^20", on_torus(0.5), deep(20), 2000, 1e-3),
    Problem("friedman", "Friedman, 10-D", in_ten(0.5), shallow(10), 3000, 1e-3, 64),
    Problem("gauss", "Gaussian mixture, 30%", mixture(768, 0.3), shallow(8, 4), 1500, 2e-3),
    Problem("gauss-sgd", "Gaussian mixture, 30%, SGD", mixture(768, 0.3), shallow(8, 4), 1500, 0.05, 32, sgd=True),
    Problem("digits-20", "digits, 20%", digits(0.2), shallow(64, 10), 2000, 1e-3, 64),
    Problem("digits-40", "digits, 40%", digits(0.4), shallow(64, 10), 2000, 1e-3, 64),
    Problem("convnet-40", "digits, convnet, 40%", digits(0.4), convnet, 2000, 1e-3, 64),
    Problem("cancer", "breast cancer, 30%", cancer(0.3), shallow(30, 2), 1500, 1e-3, 32),
    Problem("diabetes", "diabetes, noise 1", real_values(load_diabetes, 300, 1.0), shallow(10), 1500, 1e-3, 32),
    Problem("reg2-clean", "2-D regression", on_plane(0), deep(2), 3000, 2e-3, noisy=False),
    Problem("torus-clean", "torus in R^20", on_torus(0), deep(20), 2000, 1e-3, noisy=False),
    Problem("friedman-clean", "Friedman, 10-D", in_ten(0), shallow(10), 3000, 1e-3, 64, noisy=False),
    Problem("gauss-clean", "Gaussian mixture", mixture(768, 0), shallow(8, 4), 1500, 2e-3, noisy=False),
    Problem("digits-clean", "digits", digits(0), shallow(64, 10), 2000, 1e-3, 64, noisy=False),
    Problem("tiny", "1-D regression", regression(256, 1, wave, 0.5), lambda: mlp(1, 16, 1), 80, 1e-2, 64, listed=False),
    Problem(
        "tiny-classes", "Gaussian mixture", mixture(200, 0), lambda: mlp(8, 16, 4), 40, 1e-2, noisy=False, listed=False
    ),
]
PROBLEMS = {problem.name: problem for problem in ALL}
