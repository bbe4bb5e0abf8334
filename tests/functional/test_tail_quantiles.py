"""The table of quantiles is what its script draws, and the interval made of it covers the truth."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from _tail_laws import anisotropic_stable, draw, stable
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cx.functional import alpha_ecf
from lightning_cx.functional.tails.ecf import TABLE, interval

SCRIPT = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tail_quantiles.py")))


def table() -> dict[tuple[int, float, int], tuple[float, float]]:
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == SCRIPT.HEADER
    return {
        (int(row["projections"]), float(row["alpha"]), int(row["n"])): (float(row["low"]), float(row["high"]))
        for row in rows
    }


def test_the_table_has_every_cell_once() -> None:
    assert set(table()) == {
        (kind, alpha, n) for kind in SCRIPT.SAMPLES for alpha in SCRIPT.ALPHAS for n in SCRIPT.SIZES
    }
    assert len(TABLE.read_text().splitlines()) == 1 + len(table())


@pytest.mark.parametrize(("projections", "alpha", "n"), [(1, 0.4, 64), (1, 1.5, 128), (1, 2.0, 256), (16, 1.9, 64)])
def test_a_cell_drawn_again_by_the_script_is_the_same(projections: int, alpha: float, n: int) -> None:
    low, high = table()[projections, alpha, n]
    # The same to the last digit under the torch that drew the table; others have other random numbers, and a quantile
    # of so many fits is known to 2% of the distance between the two.
    assert SCRIPT.cell(projections, alpha, n) == pytest.approx((low, high), abs=0.08 * (high - low))


@pytest.mark.parametrize(
    ("projections", "alpha", "n"),
    [
        (1, 0.8, 512),
        (16, 1.0, 128),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((1, 1.3, 1024), (1, 1.95, 512), (16, 1.7, 256))),
    ],
)
def test_a_cell_drawn_with_other_numbers_agrees(projections: int, alpha: float, n: int) -> None:
    fits = SCRIPT.simulated_indices(projections, alpha, n, 2000, draw(7))
    low, high = table()[projections, alpha, n]
    # 2.5% of 2000 is 50 +- 7; the table itself is known to half of that.
    assert int((fits < low).sum()) == pytest.approx(50, abs=30)
    above = int((fits > high).sum())
    assert above == pytest.approx(50, abs=30) if high < 2 else above == 0


@pytest.mark.parametrize("alpha", [1.3, 1.5, 1.7, 1.9])
@pytest.mark.parametrize("n", [512, pytest.param(4096, marks=pytest.mark.slow)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(alpha: float, n: int) -> None:
    fits = [alpha_ecf(stable(alpha, n, seed)) for seed in range(400)]
    covered = sum(bool(fit.low <= alpha <= fit.high) for fit in fits) / len(fits)
    assert 0.92 <= covered <= 0.98  # .95 +- 3 of .011


@pytest.mark.parametrize("d", [2, *(pytest.param(d, marks=pytest.mark.slow) for d in (8, 200))])
@pytest.mark.parametrize("alpha", [1.5, 1.9])
def test_the_interval_of_vectors_covers_the_truth_whatever_their_dimension(alpha: float, d: int) -> None:
    fits = [alpha_ecf(anisotropic_stable(alpha, 512, d, seed)) for seed in range(300)]
    covered = sum(bool(fit.low <= alpha <= fit.high) for fit in fits) / len(fits)
    assert 0.90 <= covered <= 0.99


def test_the_interval_narrows_with_the_number_of_samples_also_beyond_the_table() -> None:
    widths = [high - low for low, high in (interval(1.5, n, 1, 1.0) for n in (64, 100, 512, 4096, 65536))]
    assert widths == sorted(widths, reverse=True)
    assert widths[3] / widths[4] == pytest.approx(4, rel=0.05)


def test_more_and_less_correlated_projections_narrow_it() -> None:
    def width(projections: int, correlation: float) -> float:
        low, high = interval(1.6, 512, projections, correlation)
        return high - low

    assert width(16, 0.0) < width(16, 0.5) < width(16, 1.0)
    assert width(16, 1.0) == pytest.approx(width(1, 1.0))
    assert width(16, 0.0) < width(4, 0.0) < width(2, 0.0) < width(1, 0.0)
    assert width(64, 0.0) == width(16, 0.0)  # no more is known of more


@settings(max_examples=100, deadline=None)
@given(
    index=st.floats(0.05, 2.0),
    n=st.integers(64, 100_000),
    projections=st.integers(1, 40),
    correlation=st.floats(0, 1),
)
def test_an_interval_is_ordered_and_lies_within_0_and_2(
    index: float, n: int, projections: int, correlation: float
) -> None:
    low, high = interval(index, n, projections, correlation)
    assert 0 <= low <= high <= 2
    if index >= 0.6:
        assert low <= index <= high + 1e-9


def test_ends_move_with_the_index() -> None:
    indices = torch.linspace(0.1, 2, 60).tolist()
    lows, highs = zip(*(interval(index, 700, 16, 0.2) for index in indices), strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs)
    assert lows[0] == 0
    assert highs[-1] == 2
