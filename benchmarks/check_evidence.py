"""Our evidence-based criterion beside Cockpit's `EarlyStopping`, on random networks: fails where they disagree.

    python benchmarks/check_evidence.py

Cockpit stays out of the environment of the tests: it imports `pkg_resources`, which setuptools dropped. Into the
environment of `make benchmark`, which has BackPACK:

    pip install --constraint constraints.txt 'setuptools<81' pandas seaborn json-tricks
    pip install --no-deps cockpit-for-pytorch==1.0.2
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from _evidence import COCKPIT_EPSILON, evidence, per_example_gradients
from _networks import mlp
from _workloads import Losses, cross_entropies, squared_errors
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Largest difference, over the larger of 1 and the criterion. Both compute in float64, their variance another way."""

NEXT_TO_NOTHING = 1e-30
"""Makes 0 of the 0 / 0 of dead units, which Cockpit's mean turns into nan; far below every other variance."""


@dataclass(frozen=True)
class Case:
    """A network with a loss; `loss` is the mean of `losses`."""

    title: str
    network: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    outputs: int
    labelled: bool

    @property
    def losses(self) -> Losses:
        return cross_entropies if self.labelled else squared_errors

    @property
    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss() if self.labelled else nn.MSELoss()

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, *self.inputs, dtype=torch.float64)
        y = torch.randint(self.outputs, (n,)) if self.labelled else torch.randn(n, self.outputs, dtype=torch.float64)
        return x, y


def smooth(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in mlp(*widths)))


def picture() -> nn.Sequential:
    """No GroupNorm: BackPACK has no rule for it."""
    convolutions = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 4))


CASES = [
    Case("tanh 5-16-16-3, classes", lambda: smooth(5, 16, 16, 3), (5,), 3, labelled=True),
    Case("tanh 1-32-32-1, regression", lambda: smooth(1, 32, 32, 1), (1,), 1, labelled=False),
    Case("relu 1-64-64-1, regression", lambda: mlp(1, 64, 64, 1), (1,), 1, labelled=False),
    Case("relu 784-64-10, classes", lambda: mlp(784, 64, 10), (784,), 10, labelled=True),
    Case("linear 20-4, regression", lambda: mlp(20, 4), (20,), 4, labelled=False),
    Case("CNN 3x8x8, classes", picture, (3, 8, 8), 4, labelled=True),
]


def main(seeds: int = 3, examples: int = 40) -> None:
    warnings.simplefilter("ignore")  # BackPACK's hooks warn about inputs without gradient
    print(f"| network, {examples} examples | coordinates | dead | epsilon | ours | Cockpit | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    differences = []
    for case, seed in product(CASES, range(seeds)):
        torch.manual_seed(seed)
        network, (x, y) = case.network().double(), case.draw(examples)
        rows = per_example_gradients(network, case.losses, x, y)
        counts = rows.shape[1], int((rows == 0).all(0).sum())
        for epsilon in (COCKPIT_EPSILON, 0.0):
            ours = float(evidence(rows, epsilon))
            theirs = by_cockpit(network, case.loss, x, y, epsilon or NEXT_TO_NOTHING)
            if epsilon == 0:
                theirs = among_living(theirs, *counts)
            differences.append(abs(ours - theirs) / max(1.0, abs(theirs)))
            numbers = f"{counts[0]} | {counts[1]} | {epsilon:g} | {ours:.8f} | {theirs:.8f} | {differences[-1]:.0e}"
            print(f"| {case.title} | {numbers} |")
    failures = sum(not difference <= TOLERANCE for difference in differences)  # nan fails
    print(f"\n{failures} of {len(differences)} differ by more than {TOLERANCE:g}; at most {max(differences):.1e}")
    sys.exit(failures > 0)


def among_living(criterion: float, coordinates: int, dead: int) -> float:
    """What a mean over all coordinates, with 0 for the dead, is over the others."""
    return 1 - (1 - criterion) * coordinates / (coordinates - dead)


def by_cockpit(network: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> float:
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.quantities import EarlyStopping

    network, loss = extend(network), extend(loss)
    cockpit = Cockpit(network.parameters(), quantities=[EarlyStopping(lambda step: True, epsilon=epsilon)])
    value = loss(network(x), y)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # the only one that it lets this criterion judge
    with cockpit(0, info={"batch_size": len(x), "optimizer": optimizer, "loss": value, "individual_losses": None}):
        value.backward()
    network.zero_grad()
    return cockpit.get_output()[0]["EarlyStopping"]


if __name__ == "__main__":
    main()
