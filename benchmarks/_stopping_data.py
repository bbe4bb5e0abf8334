"""Training and test data of the stopping benchmark, drawn by seed: where noise is added, the test is without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from _stopping_sources import ALPHABET, documents, folder_of, numbers, r_table, series, statsmodels_table, tokens
from _workloads import Losses, cross_entropies, squared_errors
from torch import Tensor

Array = Any  # of numpy, float64 unless it holds classes
Random = np.random.Generator

TEST = 4000  # fresh examples of what is generated
MOST_TESTED = 2000  # of a data set
SHAPES = 3000  # of MNIST-1D, to train and to test on; one more is left over


@dataclass(frozen=True)
class Data:
    """Training examples with their noise, test examples without.

    Attributes:
        x: ``[n, ...]`` inputs.
        y: ``[n, outputs]`` targets or ``[n]`` classes, noise included.
        test_x: ``[m, ...]``.
        test_y: As `y`, before any noise was added; noise of the data set's own is in it.
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
        return replace(self, x=self.x[rows], y=self.y[rows])


Draw = Callable[[Random], Data]
Noise = Callable[[Array, Array, Random], Array]
"""Inputs and targets of the training examples, to targets with noise."""


# Noise


def gaussian(deviation: float) -> Noise:
    return lambda x, y, rng: y + deviation * rng.normal(size=y.shape)


def heavy(scale: float) -> Noise:
    """Student t with two degrees of freedom: no variance."""
    return lambda x, y, rng: y + scale * rng.standard_t(2, size=y.shape)


def uneven(deviation: float, column: int) -> Noise:
    """Gaussian, of a deviation that grows exponentially with one of the inputs."""

    def add(x: Array, y: Array, rng: Random) -> Array:
        growth = np.exp(x[:, column].clip(-2, 2))[:, None]
        return y + deviation * growth / growth.mean() * rng.normal(size=y.shape)

    return add


def flips(share: float) -> Noise:
    """Labels of which a share is drawn anew, so that one in so many as there are classes stays right."""
    return lambda x, y, rng: redrawn(y, share, int(y.max()) + 1, rng)


def redrawn(classes: Array, share: float, count: int, rng: Random) -> Array:
    chosen = rng.random(len(classes)) < share
    return np.where(chosen, rng.integers(0, count, len(classes)), classes)


def look_alikes(share: float) -> Noise:
    """A share gets the label of the nearest other class: those whose inputs lie nearest to its mean, as people err."""

    def flip(x: Array, y: Array, rng: Random) -> Array:
        flat, classes = x.reshape(len(x), -1), np.unique(y)
        means = np.stack([flat[y == k].mean(0) for k in classes])
        distances = ((flat[:, None] - means) ** 2).sum(2)
        own = np.searchsorted(classes, y)
        rows = np.arange(len(y))
        others = distances.copy()
        others[rows, own] = np.inf
        doubt = distances[rows, own] - others.min(1)  # positive where another class is nearer than the own
        wrong = np.argsort(-doubt)[: round(share * len(y))]
        noisy = y.copy()
        noisy[wrong] = classes[others[wrong].argmin(1)]
        return noisy

    return flip


# Generated


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


def group(modulus: int, examples: int, multiply: bool = False, noise: Noise | None = None) -> Draw:
    """All pairs of numbers below a prime, and their sum or product modulo it; tested on the pairs not trained on."""

    def load() -> tuple[Array, Array]:
        a, b = np.divmod(np.arange(modulus**2), modulus)
        return np.stack([a, b], 1), (a * b if multiply else a + b) % modulus

    return split(load, examples, noise)


def parity(examples: int, bits: int = 24, relevant: int = 3, noise: Noise | None = None) -> Draw:
    """The product of three of the signs; no smaller set of them says anything about it."""

    def draw(rng: Random) -> Data:
        x, test_x = (rng.choice([-1.0, 1.0], (count, bits)) for count in (examples, TEST))
        y, test_y = ((signs[:, :relevant].prod(1) > 0).astype(int) for signs in (x, test_x))
        return as_data(x, y if noise is None else noise(x, y, rng), test_x, test_y)

    return draw


# Data sets


def split(load: Callable[[], tuple[Array, Array]], examples: int, noise: Noise | None = None) -> Draw:
    """Train on some rows, chosen anew for each seed, and test on others.

    Real targets are scaled by mean and deviation of the training rows.
    """

    def draw(rng: Random) -> Data:
        x, y = load()
        rows = rng.permutation(len(y))
        train, test = rows[:examples], rows[examples:][:MOST_TESTED]
        if np.issubdtype(y.dtype, np.floating):
            y = (y.reshape(len(y), -1) - y[train].mean(0)) / y[train].std(0)
        return as_data(x[train], y[train] if noise is None else noise(x[train], y[train], rng), x[test], y[test])

    return draw


def z_scores(x: Array) -> Array:
    return (x - x.mean(0)) / x.std(0)


def toy(name: str, scale: Callable[[Array], Array] = z_scores) -> Callable[[], tuple[Array, Array]]:
    """One of the small data sets that scikit-learn loads."""

    def load() -> tuple[Array, Array]:
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return scale(x), y

    return load


def pixels(x: Array) -> Array:
    """Of the digits, which have 17 levels."""
    return x / 16


def classes(name: str, examples: int, share: float, scale: Callable[[Array], Array] = z_scores) -> Draw:
    return split(toy(name, scale), examples, flips(share))


def digits(share: float) -> Draw:
    return classes("digits", 1000, share, pixels)


def cancer(share: float) -> Draw:
    return classes("breast_cancer", 380, share)


def rare(draw: Draw, least: float = 0.08) -> Draw:
    """Fewer and fewer training examples the higher the class, down to a share of the first's; the test stays even."""

    def thin(rng: Random) -> Data:
        data = draw(rng)
        kept = least ** (data.y.double() / data.y.max()).numpy()
        return data.take(torch.as_tensor(np.flatnonzero(rng.random(len(kept)) < kept)))

    return thin


Column = tuple[str, Callable[[Array], Array]]


def table(read: Callable[[], dict[str, list[str]]], inputs: str, target: str, change: str = "") -> Callable[..., Any]:
    """Columns by name.

    Args:
        read: Gives the table.
        inputs: Names of the columns, separated by spaces.
        target: Name of one.
        change: "log" (of 1 + the target) of a positive target, "class" to make it classes, "any" for above 0 or not.
    """

    def load() -> tuple[Array, Array]:
        found = read()
        y = numbers(found, target)[:, 0]
        changed = {"log": np.log1p, "class": as_classes, "any": lambda y: (y > 0).astype(int)}.get(change, np.copy)(y)
        return z_scores(numbers(found, *inputs.split())), changed

    return load


def as_classes(y: Array) -> Array:
    return np.unique(y, return_inverse=True)[1]


DIAMONDS = table(lambda: r_table("ggplot2/diamonds"), "carat cut color clarity depth table x y z", "price", "log")
WAGES = table(lambda: r_table("car/SLID"), "education age sex language", "wages", "log")
COMPUTERS = table(lambda: r_table("Ecdat/Computers"), "speed hd ram screen cd multi premium ads trend", "price", "log")
EXHAUST = table(lambda: r_table("robustbase/NOxEmissions"), "julday LNOxEm sqrtWS", "LNOx")
LOANS = table(
    lambda: r_table("Ecdat/Hdma"), "dir hir lvr ccs mcs pbcr dmi self single uria comdominiom black", "deny", "class"
)
QUAKES = table(lambda: r_table("datasets/quakes"), "lat long depth mag", "stations", "log")
AFFAIRS = table(
    lambda: statsmodels_table("fair"),
    "rate_marriage age yrs_married children religious educ occupation occupation_husb",
    "affairs",
    "any",
)
DOCTOR = table(
    lambda: statsmodels_table("randhie"), "lncoins idp lpi fmde physlm disea hlthg hlthf hlthp", "mdvis", "log"
)
VOTE = table(lambda: statsmodels_table("anes96"), "popul TVnews selfLR ClinLR DoleLR age educ income", "vote", "class")


def wine_colour() -> tuple[Array, Array]:
    """How deep the colour of a wine is, from what else its chemists measured."""
    x, _ = toy("wine")()
    colour = 9
    return np.delete(x, colour, axis=1), x[:, colour]


def shipped_series(package: str, name: str, every: int = 1) -> Callable[[], tuple[Array, Array]]:
    """Every channel scaled as a whole."""

    def load() -> tuple[Array, Array]:
        x, y = series(package, name)
        x = x[:, :, ::every]
        return (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True), y

    return load


def flat(load: Callable[[], tuple[Array, Array]]) -> Callable[[], tuple[Array, Array]]:
    def one_row() -> tuple[Array, Array]:
        x, y = load()
        return x.reshape(len(x), -1), y

    return one_row


def forecast(name: str, column: str, root: bool = False, length: int = 24) -> Callable[[], tuple[Array, Array]]:
    """The next value of a series, or of its square root, from those before it."""

    def load() -> tuple[Array, Array]:
        values = numbers(r_table(name), column)[:, 0]
        values = z_scores(np.sqrt(values) if root else values)
        windows = np.lib.stride_tricks.sliding_window_view(values, length + 1)
        return windows[:, None, :-1].copy(), windows[:, -1].copy()

    return load


@cache
def mnist1d() -> tuple[Array, Array]:
    """Greydanus 2020: ten shapes, shifted, sheared and in noise, ``[n, 1, 40]``; the same for all seeds."""
    folder_of("mnist1d")
    from mnist1d.data import get_dataset_args, make_dataset  # type: ignore[import-not-found]

    arguments = get_dataset_args(as_dict=False)
    arguments.num_samples, arguments.train_split = SHAPES, 1 - 1 / SHAPES
    made = make_dataset(arguments)
    return made["x"].reshape(-1, 1, 40), made["y"]


def photograph() -> tuple[Array, Array]:
    """Brightness of a photograph at places, 64 x 64 means of pixels: rough, but no noise."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("flower.jpg").mean(2)[:384, 128:512]
    small = grey.reshape(64, 6, 64, 6).mean((1, 3))
    rows, columns = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    frequencies = np.pi * 2.0 ** np.arange(3)
    angles = np.stack([rows.ravel(), columns.ravel()], 1)[:, :, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], 2).reshape(64 * 64, -1), small.ravel()


# Text


def next_character(length: int = 12) -> Callable[[], tuple[Array, Array]]:
    def load() -> tuple[Array, Array]:
        text = tokens(" ".join(documents().values()))
        windows = np.lib.stride_tricks.sliding_window_view(text, length + 1)
        return windows[:, :-1].copy(), windows[:, -1].copy()

    return load


SUBJECTS = ("breast_cancer", "iris", "kddcup99", "lfw", "rcv1", "wine_data")


def snippets(length: int = 20) -> Callable[[], tuple[Array, Array]]:
    """Which of six documents a piece of text comes from."""

    def load() -> tuple[Array, Array]:
        pieces, subjects = [], []
        for number, subject in enumerate(SUBJECTS):
            text = tokens(documents()[subject])
            found = np.lib.stride_tricks.sliding_window_view(text, length)[::length]
            pieces.append(found)
            subjects.append(np.full(len(found), number))
        return np.concatenate(pieces), np.concatenate(subjects)

    return load


def letter_pairs(load: Callable[[], tuple[Array, Array]]) -> Callable[[], tuple[Array, Array]]:
    """How often each of the most frequent 200 pairs of neighbouring characters is in a text."""

    def count() -> tuple[Array, Array]:
        x, y = load()
        codes = x[:, :-1] * len(ALPHABET) + x[:, 1:]
        frequent = np.argsort(-np.bincount(codes.ravel(), minlength=len(ALPHABET) ** 2), kind="stable")[:200]
        return (codes[:, :, None] == frequent).sum(1).astype(float), y

    return count


def as_data(x: Array, y: Array, test_x: Array, test_y: Array) -> Data:
    """Tokens and classes as whole numbers, everything else as float32."""
    inputs = torch.int64 if np.issubdtype(x.dtype, np.integer) else torch.float32
    targets = torch.float32 if y.ndim == 2 else torch.int64
    return Data(
        torch.as_tensor(x, dtype=inputs),
        torch.as_tensor(y, dtype=targets),
        torch.as_tensor(test_x, dtype=inputs),
        torch.as_tensor(test_y, dtype=targets),
    )


# Augmentation


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each series ``[n, channels, length]`` turned by up to 4 places, with a little noise."""
    steps = torch.randint(-4, 5, (len(x), 1), generator=generator)
    places = (torch.arange(x.shape[2]) + steps) % x.shape[2]
    turned = x.gather(2, places[:, None].expand_as(x))
    return turned + 0.05 * torch.randn(x.shape, generator=generator)


def nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each 8 x 8 picture, a row of 64, moved by up to one pixel up or down and left or right."""
    pictures = torch.nn.functional.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(x), 1), generator=generator)
    rows, columns = torch.arange(8) + down, torch.arange(8) + right
    return pictures[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]].reshape(len(x), 64)
