"""The two pictures of a tail show what an independent computation gives, of any data, and touch nobody's matplotlib."""

from __future__ import annotations

import math
from statistics import NormalDist

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from test_figures import words

from lightning_cx.instruments import QuantilePlot, SurvivalPlot
from lightning_cx.tensorboard.figures import draw
from lightning_cx.tensorboard.marks import EXTREMES, MARKERS, thin
from lightning_cx.tensorboard.sheet import pixels


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cauchy(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tan(
        math.pi * (torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5)
    )


def quantiles(**samples: torch.Tensor) -> QuantilePlot:
    return QuantilePlot(1234, samples, "A title", "Dots on the line: normal.")


def survival(magnitudes: torch.Tensor, index: float = math.nan, tail: int = 10) -> SurvivalPlot:
    return SurvivalPlot(1234, magnitudes, index, tail, "A title", "A power law is a straight line.")


DEGENERATE = {
    "normal": quantiles(noise=normal(500)),
    "Cauchy": quantiles(noise=cauchy(5000)),
    "two samples": quantiles(single=cauchy(1000), sums=normal(64)),
    "no sample": quantiles(),
    "empty": quantiles(noise=torch.zeros(0)),
    "one value": quantiles(noise=torch.ones(1)),
    "constant": quantiles(noise=torch.full((100,), 3.0)),
    "half constant": quantiles(noise=torch.cat([torch.zeros(80), normal(20)]), other=normal(50)),
    "nan": quantiles(noise=torch.full((50,), math.nan)),
    "some inf": quantiles(noise=torch.cat([normal(50), torch.tensor([math.inf, -math.inf, math.nan])])),
    "1e300": quantiles(noise=cauchy(300) * 1e300),
    "1e-300": quantiles(noise=cauchy(300) * 1e-300),
    "half precision": quantiles(noise=normal(300).bfloat16()),
    "many samples": quantiles(**{f"sample number {i} with a rather long name indeed": normal(40, i) for i in range(6)}),
    "power law": survival(cauchy(4000).abs(), 1.0, 126),
    "light": survival(normal(1000).abs()),
    "no magnitude": survival(torch.zeros(0)),
    "one magnitude": survival(torch.ones(1)),
    "equal magnitudes": survival(torch.ones(100), 2.0),
    "zeros": survival(torch.zeros(100)),
    "zeros and others": survival(torch.cat([torch.zeros(100), cauchy(100).abs()]), 1.0, 20),
    "magnitudes of nan": survival(torch.full((50,), math.nan)),
    "magnitudes with inf": survival(torch.cat([cauchy(100).abs(), torch.tensor([math.inf])]), 1.1),
    "600 decades": survival(torch.logspace(-300, 300, 400, dtype=torch.float64), 0.1, 40),
    "hardly different": survival(1 + torch.arange(100, dtype=torch.float64) * 1e-9, 3.0),
    "a tail longer than the data": survival(cauchy(50).abs(), 1.0, 60),
    "two magnitudes": survival(torch.tensor([1.0, 2.0]), 1.0, 1),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_any_data_is_drawn_without_a_warning(name: str) -> None:
    picture = DEGENERATE[name]
    image = pixels(draw(picture))
    assert image.shape[1:] == (800, 3)
    assert 300 < image.shape[0] < 900
    assert picture.title in words(draw(picture))


def lines(figure: mpl.figure.Figure, marker: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Data of the series with a marker; the key has three points of its own."""
    found = [line for line in figure.axes[0].lines if line.get_marker() == marker and line.get_markevery() is None]
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in found]


def test_dots_are_standardised_values_at_normal_quantiles() -> None:
    sample = 5 + 3 * normal(200)
    ((x, y),) = lines(draw(quantiles(noise=sample)), "o")
    low, middle, high = np.quantile(sample.numpy(), [0.25, 0.5, 0.75])
    expected = (np.sort(sample.numpy()) - middle) / ((high - low) / 2 / 0.6745)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(x, [NormalDist().inv_cdf((i + 0.5) / 200) for i in range(200)], rtol=1e-9, atol=1e-12)


def test_unit_and_place_of_a_sample_do_not_show() -> None:
    (one,) = lines(draw(quantiles(noise=cauchy(300))), "o")
    (other,) = lines(draw(quantiles(noise=cauchy(300) * 1e6 - 4e6)), "o")
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_each_sample_has_a_marker_of_its_own_and_a_line_in_the_key() -> None:
    figure = draw(quantiles(single=cauchy(1000), sums=normal(64)))
    assert len(lines(figure, "o")) == 1
    assert len(lines(figure, "^")) == 1
    assert "single: n = 1,000" in words(figure)
    assert "sums: n = 64" in words(figure)
    assert "step 1,234" in words(figure)


def test_the_axis_turns_logarithmic_only_for_values_far_out() -> None:
    assert draw(quantiles(noise=normal(500))).axes[0].get_yscale() == "linear"
    assert draw(quantiles(noise=cauchy(500))).axes[0].get_yscale() == "symlog"


def test_a_logarithmic_axis_of_little_more_than_a_decade_has_ticks_between_the_decades() -> None:
    axes = draw(quantiles(noise=torch.cat([normal(500), torch.tensor([-40.0, 40.0])]))).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["-30", "-10", "-3", "0", "3", "10", "30"]


def test_a_sample_that_cannot_be_standardised_is_named() -> None:
    figure = draw(quantiles(flat=torch.cat([torch.zeros(80), normal(20)]), noise=normal(50)))
    assert "flat left out: half of its values are equal" in words(figure)
    assert len(lines(figure, "o")) == 1
    assert "fewer than 3 finite values" in words(draw(quantiles(noise=torch.ones(2))))


def test_thinning_keeps_both_ends_whole() -> None:
    places = np.sort(cauchy(50_000).numpy())
    chosen = thin(places, MARKERS)
    assert len(chosen) <= MARKERS
    ends = [*range(EXTREMES), *range(50_000 - EXTREMES, 50_000)]
    assert set(ends) <= set(chosen.tolist())
    assert thin(places[:300], MARKERS).tolist() == list(range(300))


def test_shares_that_exceed_and_the_fitted_line_are_right() -> None:
    values = cauchy(300).abs()
    figure = draw(survival(values, index=0.9, tail=35))
    ((x, y),) = lines(figure, "o")
    ordered = np.sort(values.numpy())
    expected = {round(math.log10(v), 9): math.log10((300 - i) / 300) for i, v in enumerate(ordered)}
    assert len(x) > 100
    for place, share in zip(x, y, strict=True):
        assert share == pytest.approx(expected[round(float(place), 9)])
    (law,) = [line for line in figure.axes[0].lines if line.get_color() == "#d55e00" and len(line.get_xdata()) > 3]
    x, y = np.asarray(law.get_xdata()), np.asarray(law.get_ydata())
    assert x[0] == pytest.approx(math.log10(ordered[-36]))
    assert y[0] == pytest.approx(math.log10(35 / 300))
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -0.9, rtol=1e-9)
    assert "power law, index 0.9" in words(figure)


def test_the_dashed_line_is_that_of_normal_values_with_the_same_median() -> None:
    figure = draw(survival(cauchy(2000).abs()))
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--" and len(line.get_xdata()) > 3]
    scale = float(cauchy(2000).abs().median()) / 0.6745
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    expected = [math.log10(2 * NormalDist().cdf(-(10**place) / scale)) for place in x[::50]]
    np.testing.assert_allclose(y[::50], expected, atol=2e-3)
    assert "power law" not in words(figure).replace("A power law is a straight line.", "")


def test_the_smallest_index_is_not_rounded_to_nothing() -> None:
    assert "power law, index 0.032" in words(draw(survival(cauchy(300).abs(), index=0.0321, tail=35)))


def test_what_is_left_out_is_counted() -> None:
    values = torch.cat([torch.zeros(30), normal(100).abs(), torch.tensor([math.inf, math.nan])])
    assert "n = 100, 32 left out: zero or not finite" in words(draw(survival(values)))
    assert "all magnitudes are equal" in words(draw(survival(torch.ones(9))))
    assert "no positive finite magnitude" in words(draw(survival(torch.zeros(9))))


@pytest.mark.parametrize("picture", [quantiles(**{"a $label_": normal(100)}), survival(cauchy(200).abs(), 1.0, 28)])
def test_pyplot_and_settings_of_the_user_are_left_alone(picture: QuantilePlot | SurvivalPlot) -> None:
    plain = pixels(draw(picture))
    figures, settings = plt.get_fignums(), dict(mpl.rcParams)
    changes = {"axes.grid": True, "text.usetex": False, "lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}
    with mpl.rc_context(changes):
        assert np.array_equal(pixels(draw(picture)), plain)
    assert plt.get_fignums() == figures
    assert dict(mpl.rcParams) == settings
