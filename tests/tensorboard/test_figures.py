"""Pictures of any data, degenerate ones too, say what they show and touch nobody's matplotlib."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from lightning_cx.instruments.base import ModeScatter, Spectrogram
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


def test_neither_pyplot_nor_rcparams_are_touched() -> None:
    plt.get_backend()  # pyplot settles it when it is first asked
    before, figures = mpl.rcParams.copy(), plt.get_fignums()
    pixels(draw(spectrogram()))
    pixels(draw(scatter()))
    assert mpl.rcParams == before
    assert plt.get_fignums() == figures


def test_a_users_style_does_not_change_our_pictures() -> None:
    plain = pixels(draw(spectrogram()))
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "figure.facecolor": "black", "lines.linewidth": 9}):
        styled = pixels(draw(spectrogram()))
    assert np.array_equal(plain, styled)


def test_an_unknown_picture_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="no rule to draw a str"):
        draw("a picture")  # type: ignore[arg-type]
