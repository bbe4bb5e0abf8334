"""Pictures of any data, degenerate ones too, say what they show and touch nobody's matplotlib."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from lightning_cx.instruments import BandDecay, ModeScatter, Spectrogram
from lightning_cx.tensorboard.band_decay import _spread
from lightning_cx.tensorboard.figures import draw
from lightning_cx.tensorboard.sheet import pixels


def spectrogram(count: int = 20, bands: int = 6, **changes: object) -> Spectrogram:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(count, bands, generator=generator, dtype=torch.float64) + 0.01
    fields = {
        "steps": list(range(0, 10 * count, 10)),
        "values": values,
        "bands": [f"band {i}" for i in range(bands)],
        "title": "A title",
        "reading": "Read it from left to right.",
    }
    return Spectrogram(**{**fields, **changes})  # type: ignore[arg-type]


def scatter(modes: int = 30, **changes: object) -> ModeScatter:
    generator = torch.Generator().manual_seed(0)
    fields = {
        "step": 7,
        "singular_values": torch.rand(modes, generator=generator).sort(descending=True).values,
        "medians": torch.rand(modes, generator=generator),
        "whole_median": 0.3,
        "title": "Another title",
        "reading": "Each dot is a mode.",
    }
    return ModeScatter(**{**fields, **changes})  # type: ignore[arg-type]


def decay(count: int = 20, bands: int = 6, **changes: object) -> BandDecay:
    rates = torch.logspace(-1, -3, bands, dtype=torch.float64)
    fields = {
        "steps": list(range(0, 10 * count, 10)),
        "values": torch.exp(-rates * 10 * torch.arange(count, dtype=torch.float64)[:, None]),
        "bands": [f"band {i}" for i in range(bands)],
        "half_lives": (0.69 / rates).tolist(),
        "title": "A third title",
        "reading": "Each line is a band.",
    }
    return BandDecay(**{**fields, **changes})  # type: ignore[arg-type]


def earlier(*steps: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    modes = scatter()
    return [(step, modes.singular_values, modes.medians) for step in steps]


def words(figure: mpl.figure.Figure) -> str:
    axes = [text.get_text() for axis in figure.axes for text in axis.texts]
    return " ".join([text.get_text() for text in figure.texts] + axes)


DEGENERATE = {
    "plain": spectrogram(),
    "one step": spectrogram(1),
    "one band": spectrogram(5, 1),
    "no step": spectrogram(0),
    "zeros": spectrogram(values=torch.zeros(20, 6)),
    "nan": spectrogram(values=torch.full((20, 6), torch.nan)),
    "inf and a gap": spectrogram(values=torch.rand(20, 6).index_fill(0, torch.tensor([3]), torch.inf)),
    "thousands of steps": spectrogram(5000),
    "tiny": spectrogram(values=torch.rand(20, 6).double() * 1e-300),
    "modes": scatter(),
    "no mode": scatter(0),
    "one mode": scatter(1),
    "modes without strength": scatter(singular_values=torch.zeros(30)),
    "modes before others": scatter(earlier=earlier(0, 3, 5)),
    "modes of one earlier step at the same step": scatter(earlier=earlier(7)),
    "earlier modes without strength": scatter(earlier=[(0, torch.zeros(30), torch.rand(30))]),
    "no present mode but earlier ones": scatter(0, earlier=earlier(0, 3)),
    "lines": decay(),
    "lines of one step": decay(1),
    "lines of no step": decay(0),
    "one line": decay(5, 1),
    "no line": decay(5, 0),
    "twelve lines that end together": decay(20, 12, values=torch.ones(20, 12)),
    "lines of zeros": decay(values=torch.zeros(20, 6)),
    "lines of nan": decay(values=torch.full((20, 6), torch.nan)),
    "a band without energy and a gap": decay(values=torch.ones(20, 6).index_fill(1, torch.tensor([2]), 0)),
    "infinite energies": decay(values=torch.rand(20, 6).index_fill(0, torch.tensor([3]), torch.inf)),
    "thousands of readings": decay(5000),
    "energies that grow a million times": decay(values=torch.logspace(0, 9, 20).double()[:, None].repeat(1, 6)),
    "unknown and endless half-lives": decay(half_lives=[float("nan"), float("inf"), 1.0, 12.3, 1e7, 0.01]),
    "modes without a median": scatter(medians=torch.full((30,), torch.nan), whole_median=float("nan")),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_any_data_is_drawn_without_a_warning(name: str) -> None:
    picture = DEGENERATE[name]
    figure = draw(picture)
    image = pixels(figure)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (800, 3)
    assert 300 < image.shape[0] < 900
    assert picture.title in words(figure)
    assert picture.reading in words(figure)


def test_a_spectrogram_names_its_bands_from_the_bottom_up_and_covers_its_steps() -> None:
    axes = draw(spectrogram()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"band {i}" for i in range(6)]
    assert axes.get_xlim() == (0.0, 200.0)
    assert "step" in axes.get_xlabel()


def test_uneven_steps_keep_their_places() -> None:
    axes = draw(spectrogram(4, steps=[0, 1, 50, 400])).axes[0]
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] >= 400


def test_a_scatter_marks_noise_and_the_whole_gradient() -> None:
    figure = draw(scatter())
    places = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert sorted(places) == [0.3, 0.5]
    assert "noise" in words(figure)
    assert figure.axes[0].get_yscale() == "log"


def test_earlier_steps_lie_behind_the_present_one_with_a_scale_of_steps() -> None:
    alone, together = draw(scatter()), draw(scatter(earlier=earlier(0, 3)))
    dots = [line for line in together.axes[0].lines if line.get_marker() == "o"]
    assert len(dots) == 3
    assert len({line.get_markerfacecolor() for line in dots}) == 3
    assert dots[-1].get_markersize() > dots[0].get_markersize()
    assert len(alone.axes) == 1
    assert together.axes[1].get_ylabel() == "step"
    assert together.axes[1].get_ylim() == (0, 7)


def test_each_line_is_named_with_its_half_life() -> None:
    picture = decay(half_lives=[12.3, 4.567, float("inf"), float("nan"), 1234.5, 50.0])
    text = words(draw(picture))
    for label in ("band 0: half in 12 steps", "band 1: half in 4.6 steps", "band 2: no certain fall", "1,234 steps"):
        assert label in text
    assert "band 3:" not in text
    dead = decay(values=decay().values.index_fill(1, torch.tensor([3]), 0))
    assert "no energy: band 3" in words(draw(dead))


@pytest.mark.parametrize("name", ["lines", "twelve lines that end together", "unknown and endless half-lives"])
def test_labels_of_lines_neither_overlap_nor_leave_the_picture(name: str) -> None:
    figure = draw(DEGENERATE[name])
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if text.get_text().startswith("band")]
    boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.y0)
    assert len(boxes) == len(DEGENERATE[name].bands)
    assert all(above.y0 >= below.y1 - 2 for below, above in pairwise(boxes))
    assert all(box.x1 <= 800 for box in boxes)


def test_labels_move_as_little_as_they_must() -> None:
    assert _spread([], 0.1) == []
    assert _spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert _spread([0.5, 0.52], 0.1) == [0.46, 0.56]
    assert _spread([0.0, 0.0], 0.1) == [0.0, 0.1]
    assert _spread([1.0, 1.0, 1.0], 0.1) == [0.8, 0.9, 1.0]
    assert _spread([0.2, 0.25, 0.4], 0.2) == pytest.approx([0.0833333, 0.2833333, 0.4833333], abs=1e-6)


def test_neither_pyplot_nor_rcparams_are_touched() -> None:
    plt.get_backend()  # pyplot settles it when it is first asked
    before, figures = mpl.rcParams.copy(), plt.get_fignums()
    pixels(draw(spectrogram()))
    pixels(draw(scatter(earlier=earlier(0, 3))))
    pixels(draw(decay()))
    assert mpl.rcParams == before
    assert plt.get_fignums() == figures


@pytest.mark.parametrize("name", ["plain", "modes before others", "lines"])
def test_a_users_style_does_not_change_our_pictures(name: str) -> None:
    plain = pixels(draw(DEGENERATE[name]))
    style = {"font.size": 30, "axes.grid": True, "figure.facecolor": "black", "lines.linewidth": 9, "lines.marker": "x"}
    with mpl.rc_context(style):
        styled = pixels(draw(DEGENERATE[name]))
    assert np.array_equal(plain, styled)


def test_an_unknown_picture_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="no rule to draw a str"):
        draw("a picture")  # type: ignore[arg-type]
