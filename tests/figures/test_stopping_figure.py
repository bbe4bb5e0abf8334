"""The picture of a stopping rule shows every check, the kept and the last weights, and words that stay legible."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from test_figures import words

from lightning_cx.figures import draw
from lightning_cx.figures.sheet import pixels
from lightning_cx.figures.stopping import _powers, _thin
from lightning_cx.instruments import StoppingCurve, quantities
from lightning_cx.loggers.tensorboard import custom_scalars_layout

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"


def geometric(last: int) -> list[int]:
    return sorted({0, last, *(round(1.12**power) for power in range(int(math.log(last) / math.log(1.12)) + 1))})


STEPS = geometric(2000)
BEST = 184


def falling_then_rising(steps: Sequence[int]) -> torch.Tensor:
    time = torch.tensor(steps, dtype=torch.float64)
    return 4 * torch.exp(-time / 60) + 0.3 * (1 - torch.exp(-time / 1500)) + 0.1


def curve(steps: Sequence[int] = STEPS, values: object = None, half_width: object = math.nan, **changes: object):
    values = falling_then_rising(steps) if values is None else torch.as_tensor(values, dtype=torch.float64)
    half = torch.as_tensor(half_width, dtype=torch.float64).expand(len(steps))
    fields = {
        "steps": steps,
        "values": values,
        "low": values - half,
        "high": values + half,
        "kept": None,
        "stopped": None,
        "label": "estimated error",
        "title": "When to stop",
        "reading": "The lower the better.",
    }
    return StoppingCurve(**{**fields, **changes})  # type: ignore[arg-type]


def random(count: int = len(STEPS), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GAPS = torch.where(torch.arange(len(STEPS)) % 3 == 1, torch.nan, random())
SOME_INFINITE = random().index_fill(0, torch.tensor([3, 9]), torch.inf).index_fill(0, torch.tensor([5]), -torch.inf)
DEGENERATE = {
    "typical": curve(half_width=0.1, kept=BEST, stopped=2000),
    "still running": curve(half_width=0.1, kept=BEST),
    "nothing kept": curve(stopped=2000),
    "p-values": curve(values=random(), kept=2000, stopped=2000),
    "no check": curve([], []),
    "no check but marks": curve([], [], kept=0, stopped=5),
    "one check": curve([0], [1.5], 0.5, kept=0),
    "one check late": curve([700], [1.5]),
    "one check, kept and stopped elsewhere": curve([700], [1.5], kept=0, stopped=10_000),
    "two checks": curve([0, 1], [1.0, 2.0], kept=0, stopped=1),
    "all nan": curve(values=[math.nan] * len(STEPS), kept=0, stopped=2000),
    "all infinite": curve(values=[math.inf] * len(STEPS)),
    "gaps": curve(values=GAPS, half_width=0.1, kept=0),
    "kept at a gap": curve(values=GAPS, kept=1),
    "some infinite": curve(values=SOME_INFINITE, half_width=0.1),
    "infinite band": curve(half_width=torch.where(random() > 0.5, torch.inf, 0.1)),
    "band without a lower end": curve(low=torch.full((len(STEPS),), torch.nan), high=random() + 9),
    "band of other signs": curve(low=-random(), high=-random()),
    "band that is far too wide at one check": curve(half_width=0.01 + 1e9 * torch.eye(len(STEPS))[0]),
    "ones": curve(values=torch.ones(len(STEPS)), kept=0),
    "ones with a band": curve(values=torch.ones(len(STEPS)), half_width=0.2),
    "zeros": curve(values=torch.zeros(len(STEPS)), half_width=0.0),
    "negative": curve(values=-1000 * random(), half_width=50.0, kept=5, stopped=2000),
    "hardly different": curve(values=-1.00001e-5 - 1e-10 * random()),
    "rounding": curve(values=1 + 1e-13 * random()),
    "60 decades": curve(values=torch.logspace(30, -30, len(STEPS)), half_width=1.0, kept=2000),
    "600 decades": curve(values=torch.logspace(-305, 300, len(STEPS), dtype=torch.float64)),
    "1e300": curve(values=1e300 * random()),
    "1e289 of both signs": curve(values=1e289 * (random() - 0.5), half_width=1e289),
    "1e-300": curve(values=1e-300 * (1 + random())),
    "subnormal": curve(values=1e-320 * (1 + random())),
    "half precision": curve(values=random()),
    "2000 checks": curve(list(range(0, 20_000, 10)), random(2000), 0.1, kept=50, stopped=19_990),
    "100000 checks with gaps": curve(list(range(100_000)), torch.where(random(100_000) > 0.3, 1.0, torch.nan)),
    "resumed": curve(list(range(10_000, 20_000, 500)), random(20), kept=12_000),
    "a check every 7 steps": curve(list(range(0, 700, 7)), random(100), kept=7),
    "checks from step 900 on": curve([0, 900, 1200, 2000, 5000, 50_000], random(6), kept=900, stopped=50_000),
    "a billion steps": curve([0, 10**6, 10**9], [3.0, 1.0, 2.0], kept=10**6, stopped=10**9),
    "a long $label_": curve(label="a rather $long label_ of what the rule watches, in units that nobody knows " * 3),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_any_data_is_drawn_without_a_warning(name: str) -> None:
    picture = DEGENERATE[name]
    figure = draw(picture)
    image = pixels(figure)
    assert image.shape[1:] == (800, 3)
    assert 300 < image.shape[0] < 900
    assert picture.title in words(figure)
    assert picture.reading in words(figure)
    assert_words_stay_apart_and_inside(figure)


def assert_words_stay_apart_and_inside(figure: Figure) -> None:
    axes = figure.axes[0]
    labels = [*axes.texts, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [text.get_window_extent() for text in labels if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= 800 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def drawn(figure: Figure, colour: str, marker: str = "") -> list[tuple[np.ndarray, np.ndarray]]:
    """Data of the lines with a colour and a marker that have any."""
    lines = [line for line in figure.axes[0].lines if (line.get_color(), line.get_marker()) == (colour, marker)]
    data = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines]
    return [(x, y) for x, y in data if len(x)]


def marks(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if "step" in text.get_text()]


def band(figure: Figure) -> np.ndarray:
    """Corners of the shaded area."""
    (shape,) = [found for found in figure.axes[0].collections if isinstance(found, PolyCollection)]
    return np.concatenate([path.vertices for path in shape.get_paths()] or [np.zeros((0, 2))])


def test_the_line_goes_through_every_check_and_the_band_around_it() -> None:
    picture = curve(half_width=0.05, kept=BEST, stopped=2000)
    figure = draw(picture)
    ((x, y),) = drawn(figure, BLUE)
    np.testing.assert_array_equal(x, STEPS)
    np.testing.assert_array_equal(y, picture.values)
    corners = {(round(float(x), 9), round(float(y), 9)) for x, y in band(figure)}
    for step, value in zip(STEPS, picture.values.tolist(), strict=True):
        assert (step, round(value - 0.05, 9)) in corners
        # What lies above the highest value makes room for the words, unless many bands reach there.
        assert (step, round(value + 0.05, 9)) in corners
    assert f"{len(STEPS)} checks; shaded: error band" in words(figure)


def test_kept_and_last_weights_are_marked_where_they_are() -> None:
    figure = draw(curve(kept=BEST, stopped=2000))
    assert marks(figure) == [f"kept: step {BEST}", "stopped: step 2,000"]
    ((kept, _),) = drawn(figure, ORANGE)
    ((stopped, _),) = drawn(figure, GREY)
    assert kept.tolist() == [BEST, BEST]
    assert stopped.tolist() == [2000, 2000]
    ((x, y),) = drawn(figure, ORANGE, "o")
    assert (x.item(), y.item()) == (BEST, pytest.approx(float(falling_then_rising([BEST])[0])))


def test_there_are_as_many_marks_as_there_is_to_say() -> None:
    assert marks(draw(curve(kept=BEST))) == [f"kept: step {BEST}"]
    assert marks(draw(curve(stopped=2000))) == ["stopped: step 2,000"]
    assert marks(draw(curve(kept=2000, stopped=2000))) == ["stopped: step 2,000"]
    assert marks(draw(curve())) == []
    assert drawn(draw(curve(kept=2000, stopped=2000)), ORANGE, "o") == []


@given(st.sampled_from(STEPS), st.sampled_from(STEPS), st.sampled_from([1, 1000, 100_000]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_words_of_marks_meet_nothing_and_stay_inside(one: int, other: int, unit: int, logarithmic: bool) -> None:
    steps = [unit * step for step in (STEPS if logarithmic else range(1900, 2001))]
    kept, stopped = sorted(unit * (step if logarithmic else 1900 + step // 20) for step in (one, other))
    figure = draw(curve(steps, kept=kept, stopped=stopped))
    axes = figure.axes[0]
    assert axes.get_xscale() == ("symlog" if logarithmic else "linear")
    texts = [text for text in axes.texts if "step" in text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == (1 if kept == stopped else 2)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    if len(boxes) == 2:
        assert not boxes[0].overlaps(boxes[1])
    lines = [line.get_window_extent() for line in axes.lines if line.get_color() in (ORANGE, GREY)]
    assert not any(line.overlaps(box) for line in lines for box in boxes)
    heights = axes.transData.transform(np.column_stack([steps, falling_then_rising(steps)]))[:, 1]
    assert heights.min() > frame.y0 + 5
    assert all(box.y0 > heights.max() + 5 for box in boxes)


def test_the_axis_of_the_steps_turns_logarithmic_for_long_runs_and_still_shows_step_0() -> None:
    short, long = draw(curve(geometric(50))).axes[0], draw(curve()).axes[0]
    assert short.get_xscale() == "linear"
    assert short.get_xlabel() == "step"
    assert long.get_xscale() == "symlog"
    assert long.get_xlabel() == "step (log scale)"
    assert [label.get_text() for label in long.get_xticklabels()] == ["0", "1", "10", "100", "1,000"]
    left, right = long.get_xlim()
    assert left < 0
    assert right > 2000
    places = long.transAxes.inverted().transform(long.transData.transform([(0, 1), (1, 1), (10, 1), (100, 1)]))[:, 0]
    assert 0.005 < places[0] < 0.03
    assert 0.04 < places[1] - places[0] < 0.08
    assert places[2] - places[1] == pytest.approx(places[3] - places[2])


def test_a_run_of_even_steps_far_from_0_has_an_even_axis() -> None:
    axes = draw(DEGENERATE["resumed"]).axes[0]
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[0] == pytest.approx(10_000, rel=0.02)


def test_the_axis_of_the_values_turns_logarithmic_only_for_positive_ones_over_more_than_a_decade() -> None:
    def scale(*values: float) -> str:
        return draw(curve(list(range(len(values))), list(values))).axes[0].get_yscale()

    assert scale(1, 11, 5) == "log"
    assert scale(1, 9, 5) == "linear"
    assert scale(0, 11, 5) == "linear"
    assert scale(-1, 11, 5) == "linear"
    assert scale(math.nan, 1, 11, math.inf) == "log"
    assert scale(math.inf, 1, 9, math.nan) == "linear"
    assert "log scale" in draw(curve([0, 1], [1, 11])).axes[0].get_ylabel()
    assert "log scale" not in draw(curve([0, 1], [1, 9])).axes[0].get_ylabel()


def test_a_p_value_has_an_axis_from_0_to_1() -> None:
    axes = draw(curve([0, 1, 2, 3], [0.0, 0.02, 0.6, 1.0], label="p-value")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert axes.get_ylabel() == "p-value"


def test_the_curve_breaks_where_nothing_could_be_read_and_lone_checks_are_dots() -> None:
    values = [1.0, math.nan, 2.0, math.inf, 3.0, 4.0]
    figure = draw(curve(range(6), values, half_width=[0.1, 0.1, 0.2, 0.1, math.nan, 0.1]))  # type: ignore[arg-type]
    ((_, y),) = drawn(figure, BLUE)
    np.testing.assert_array_equal(y, [1, np.nan, 2, np.nan, 3, 4])
    ((dots, heights),) = drawn(figure, BLUE, "o")
    assert dots.tolist() == [0, 2]
    assert heights.tolist() == [1, 2]
    assert "6 checks; shaded: error band; 1 could not be read; 1 left out: infinite" in words(figure)


def test_a_lone_check_shows_its_band() -> None:
    figure = draw(curve([5], [1.5], 0.5))
    (bar,) = [found for found in figure.axes[0].collections if isinstance(found, LineCollection)]
    np.testing.assert_allclose(bar.get_paths()[0].vertices, [[5, 1], [5, 2]])
    assert "1 check; shaded" in words(figure)


def test_without_a_width_there_is_no_word_of_a_band() -> None:
    assert "shaded" not in words(draw(curve()))
    assert "shaded" not in words(draw(curve(half_width=0.0)))


def test_where_nothing_can_be_shown_the_picture_says_why() -> None:
    assert "nothing checked yet" in words(draw(curve([], [])))
    text = words(draw(DEGENERATE["all nan"]))
    assert "no check gave a finite value" in text
    assert f"{len(STEPS)} could not be read" in text
    assert "stopped: step 2,000" in text
    assert "left out: infinite" in words(draw(DEGENERATE["all infinite"]))


def test_one_wild_band_does_not_flatten_the_curve() -> None:
    values = 2 + torch.sin(torch.arange(len(STEPS)) / 5)
    wild = draw(curve(values=values, half_width=0.01 + 1e9 * torch.eye(len(STEPS))[7])).axes[0].get_ylim()
    assert wild[0] > -5
    assert wild[1] < 10


def test_very_many_checks_keep_their_lowest_and_highest_and_their_gaps() -> None:
    values = random(200_000)
    values[123_456], values[77_777], values[150_000:160_000] = -5, 5, math.nan
    figure = draw(curve(list(range(200_000)), values, kept=123_456))
    ((x, y),) = drawn(figure, BLUE)
    assert len(x) < 2000
    assert (np.nanmin(y), np.nanmax(y)) == (-5, 5)
    assert x[np.nanargmin(y)] == 123_456
    assert np.isnan(y[(x >= 151_000) & (x < 159_000)]).all()
    assert np.isnan(y).any()
    assert not np.isnan(y[(x < 149_000) | (x > 161_000)]).any()


def test_thinning_finds_the_ends_of_each_column_as_a_loop_does() -> None:
    places, values = np.sort(random(5000).numpy()), random(5000, seed=1).numpy()
    expected = set()
    for column in range(400):
        (inside,) = np.nonzero(np.floor(places * 400) == column)
        if len(inside):
            expected |= {inside[values[inside].argmin()], inside[values[inside].argmax()]}
    assert set(_thin(places, values).tolist()) == expected


@pytest.mark.parametrize("name", ["2000 checks", "100000 checks with gaps", "typical"])
def test_files_stay_small(name: str) -> None:
    file = io.BytesIO()
    draw(DEGENERATE[name]).savefig(file, format="png")
    assert len(file.getvalue()) < 100_000


@given(st.floats(-300, 300), st.floats(1, 600))
def test_a_logarithmic_axis_has_a_few_ticks(low: float, decades: float) -> None:
    high = min(low + decades, 301.0)
    if high - low < 1:
        return
    inside = [tick for tick in _powers(10**low, 10**high) if 10**low <= tick <= 10**high]
    assert 2 <= len(inside) <= 9
    assert inside == sorted(inside)


def test_pyplot_and_settings_of_the_user_are_left_alone() -> None:
    picture = curve(half_width=0.1, kept=BEST, stopped=2000, label="a $label_")
    plain = pixels(draw(picture))
    figures, settings = plt.get_fignums(), dict(mpl.rcParams)
    changes = {"axes.grid": True, "xtick.minor.visible": True, "lines.linewidth": 9, "lines.marker": "x"}
    with mpl.rc_context({**changes, "font.size": 30, "axes.facecolor": "red", "patch.force_edgecolor": True}):
        assert np.array_equal(pixels(draw(picture)), plain)
    assert plt.get_fignums() == figures
    assert dict(mpl.rcParams) == settings


def test_the_charts_of_a_rule_stand_in_a_category_of_their_own() -> None:
    interval = [quantities.STOPPING_RISK, quantities.STOPPING_RISK_LOW, quantities.STOPPING_RISK_HIGH]
    single = [
        quantities.STOPPING_NOISE_FLOOR,
        quantities.STOPPING_FITTED_HIGH,
        quantities.STOPPING_DOMINANCE,
        quantities.STOPPING_WHITE_P,
    ]
    layout = custom_scalars_layout([*interval, *single, quantities.STOPPING_CURVE])
    assert list(layout) == ["When to stop"]
    assert list(layout["When to stop"].values()) == [["Margin", interval], *(["Multiline", [tag]] for tag in single)]
    assert custom_scalars_layout([quantities.STOPPING_RISK]) == {}  # a rule without a band has its picture


def test_probabilities_keep_a_linear_axis_however_small_they_are() -> None:
    values = torch.tensor([1e-80, 1e-20, 1e-3, 0.3, 0.6], dtype=torch.float64)
    nothing = torch.full_like(values, torch.nan)
    options = {"label": "p", "title": "Title", "reading": "Read it."}
    for is_share, scale in ((True, "linear"), (False, "log")):
        picture = StoppingCurve([0, 10, 20, 30, 40], values, nothing, nothing, None, None, **options, is_share=is_share)
        assert draw(picture).axes[0].get_yscale() == scale
