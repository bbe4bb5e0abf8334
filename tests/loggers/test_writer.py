"""What is written can be read back, from the file and from a real server."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from _tensorboard import read_events, serve
from matplotlib import pyplot as plt
from PIL import Image
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from test_figures import scatter, spectrogram
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx.instruments import Reading, Series, quantities
from lightning_cx.loggers.tensorboard import (
    custom_scalars_layout,
    write_histograms,
    write_layout,
    write_pictures,
    write_reading,
    write_texts,
)

ALL_TAGS = [value for name, value in vars(quantities).items() if name.isupper() and isinstance(value, str)] + [
    quantities.residual_band(i) for i in range(10)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = SummaryWriter(str(tmp_path / "run"))
    write_pictures(
        writer, {quantities.RESIDUAL_SPECTROGRAM: spectrogram(), quantities.GRADIENT_SPECTRUM: scatter()}, step=5
    )
    values = torch.tensor([1.0, 2.0, float("nan"), float("inf"), 3.0])
    write_histograms(writer, {quantities.EXAMPLE_NORMS: values, "nothing": values[2:4]}, step=5)
    write_layout(writer, ALL_TAGS)
    for tag in (quantities.NOISE_SCALE, quantities.NOISE_SCALE_LOW, quantities.NOISE_SCALE_HIGH):
        writer.add_scalar(tag, 1.0, 5)
    writer.close()
    return tmp_path


def test_pictures_come_back_as_images_of_the_right_size(run: Path) -> None:
    figures = plt.get_fignums()
    events = read_events(run / "run")
    for tag in (quantities.RESIDUAL_SPECTROGRAM, quantities.GRADIENT_SPECTRUM):
        (image,) = events.Images(tag)
        assert image.step == 5
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
        assert image.width == 800
    assert plt.get_fignums() == figures


def test_histograms_hold_the_finite_values_only(run: Path) -> None:
    events = read_events(run / "run")
    assert events.Tags()["histograms"] == [quantities.EXAMPLE_NORMS]
    (histogram,) = events.Histograms(quantities.EXAMPLE_NORMS)
    assert (histogram.histogram_value.num, histogram.histogram_value.sum) == (3, 6)


def test_the_layout_comes_back_with_a_margin_chart_of_the_interval(run: Path) -> None:
    (event,) = read_events(run / "run").Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    margins = {(s.value, s.lower, s.upper) for chart in charts.values() for s in chart.margin.series}
    assert margins == {
        (quantities.NOISE_SCALE, quantities.NOISE_SCALE_LOW, quantities.NOISE_SCALE_HIGH),
        (quantities.TAIL_INDEX, quantities.TAIL_INDEX_LOW, quantities.TAIL_INDEX_HIGH),
        (quantities.TRAJECTORY_GROWTH, quantities.TRAJECTORY_GROWTH_LOW, quantities.TRAJECTORY_GROWTH_HIGH),
        (quantities.TAIL_BATCH_INDEX, quantities.TAIL_BATCH_INDEX_LOW, quantities.TAIL_BATCH_INDEX_HIGH),
        (quantities.TAIL_NORM_XI, quantities.TAIL_NORM_XI_LOW, quantities.TAIL_NORM_XI_HIGH),
        (quantities.TAIL_TRAJECTORY_XI, quantities.TAIL_TRAJECTORY_XI_LOW, quantities.TAIL_TRAJECTORY_XI_HIGH),
        (quantities.STOPPING_RISK, quantities.STOPPING_RISK_LOW, quantities.STOPPING_RISK_HIGH),
        (quantities.RECOVERY_RATE, quantities.RECOVERY_RATE_LOW, quantities.RECOVERY_RATE_HIGH),
        (quantities.SHARPNESS, quantities.SHARPNESS_LOW, quantities.SHARPNESS_HIGH),
        (quantities.EDGE, quantities.EDGE_LOW, quantities.EDGE_HIGH),
        (quantities.GAUSS_NEWTON, quantities.GAUSS_NEWTON_LOW, quantities.GAUSS_NEWTON_HIGH),
        (quantities.AVERAGING_GAIN, quantities.AVERAGING_GAIN_LOW, quantities.AVERAGING_GAIN_HIGH),
        (quantities.BATCH_SPEEDUP, quantities.BATCH_SPEEDUP_LOW, quantities.BATCH_SPEEDUP_HIGH),
        (quantities.SVRG_RATIO, quantities.SVRG_RATIO_LOW, quantities.SVRG_RATIO_HIGH),
    }
    listed = [tag for chart in charts.values() for tag in chart.multiline.tag]
    assert len(listed) == len(set(listed))
    drawn = {
        quantities.RESIDUAL_SPECTROGRAM,
        quantities.GRADIENT_SPECTRUM,
        quantities.PROBE_GRADIENT_SPECTRUM,
        quantities.BAND_DECAY,
    }
    pictures = {
        *drawn,
        quantities.EXAMPLE_NORMS,
        quantities.TAIL_QUANTILES,
        quantities.TAIL_SURVIVAL,
        quantities.STOPPING_CURVE,
    }
    pictures |= {quantities.KERNEL_SPECTRUM, quantities.DWELLS}
    cards = {quantities.RECOVERY_VERDICT, quantities.NEURONS_CARD}
    assert set(listed).union(*margins) == set(ALL_TAGS) - pictures - cards


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path)
    write_texts(writer, {quantities.TAIL_VERDICT: "**gaussian** (0)"}, step=7)
    writer.close()
    (event,) = read_events(tmp_path).Tensors(f"{quantities.TAIL_VERDICT}/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (7, b"**gaussian** (0)")


def test_charts_list_only_what_is_there() -> None:
    assert custom_scalars_layout([]) == {}
    assert custom_scalars_layout(["train_loss"]) == {}
    assert custom_scalars_layout([quantities.NOISE_SCALE]) == {}  # an interval needs its ends
    layout = custom_scalars_layout([quantities.EXAMPLE_NORM_P50, quantities.EXAMPLE_NORM_P05])
    ((_, chart),) = layout["How far the examples' gradients agree"].items()
    assert chart == ["Multiline", [quantities.EXAMPLE_NORM_P05, quantities.EXAMPLE_NORM_P50]]


def test_a_control_stands_in_the_chart_of_what_it_controls() -> None:
    twins = [quantities.INTERFERENCE, quantities.shuffled(quantities.INTERFERENCE), quantities.fitted_fraction(3)]
    layout = custom_scalars_layout([*twins, quantities.shuffled(quantities.fitted_fraction(3))])
    ((_, interference),) = layout["Are the strong gradient modes the simple ones"].items()
    ((_, fitted),) = layout["What is being learned"].items()
    assert interference == ["Multiline", twins[:2]]
    assert fitted == ["Multiline", [quantities.fitted_fraction(3), quantities.shuffled(quantities.fitted_fraction(3))]]


def test_curves_of_a_second_optimizer_stand_beside_those_of_the_first() -> None:
    second = Series(1)
    interval = (quantities.NOISE_SCALE, quantities.NOISE_SCALE_LOW, quantities.NOISE_SCALE_HIGH)
    both = [name for tag in (*interval, quantities.GRADIENT_NORM) for name in (tag, second.of(tag))]
    charts = custom_scalars_layout(both)["How far the examples' gradients agree"]
    assert charts["gradient norm of the batch"][1] == [quantities.GRADIENT_NORM, "gradient/norm-optimizer_1"]
    first, other = (chart for chart in charts.values() if chart[0] == "Margin")
    assert first[1] == list(interval)
    assert other[1] == [second.of(tag) for tag in interval]


def test_blocks_stand_in_one_chart_however_many_there_are() -> None:
    share, low = quantities.KERNEL_BLOCK_SHARE, quantities.KERNEL_BLOCK_SHARE_LOW
    shares = [f"{share}/{block}" for block in ("blocks.0", "blocks.1", "rest")]
    on_probe = quantities.on_probe(shares[0])
    charts = custom_scalars_layout([*shares, f"{low}/rest", on_probe])["What the tangent kernel prefers"]
    assert list(charts.values()) == [["Multiline", [*shares, on_probe]], ["Multiline", [f"{low}/rest"]]]
    charts = custom_scalars_layout([shares[0], f"{shares[0]}-optimizer_1"])["What the tangent kernel prefers"]
    assert list(charts.values()) == [["Multiline", [shares[0], f"{shares[0]}-optimizer_1"]]]


def test_a_real_tensorboard_server_shows_scalars_images_and_the_layout(run: Path) -> None:
    with serve(run) as get:
        assert quantities.NOISE_SCALE in get("data/plugin/scalars/tags")["run"]
        assert set(get("data/plugin/images/tags")["run"]) == {
            quantities.RESIDUAL_SPECTROGRAM,
            quantities.GRADIENT_SPECTRUM,
        }
        titles = [category["title"] for category in get("data/plugin/custom_scalars/layout")["category"]]
    assert titles == [
        "What is being learned",
        "Are the strong gradient modes the simple ones",
        "How far the examples' gradients agree",
        "Is the gradient noise heavy-tailed",
        "When to stop",
        "Does training converge, and how fast",
        "Which neurons are redundant",
        "What the tangent kernel prefers",
        "Is the step size stable",
        "Would averaging, larger batches or SVRG help against the noise",
        "How far the parameters have moved",
        "Where does training dwell",
        "What it costs",
    ]


def test_a_whole_reading_is_written_without_what_is_nan_and_with_pictures_on_request(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    scalars = {
        quantities.GRADIENT_NORM: 2.0,
        quantities.NOISE_SCALE: float("nan"),
        quantities.GRADIENT_SNR: float("inf"),
    }
    histograms = {quantities.EXAMPLE_NORMS: torch.arange(5.0)}
    reading = Reading(
        scalars, histograms, {quantities.GRADIENT_SPECTRUM: scatter()}, texts={quantities.TAIL_VERDICT: "heavy"}
    )
    write_reading(writer, reading, step=3)
    write_reading(writer, reading, step=4, pictures=True)
    writer.close()
    events = read_events(tmp_path)
    assert events.Tags()["scalars"] == [quantities.GRADIENT_NORM]
    assert [(event.step, event.value) for event in events.Scalars(quantities.GRADIENT_NORM)] == [(3, 2.0), (4, 2.0)]
    assert [event.step for event in events.Histograms(quantities.EXAMPLE_NORMS)] == [3, 4]
    assert [event.step for event in events.Images(quantities.GRADIENT_SPECTRUM)] == [4]
    assert f"{quantities.TAIL_VERDICT}/text_summary" in events.Tags()["tensors"]
    (layout,) = events.Tensors("custom_scalars__config__")
    assert quantities.GRADIENT_NORM in str(Layout.FromString(layout.tensor_proto.string_val[0]))
