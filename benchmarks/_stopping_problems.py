"""The problems on which stopping rules are compared, and which of them were kept back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from _stopping_data import (
    AFFAIRS,
    COMPUTERS,
    DIAMONDS,
    DOCTOR,
    EXHAUST,
    LOANS,
    QUAKES,
    VOTE,
    WAGES,
    Draw,
    cancer,
    digits,
    flat,
    flips,
    forecast,
    friedman,
    gaussian,
    group,
    heavy,
    letter_pairs,
    look_alikes,
    mixture,
    mnist1d,
    next_character,
    nudged,
    parity,
    photograph,
    pixels,
    rare,
    regression,
    shifted,
    shipped_series,
    snippets,
    split,
    torus,
    torus_waves,
    toy,
    uneven,
    wave,
    waves,
    wine_colour,
)
from _stopping_networks import (
    Network,
    convnet,
    convnet_1d,
    deep,
    group_transformer,
    gru,
    large_at_first,
    pairs,
    patch_transformer,
    shallow,
    text_convnet,
    transformer,
)
from _stopping_sources import ALPHABET
from _workloads import cross_entropies, squared_errors
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

Augment = Callable[[Tensor, torch.Generator], Tensor]
ADAM, ADAMW, SGD = "Adam", "AdamW", "SGD"
CONSTANT, COSINE, ONE_CYCLE, STEPS = "constant", "cosine", "one-cycle", "step decay"
FUNCTION, TABLE, SERIES, IMAGE, TEXT, ARITHMETIC = "function", "table", "series", "image", "text", "arithmetic"
MOMENTUM = 0.9  # of SGD


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        rate: Learning rate, the largest of its schedule.
        method: Name of the optimizer.
        schedule: Of the learning rate: constant, cosine to 0, one-cycle, or a tenth after one and two thirds.
        decay: Weight decay.
    """

    rate: float
    method: str = ADAMW
    schedule: str = CONSTANT
    decay: float = 0.01

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        if self.method == SGD:
            return torch.optim.SGD(network.parameters(), self.rate, momentum=MOMENTUM)
        if self.method == ADAM:
            return torch.optim.Adam(network.parameters(), self.rate)
        return torch.optim.AdamW(network.parameters(), self.rate, weight_decay=self.decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler | None:
        if self.schedule == COSINE:
            return CosineAnnealingLR(optimizer, steps)
        if self.schedule == ONE_CYCLE:
            return OneCycleLR(optimizer, self.rate, total_steps=steps + 1)
        if self.schedule == STEPS:
            return MultiStepLR(optimizer, [steps // 3, 2 * steps // 3])
        return None


@dataclass(frozen=True)
class Problem:
    """One row of the table.

    Attributes:
        name: Key on the command line.
        title: What the table calls it.
        kind: Of data; both halves of the split have their share of each.
        draw: Draws the data.
        network: Builds the model.
        steps: Length of a full run, in optimizer steps.
        recipe: Optimizer and schedule.
        batch: Examples per step; None takes all.
        augment: What is done to the inputs of a training batch.
        noisy: Whether there is noise in the training targets, added or natural.
        balanced: Whether the test counts each class alike.
        listed: Whether it is run unless asked otherwise.
    """

    name: str
    title: str
    kind: str
    draw: Draw
    network: Network
    steps: int
    recipe: Recipe
    batch: int | None = 32
    augment: Augment | None = field(default=None, kw_only=True)
    noisy: bool = field(default=True, kw_only=True)
    balanced: bool = field(default=False, kw_only=True)
    listed: bool = field(default=True, kw_only=True)

    def optimizer(self, network: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
        """Give the optimizer, and a scheduler that is stepped after each of its steps if there is one."""
        optimizer = self.recipe.optimizer(network)
        return optimizer, self.recipe.scheduler(optimizer, self.steps)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give the loss of each example; training takes their mean."""
        return squared_errors(outputs, targets) if targets.is_floating_point() else cross_entropies(outputs, targets)

    def error(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean squared error, or the share of wrong labels: of all examples, or the mean over the classes."""
        if targets.is_floating_point():
            return float((outputs - targets).square().mean())
        wrong = (outputs.argmax(1) != targets).double()
        if not self.balanced:
            return float(wrong.mean())
        return float(torch.stack([wrong[targets == k].mean() for k in targets.unique()]).mean())

    def annealed(self) -> Problem:
        """The same with a learning rate that falls to 0 along a cosine."""
        return replace(self, recipe=replace(self.recipe, schedule=COSINE))


def on_plane(noise: float) -> Draw:
    return regression(512, 2, waves, noise)


def on_torus(noise: float) -> Draw:
    return regression(512, 2, torus_waves, noise, torus)


def in_ten(noise: float) -> Draw:
    return regression(768, 10, friedman, noise)


def first_problems() -> Iterator[Problem]:
    """Those of the first benchmark: our first rules were set on them, so none is kept back."""
    every = None  # example at each step
    diabetes = split(toy("diabetes"), 300, gaussian(1.0))
    wide, narrow, sgd = Recipe(2e-3, ADAM), Recipe(1e-3, ADAM), Recipe(0.05, SGD)
    clean = {"noisy": False}

    def add(name: str, title: str, kind: str, draw: Draw, network: Network, *rest: object, **more: bool) -> Problem:
        return Problem(name, title, kind, draw, network, *rest, **more)  # type: ignore[arg-type]

    yield add("reg1", "1-D regression", FUNCTION, regression(512, 1, wave, 0.5), deep(1), 4000, wide, every)
    yield add("reg2", "2-D regression", FUNCTION, on_plane(0.5), deep(2), 3000, wide, every)
    yield add("reg2-sgd", "2-D regression, SGD", FUNCTION, on_plane(0.5), deep(2), 3000, Recipe(0.03, SGD))
    yield add("torus", "torus in R^20", FUNCTION, on_torus(0.5), deep(20), 2000, narrow, every)
    yield add("friedman", "Friedman, 10-D", FUNCTION, in_ten(0.5), shallow(10), 3000, narrow, 64)
    yield add("gauss", "Gaussian mixture, 30%", FUNCTION, mixture(768, 0.3), shallow(8, 4), 1500, wide, every)
    yield add("gauss-sgd", "Gaussian mixture, 30%, SGD", FUNCTION, mixture(768, 0.3), shallow(8, 4), 1500, sgd)
    yield add("digits-20", "digits, 20%", IMAGE, digits(0.2), shallow(64, 10), 2000, narrow, 64)
    yield add("digits-40", "digits, 40%", IMAGE, digits(0.4), shallow(64, 10), 2000, narrow, 64)
    yield add("convnet-40", "digits, convnet, 40%", IMAGE, digits(0.4), convnet(), 2000, narrow, 64)
    yield add("cancer", "breast cancer, 30%", TABLE, cancer(0.3), shallow(30, 2), 1500, narrow)
    yield add("diabetes", "diabetes, noise 1", TABLE, diabetes, shallow(10), 1500, narrow)
    yield add("reg2-clean", "2-D regression", FUNCTION, on_plane(0), deep(2), 3000, wide, every, **clean)
    yield add("torus-clean", "torus in R^20", FUNCTION, on_torus(0), deep(20), 2000, narrow, every, **clean)
    yield add("friedman-clean", "Friedman, 10-D", FUNCTION, in_ten(0), shallow(10), 3000, narrow, 64, **clean)
    yield add("gauss-clean", "Gaussian mixture", FUNCTION, mixture(768, 0), shallow(8, 4), 1500, wide, every, **clean)
    yield add("digits-clean", "digits", IMAGE, digits(0), shallow(64, 10), 2000, narrow, 64, **clean)


def tables() -> Iterator[Problem]:
    adamw, sgd = Recipe(1e-3), Recipe(0.02, SGD)
    t2, spread = split(DIAMONDS, 800, heavy(0.5)), split(DIAMONDS, 800, uneven(0.6, 0))
    alike = split(toy("breast_cancer"), 380, look_alikes(0.15))

    yield Problem("diamonds", "diamonds", TABLE, split(DIAMONDS, 800), shallow(9), 2000, adamw, noisy=False)
    yield Problem("diamonds-t2", "diamonds, Student t(2)", TABLE, t2, shallow(9), 2000, adamw)
    yield Problem("diamonds-uneven", "diamonds, uneven, SGD", TABLE, spread, shallow(9), 2500, sgd)
    yield Problem("wages", "wages", TABLE, split(WAGES, 800), shallow(4), 2000, Recipe(2e-3))
    yield Problem(
        "computers", "computers, one-cycle", TABLE, split(COMPUTERS, 800), deep(9), 2000, Recipe(3e-3, ADAMW, ONE_CYCLE)
    )
    yield Problem("exhaust", "exhaust, SGD", TABLE, split(EXHAUST, 600), shallow(3), 2500, Recipe(0.03, SGD))
    yield Problem("wine", "colour of wine", TABLE, split(wine_colour, 118), shallow(12), 800, adamw, 16)
    yield Problem("affairs", "affairs", TABLE, split(AFFAIRS, 1000), shallow(8, 2), 1500, adamw)
    yield Problem(
        "doctor", "doctor's visits, cosine", TABLE, split(DOCTOR, 1000), deep(9), 2000, Recipe(1e-3, ADAMW, COSINE)
    )
    yield Problem("vote", "votes, SGD", TABLE, split(VOTE, 600), shallow(8, 2), 2000, sgd)
    yield Problem("loans", "loans, 12% refused", TABLE, split(LOANS, 900), shallow(12, 2), 1500, adamw, balanced=True)
    yield Problem("quakes", "earthquakes", TABLE, split(QUAKES, 600), deep(4), 2000, adamw)
    yield Problem("cancer-alike", "breast cancer, look-alikes", TABLE, alike, shallow(30, 2), 1200, adamw)


def all_series() -> Iterator[Problem]:
    vowels = shipped_series("aeon", "JapaneseVowels_eq")
    vowels_40 = split(vowels, 400, flips(0.4))
    italy = shipped_series("aeon", "ItalyPowerDemand")
    arrows, leaves = shipped_series("aeon", "ArrowHead", 2), shipped_series("aeon", "OSULeaf", 3)
    marks = split(flat(forecast("Ecdat/Garch", "ddm")), 800)
    tecator = flat(shipped_series("sktime", "Tecator"))
    sunspots = split(forecast("datasets/sunspot.month", "sunspot.month", root=True), 800)
    cycle = Recipe(5e-3, ADAMW, ONE_CYCLE)

    yield Problem("vowels-gru", "vowels, GRU, 40%", SERIES, vowels_40, gru(12, 9), 1000, Recipe(5e-3))
    yield Problem(
        "vowels", "vowels, convnet", SERIES, split(vowels, 400), convnet_1d(12, 9), 1200, Recipe(1e-3), noisy=False
    )
    yield Problem(
        "italy", "power demand, 20%", SERIES, split(italy, 500, flips(0.2)), convnet_1d(1, 2), 1500, Recipe(1e-3)
    )
    yield Problem(
        "arrows", "arrow heads", SERIES, split(arrows, 120), convnet_1d(1, 3, batch_norm=True), 800, cycle, noisy=False
    )
    yield Problem(
        "leaves",
        "leaves, step decay",
        SERIES,
        split(leaves, 280),
        convnet_1d(1, 6, batch_norm=True),
        1200,
        Recipe(2e-3, ADAMW, STEPS),
        noisy=False,
    )
    yield Problem("marks", "exchange rate, hardly anything to learn", SERIES, marks, shallow(24), 1500, Recipe(1e-3))
    yield Problem("tecator", "fat by spectrum", SERIES, split(tecator, 150), shallow(100), 2500, Recipe(1e-3), 16)
    yield Problem("sunspots", "sunspots, GRU", SERIES, sunspots, gru(1, 1, 24), 1200, Recipe(3e-3))


def images() -> Iterator[Problem]:
    shapes, scans = mnist1d, toy("digits", pixels)
    shapes_20, shapes_10 = split(shapes, 1000, flips(0.2)), split(shapes, 1000, flips(0.1))
    alike, mislabeled = split(scans, 1000, look_alikes(0.3)), split(scans, 1000, flips(0.2))
    cosine, adamw = Recipe(0.05, SGD, COSINE), Recipe(1e-3)

    yield Problem(
        "shapes", "MNIST-1D, convnet", IMAGE, split(shapes, 1000), convnet_1d(1, 10), 2500, Recipe(2e-3), noisy=False
    )
    yield Problem(
        "shapes-bn",
        "MNIST-1D, BatchNorm, 20%, step decay",
        IMAGE,
        shapes_20,
        convnet_1d(1, 10, batch_norm=True),
        1500,
        Recipe(2e-3, ADAMW, STEPS),
    )
    yield Problem(
        "shapes-shifted",
        "MNIST-1D, shifted, 20%",
        IMAGE,
        shapes_20,
        convnet_1d(1, 10),
        2500,
        Recipe(2e-3),
        augment=shifted,
    )
    yield Problem(
        "shapes-transformer",
        "MNIST-1D, transformer, 10%, one-cycle",
        IMAGE,
        shapes_10,
        patch_transformer(40, 4, 10),
        1500,
        Recipe(3e-3, ADAMW, ONE_CYCLE),
    )
    yield Problem("digits-alike", "digits, look-alikes, 30%", IMAGE, alike, convnet(), 1500, adamw)
    yield Problem(
        "digits-bn", "digits, BatchNorm, 20%, SGD, cosine", IMAGE, mislabeled, convnet(batch_norm=True), 1500, cosine
    )
    yield Problem("digits-nudged", "digits, moved, 40%", IMAGE, digits(0.4), convnet(), 2000, adamw, augment=nudged)
    yield Problem(
        "digits-large",
        "digits, large initial weights",
        IMAGE,
        split(scans, 500),
        large_at_first(shallow(64, 10), 4),
        2500,
        Recipe(1e-3, decay=1.0),
        noisy=False,
    )
    yield Problem(
        "digits-rare",
        "digits, rare classes, 10%",
        IMAGE,
        rare(digits(0.1)),
        shallow(64, 10),
        1500,
        Recipe(0.05, SGD),
        balanced=True,
    )
    yield Problem(
        "photograph", "photograph, noise .4", IMAGE, split(photograph, 1000, gaussian(0.4)), deep(12), 2000, adamw, 64
    )


def texts() -> Iterator[Problem]:
    letters, following = len(ALPHABET), split(next_character(), 1500)
    pieces = snippets()
    pieces_10, counts_20 = split(pieces, 600, flips(0.1)), split(letter_pairs(pieces), 600, flips(0.2))

    yield Problem(
        "letters", "next letter, transformer", TEXT, following, transformer(letters, 12, letters), 1500, Recipe(2e-3)
    )
    yield Problem(
        "letters-gru", "next letter, GRU", TEXT, following, gru(letters, letters, 48, tokens=True), 1200, Recipe(3e-3)
    )
    yield Problem("snippets", "source of text, 10%", TEXT, pieces_10, text_convnet(letters, 6), 1200, Recipe(1e-3))
    yield Problem(
        "letter-pairs", "source of text, pairs, 20%, SGD", TEXT, counts_20, shallow(200, 6), 1500, Recipe(0.02, SGD)
    )


def arithmetic() -> Iterator[Problem]:
    sums, products = group(29, 600), group(31, 650, multiply=True, noise=flips(0.1))
    signs, noisy_signs = parity(800, 30), parity(2000, noise=flips(0.2))
    late, later = Recipe(5e-3, decay=1.0), Recipe(1e-2, decay=2.0)

    yield Problem(
        "sums", "sum mod 29, transformer", ARITHMETIC, sums, group_transformer(29, 32), 2000, later, 128, noisy=False
    )
    yield Problem("products", "product mod 31, 10%", ARITHMETIC, products, pairs(31), 2500, late, 128)
    yield Problem("parity", "parity of 3 in 30", ARITHMETIC, signs, shallow(30, 2), 2500, Recipe(1e-3), noisy=False)
    yield Problem(
        "parity-20", "parity of 3 in 24, 20%, SGD", ARITHMETIC, noisy_signs, shallow(24, 2), 3000, Recipe(0.05, SGD)
    )


def later_problems() -> Iterator[Problem]:
    """Open ones for what the draw has put into the half that is kept back alone."""
    tails, spread = split(EXHAUST, 600, heavy(0.5)), split(QUAKES, 600, uneven(0.6, 3))
    adamw, decaying = Recipe(1e-3), Recipe(1e-3, decay=0.5)
    large = large_at_first(shallow(10), 3)

    yield Problem("exhaust-t2", "exhaust, Student t(2)", TABLE, tails, shallow(3), 2000, adamw)
    yield Problem("quakes-uneven", "earthquakes, uneven, SGD", TABLE, spread, deep(4), 2000, Recipe(0.02, SGD))
    yield Problem(
        "digits-moved",
        "digits, perceptron, moved, 20%",
        IMAGE,
        digits(0.2),
        shallow(64, 10),
        2000,
        adamw,
        augment=nudged,
    )
    yield Problem(
        "sunspots-steps",
        "sunspots, transformer, step decay",
        SERIES,
        split(forecast("datasets/sunspot.month", "sunspot.month", root=True), 600),
        patch_transformer(24, 4, 1),
        1200,
        Recipe(2e-3, ADAMW, STEPS),
    )
    yield Problem(
        "diabetes-large", "diabetes, large initial weights", TABLE, split(toy("diabetes"), 300), large, 2000, decaying
    )


def tiny() -> Iterator[Problem]:
    """For the tests."""
    line, clusters, recipe = regression(256, 1, wave, 0.5), mixture(200, 0), Recipe(1e-2, ADAM)
    noisy = Problem("tiny", "1-D regression", FUNCTION, line, shallow(1), 80, recipe, 64)
    clean = Problem("tiny-classes", "Gaussian mixture", FUNCTION, clusters, shallow(8, 4), 40, recipe, None)
    yield replace(noisy, listed=False)
    yield replace(clean, listed=False, noisy=False)


FIRST = tuple(first_problems())
NEW = (*tables(), *all_series(), *images(), *texts(), *arithmetic())
LATER = tuple(later_problems())
PROBLEMS = {problem.name: problem for problem in (*FIRST, *NEW, *LATER, *tiny())}


def halves(problems: tuple[Problem, ...], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Share the problems of each kind out at random, an odd one to the halves in turn."""
    draw, first, second = random.Random(seed), [], []
    for kind in (TABLE, SERIES, IMAGE, TEXT, ARITHMETIC):
        names = sorted(problem.name for problem in problems if problem.kind == kind)
        draw.shuffle(names)
        half = len(names) // 2 + (len(names) % 2 if len(first) <= len(second) else 0)
        first, second = first + names[:half], second + names[half:]
    return tuple(first), tuple(second)


SPLIT_SEED = 20
"""Of `halves`, fixed before any rule was run on one of the new problems."""

DEVELOP_NEW = (
    *("wine", "doctor", "exhaust", "diamonds", "affairs", "loans", "quakes"),
    *("tecator", "arrows", "vowels", "sunspots"),
    *("shapes", "digits-rare", "digits-bn", "shapes-bn", "digits-alike"),
    *("snippets", "letter-pairs", "parity-20", "products"),
)
REPORT = (
    *("diamonds-uneven", "cancer-alike", "diamonds-t2", "computers", "vote", "wages"),
    *("marks", "leaves", "vowels-gru", "italy"),
    *("shapes-transformer", "digits-large", "shapes-shifted", "photograph", "digits-nudged"),
    *("letters-gru", "letters", "sums", "parity"),
)
"""Kept back: only reported, never looked at while a setting is chosen."""

DEVELOP = (*(problem.name for problem in (*FIRST, *LATER)), *DEVELOP_NEW)
"""Open to whoever chooses a setting."""
