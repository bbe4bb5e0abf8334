"""Data that packages ship, read from their files: nothing is downloaded, and no package is imported for its files."""

from __future__ import annotations

import csv
import io
import tarfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # of numpy
Table = dict[str, list[str]]
MISSING = {"", "NA", "NaN"}


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"this problem reads data that {package} brings: see how `make benchmark-stopping` installs it."
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def r_table(name: str) -> Table:
    """One of the tables of R packages in pydataset, as "ggplot2/diamonds"."""
    with tarfile.open(folder_of("pydataset") / "resources.tar.gz", "r|gz") as archive:
        for member in archive:
            if member.name == f"resources/rdata/csv/{name}.csv":
                file = archive.extractfile(member)
                assert file is not None
                return columns_of(io.StringIO(file.read().decode()))
    raise FileNotFoundError(f"pydataset has no table {name!r}")


@cache
def statsmodels_table(name: str) -> Table:
    with (folder_of("statsmodels") / "datasets" / name / f"{name}.csv").open() as file:
        return columns_of(file)


def columns_of(file: Any) -> Table:
    """Complete rows, column by column."""
    start = file.tell()
    delimiter = "\t" if "\t" in file.readline() else ","
    file.seek(start)
    head, *rows = csv.reader(file, delimiter=delimiter)
    whole = [row for row in rows if not MISSING.intersection(row)]
    names = [name.strip("'") for name in head]
    return dict(zip(names, map(list, zip(*whole, strict=True)), strict=True))


def numbers(table: Table, *names: str) -> Array:
    """Columns as numbers, ``[n, len(names)]``; words become 0, 1, ... in the order of the alphabet."""
    return np.stack([as_numbers(table[name]) for name in names], axis=1)


def as_numbers(column: list[str]) -> Array:
    try:
        return np.array(column, dtype=float)
    except ValueError:
        return np.unique(np.array(column), return_inverse=True)[1].astype(float)


@cache
def series(package: str, name: str) -> tuple[Array, Array]:
    """Training and test part of a `.ts` file together.

    Returns:
        ``[n, channels, length]`` and what stands behind the last colon: numbers, or classes from 0 on.
    """
    folder = folder_of(package) / "datasets" / "data" / name.removesuffix("_eq")
    lines = [line for part in ("TRAIN", "TEST") for line in body_of(folder / f"{name}_{part}.ts")]
    fields = [line.split(":") for line in lines]
    x = np.array([[np.array(channel.split(","), dtype=float) for channel in row[:-1]] for row in fields])
    words = [row[-1] for row in fields]
    y = np.array(words, dtype=float) if "." in words[0] else np.unique(words, return_inverse=True)[1]
    return x, y


def body_of(file: Path) -> list[str]:
    _, body = file.read_text().lower().split("@data\n")
    return body.strip().splitlines()


@cache
def documents() -> dict[str, str]:
    """What scikit-learn says about its data sets, in 31 kinds of lower-case letters, digits as 0 and spaces."""
    files = sorted((folder_of("sklearn") / "datasets" / "descr").glob("*.rst"))
    return {file.stem: "".join(simple(file.read_text())) for file in files}


ALPHABET = " abcdefghijklmnopqrstuvwxyz0.,-"


def simple(text: str) -> str:
    """Characters of `ALPHABET`, any run of others as one space."""
    known = "".join("0" if c.isdigit() else c if c in ALPHABET else " " for c in text.lower())
    return " ".join(known.split())


def tokens(text: str) -> Array:
    return np.array([ALPHABET.index(c) for c in text])
