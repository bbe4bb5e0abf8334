"""The timeline shows the path, a bar for each dwell and a line for each escape, of any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from test_figures import words

from lightning_cx.figures import draw
from lightning_cx.figures.sheet import pixels
from lightning_cx.instruments import DwellTimeline

Dwells = list[tuple[int, int, float, bool]]


def timeline(distances: torch.Tensor, dwells: Dwells | None = None) -> DwellTimeline:
    return DwellTimeline([10 * i for i in range(len(distances))], distances, dwells or [], "A title", "Read it so.")


PATH = torch.cat([torch.zeros(20), torch.linspace(0, 3, 5), torch.full((20,), 3.0)])
DEGENERATE = {
    "two dwells": timeline(PATH, [(0, 190, 0.1, True), (250, 440, 3.0, False)]),
    "none": timeline(PATH),
    "empty": timeline(torch.zeros(0)),
    "one": timeline(torch.ones(1)),
    "zeros": timeline(torch.zeros(30)),
    "nan": timeline(torch.full((30,), math.nan)),
    "some inf": timeline(torch.cat([PATH, torch.tensor([math.inf, math.nan])])),
    "1e300": timeline(PATH.double() * 1e300),
    "1e-300": timeline(PATH.double() * 1e-300, [(0, 190, 1e-300, True)]),
    "half precision": timeline(PATH.bfloat16()),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_any_path_is_drawn_without_a_warning(name: str) -> None:
    image = pixels(draw(DEGENERATE[name]))
    assert image.shape[1:] == (800, 3)
    assert 300 < image.shape[0] < 900
    assert "A title" in words(draw(DEGENERATE[name]))


def test_the_path_its_dwells_and_its_escapes_are_where_they_belong() -> None:
    axes = draw(DEGENERATE["two dwells"]).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), PATH.numpy())
    bars = [bar.get_segments()[0].tolist() for bar in axes.collections if isinstance(bar, LineCollection)]
    assert bars == [[[0, 0.1], [190, 0.1]], [[250, 3.0], [440, 3.0]]]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [190]
    assert "2 dwells, 1 escape" in words(draw(DEGENERATE["two dwells"]))


def test_points_that_are_left_out_are_counted() -> None:
    assert "0 dwells, 0 escapes; 2 points left out: not finite" in words(draw(DEGENERATE["some inf"]))
