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

from lightning_cx.instruments import Reading
from lightning_cx.instruments import quantities as tags
from lightning_cx.loggers.tensorboard import (
    custom_scalars_layout,
    write_histograms,
    write_layout,
    write_pictures,
    write_reading,
    write_texts,
)

ALL_TAGS = [value for name, value in vars(tags).items() if name.isupper() and isinstance(value, str)] + [
    tags.residual_band(i) for i in range(10)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = SummaryWriter(str(tmp_path / "run"))
    write_pictures(writer, {tags.RESIDUAL_SPECTROGRAM: spectrogram(), tags.GRADIENT_SPECTRUM: scatter()}, step=5)
    values = torch.tensor([1.0, 2.0, float("nan"), float("inf"), 3.0])
    write_histograms(writer, {tags.EXAMPLE_NORMS: values, "nothing": values[2:4]}, step=5)
    write_layout(writer, ALL_TAGS)
    for tag in (tags.NOISE_SCALE, tags.NOISE_SCALE_LOW, tags.NOISE_SCALE_HIGH):
        writer.add_scalar(tag, 1.0, 5)
    writer.close()
    return tmp_path


def test_pictures_come_back_as_images_of_the_right_size(run: Path) -> None:
    figures = plt.get_fignums()
    events = read_events(run / "run")
    for tag in (tags.RESIDUAL_SPECTROGRAM, tags.GRADIENT_SPECTRUM):
        (image,) = events.Images(tag)
        assert image.step == 5
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
        assert image.width == 800
    assert plt.get_fignums() == figures


def test_histograms_hold_the_finite_values_only(run: Path) -> None:
    events = read_events(run / "run")
    assert events.Tags()["histograms"] == [tags.EXAMPLE_NORMS]
    (histogram,) = events.Histograms(tags.EXAMPLE_NORMS)
    assert (histogram.histogram_value.num, histogram.histogram_value.sum) == (3, 6)


def test_the_layout_comes_back_with_a_margin_chart_of_the_interval(run: Path) -> None:
    (event,) = read_events(run / "run").Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    margins = {(s.value, s.lower, s.upper) for chart in charts.values() for s in chart.margin.series}
    assert margins == {
        (tags.NOISE_SCALE, tags.NOISE_SCALE_LOW, tags.NOISE_SCALE_HIGH),
        (tags.TAIL_INDEX, tags.TAIL_INDEX_LOW, tags.TAIL_INDEX_HIGH),
        (tags.TRAJECTORY_GROWTH, tags.TRAJECTORY_GROWTH_LOW, tags.TRAJECTORY_GROWTH_HIGH),
        (tags.TAIL_BATCH_INDEX, tags.TAIL_BATCH_INDEX_LOW, tags.TAIL_BATCH_INDEX_HIGH),
        (tags.TAIL_NORM_XI, tags.TAIL_NORM_XI_LOW, tags.TAIL_NORM_XI_HIGH),
        (tags.TAIL_TRAJECTORY_XI, tags.TAIL_TRAJECTORY_XI_LOW, tags.TAIL_TRAJECTORY_XI_HIGH),
        (tags.STOPPING_RISK, tags.STOPPING_RISK_LOW, tags.STOPPING_RISK_HIGH),
        (tags.RECOVERY_RATE, tags.RECOVERY_RATE_LOW, tags.RECOVERY_RATE_HIGH),
        (tags.SHARPNESS, tags.SHARPNESS_LOW, tags.SHARPNESS_HIGH),
        (tags.EDGE, tags.EDGE_LOW, tags.EDGE_HIGH),
        (tags.GAUSS_NEWTON, tags.GAUSS_NEWTON_LOW, tags.GAUSS_NEWTON_HIGH),
        (tags.AVERAGING_GAIN, tags.AVERAGING_GAIN_LOW, tags.AVERAGING_GAIN_HIGH),
        (tags.BATCH_SPEEDUP, tags.BATCH_SPEEDUP_LOW, tags.BATCH_SPEEDUP_HIGH),
        (tags.SVRG_RATIO, tags.SVRG_RATIO_LOW, tags.SVRG_RATIO_HIGH),
    }
    listed = [tag for chart in charts.values() for tag in chart.multiline.tag]
    assert len(listed) == len(set(listed))
    drawn = {tags.RESIDUAL_SPECTROGRAM, tags.GRADIENT_SPECTRUM, tags.PROBE_GRADIENT_SPECTRUM, tags.BAND_DECAY}
    pictures = {*drawn, tags.EXAMPLE_NORMS, tags.TAIL_QUANTILES, tags.TAIL_SURVIVAL, tags.STOPPING_CURVE}
    pictures |= {tags.KERNEL_SPECTRUM, tags.DWELLS}
    cards = {tags.RECOVERY_VERDICT, tags.NEURONS_CARD}
    assert set(listed).union(*margins) == set(ALL_TAGS) - pictures - cards


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path)
    write_texts(writer, {tags.TAIL_VERDICT: "**gaussian** (0)"}, step=7)
    writer.close()
    (event,) = read_events(tmp_path).Tensors(f"{tags.TAIL_VERDICT}/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (7, b"**gaussian** (0)")


def test_charts_list_only_what_is_there() -> None:
    assert custom_scalars_layout([]) == {}
    assert custom_scalars_layout(["train_loss"]) == {}
    assert custom_scalars_layout([tags.NOISE_SCALE]) == {}  # an interval needs its ends
    layout = custom_scalars_layout([tags.EXAMPLE_NORM_P50, tags.EXAMPLE_NORM_P05])
    ((_, chart),) = layout["How the examples agree"].items()
    assert chart == ["Multiline", [tags.EXAMPLE_NORM_P05, tags.EXAMPLE_NORM_P50]]


def test_a_control_stands_in_the_chart_of_what_it_controls() -> None:
    twins = [tags.INTERFERENCE, tags.shuffled(tags.INTERFERENCE), tags.fitted_fraction(3)]
    layout = custom_scalars_layout([*twins, tags.shuffled(tags.fitted_fraction(3))])
    ((_, interference),) = layout["Do simple functions get the strong gradients"].items()
    ((_, fitted),) = layout["What is being learned"].items()
    assert interference == ["Multiline", twins[:2]]
    assert fitted == ["Multiline", [tags.fitted_fraction(3), tags.shuffled(tags.fitted_fraction(3))]]


def test_curves_of_a_second_optimizer_stand_beside_those_of_the_first() -> None:
    second = tags.Series(1)
    interval = (tags.NOISE_SCALE, tags.NOISE_SCALE_LOW, tags.NOISE_SCALE_HIGH)
    both = [name for tag in (*interval, tags.GRADIENT_NORM) for name in (tag, second.of(tag))]
    charts = custom_scalars_layout(both)["How the examples agree"]
    assert charts["gradient norm of the batch"][1] == [tags.GRADIENT_NORM, "gradient/norm-optimizer_1"]
    first, other = (chart for chart in charts.values() if chart[0] == "Margin")
    assert first[1] == list(interval)
    assert other[1] == [second.of(tag) for tag in interval]


def test_blocks_stand_in_one_chart_however_many_there_are() -> None:
    share, low = tags.KERNEL_BLOCK_SHARE, tags.KERNEL_BLOCK_SHARE_LOW
    shares = [f"{share}/{block}" for block in ("blocks.0", "blocks.1", "rest")]
    on_probe = tags.on_probe(shares[0])
    charts = custom_scalars_layout([*shares, f"{low}/rest", on_probe])["What the kernel prefers"]
    assert list(charts.values()) == [["Multiline", [*shares, on_probe]], ["Multiline", [f"{low}/rest"]]]
    charts = custom_scalars_layout([shares[0], f"{shares[0]}-optimizer_1"])["What the kernel prefers"]
    assert list(charts.values()) == [["Multiline", [shares[0], f"{shares[0]}-optimizer_1"]]]


def test_a_real_tensorboard_server_shows_scalars_images_and_the_layout(run: Path) -> None:
    with serve(run) as get:
        assert tags.NOISE_SCALE in get("data/plugin/scalars/tags")["run"]
        assert set(get("data/plugin/images/tags")["run"]) == {tags.RESIDUAL_SPECTROGRAM, tags.GRADIENT_SPECTRUM}
        titles = [category["title"] for category in get("data/plugin/custom_scalars/layout")["category"]]
    assert titles == [
        "What is being learned",
        "Do simple functions get the strong gradients",
        "How the examples agree",
        "Is the noise heavy-tailed",
        "When to stop",
        "Which neurons do work of their own",
        "Is the end in sight",
        "What the kernel prefers",
        "Is the step size at its limit",
        "Would averages, batches or snapshots help against the noise",
        "How far the parameters have come",
        "Where does training stay",
        "What it costs",
    ]


def test_a_whole_reading_is_written_without_what_is_nan_and_with_pictures_on_request(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    scalars = {tags.GRADIENT_NORM: 2.0, tags.NOISE_SCALE: float("nan"), tags.GRADIENT_SNR: float("inf")}
    histograms = {tags.EXAMPLE_NORMS: torch.arange(5.0)}
    reading = Reading(scalars, histograms, {tags.GRADIENT_SPECTRUM: scatter()}, texts={tags.TAIL_VERDICT: "heavy"})
    write_reading(writer, reading, step=3)
    write_reading(writer, reading, step=4, pictures=True)
    writer.close()
    events = read_events(tmp_path)
    assert events.Tags()["scalars"] == [tags.GRADIENT_NORM]
    assert [(event.step, event.value) for event in events.Scalars(tags.GRADIENT_NORM)] == [(3, 2.0), (4, 2.0)]
    assert [event.step for event in events.Histograms(tags.EXAMPLE_NORMS)] == [3, 4]
    assert [event.step for event in events.Images(tags.GRADIENT_SPECTRUM)] == [4]
    assert f"{tags.TAIL_VERDICT}/text_summary" in events.Tags()["tensors"]
    (layout,) = events.Tensors("custom_scalars__config__")
    assert tags.GRADIENT_NORM in str(Layout.FromString(layout.tensor_proto.string_val[0]))
