"""The examples run, and what they say about their networks comes out in a short form of them too."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _tensorboard import read_events
from PIL import Image

from lightning_cx.instruments import quantities
from lightning_cx.instruments.tail_index import CODES

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """An example quietens Lightning for good, as a script of one's own may."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


def main_of(name: str) -> Callable[..., dict]:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main


def width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 100


SHORTEST: dict[str, dict[str, int]] = {
    "averaging": {"epochs": 7},
    "early_stopping": {"epochs": 1},
    "fabric": {"epochs": 3},
    "interference": {"epochs": 1},
    "plain_pytorch": {"epochs": 3},
    "spectral_bias_image": {"steps": 5},
    "tail_index": {"epochs": 5},
    "teacher_student": {"steps": 12},
}


@pytest.mark.filterwarnings("ignore:lightning_cx")  # so short a run shows little, and says so
@pytest.mark.parametrize("name", SHORTEST)
def test_an_example_runs_to_its_end_and_says_where_it_wrote(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """What each says of its network takes minutes to show: that is in the slow tests below."""
    monkeypatch.syspath_prepend(EXAMPLES)  # as for a script that lies there
    assert main_of(name)(str(tmp_path), seed=1, **SHORTEST[name])
    assert any(tmp_path.rglob("*"))
    assert capsys.readouterr().out


@pytest.mark.slow
def test_digits_obey_the_principle_and_random_labels_and_waves_do_not(tmp_path: Path, capsys) -> None:
    found = main_of("interference")(str(tmp_path), epochs=12, seed=1)
    true, random, waves = (found[name] for name in ("true labels", "random labels", "Fourier features"))
    assert true[quantities.PROBE_INTERFERENCE][0] > 0.3
    assert true[quantities.PROBE_INTERFERENCE_P][0] < 0.05
    for other in (random, waves):
        assert abs(other[quantities.PROBE_INTERFERENCE][0]) < 0.15
    assert true[quantities.SPECTRAL_BIAS_INDEX][-1] > 0.2
    assert abs(waves[quantities.SPECTRAL_BIAS_INDEX][-1]) < 0.15
    assert true[quantities.RESIDUAL_MEDIAN][0] < 0.05
    assert random[quantities.RESIDUAL_MEDIAN][0] == pytest.approx(0.5, abs=0.05)
    for name in ("true_labels", "random_labels", "Fourier_features"):
        for picture in ("probe_spectrum", "residual_spectrogram", "band_decay"):
            assert width(tmp_path / f"{name}_{picture}.png") == 800
    printed = capsys.readouterr().out
    assert "gradient/probe_interference_shuffled" in printed
    assert str(tmp_path) in printed


@pytest.mark.slow
def test_a_photograph_appears_from_low_to_high_unless_waves_are_given(tmp_path: Path, capsys) -> None:
    found = main_of("spectral_bias_image")(str(tmp_path), steps=121, seed=1)

    def half(name: str, band: int) -> float:
        steps = (step for step, value in found[name][quantities.fitted_fraction(band)] if value > 0.5)
        return next(steps, float("inf"))

    relu = [half("ReLU", band) for band in (1, 4, 8)]
    assert relu[0] < relu[1] < relu[2] == float("inf")
    assert all(half("Fourier features", band) <= 40 for band in range(1, 11))
    assert "not yet" in capsys.readouterr().out
    assert (tmp_path / "strip.png").exists()
    assert width(tmp_path / "ReLU_bands.png") == 800


@pytest.mark.slow
def test_unequal_examples_average_away_in_a_batch_and_heavy_noise_does_not(tmp_path: Path, capsys) -> None:
    found = main_of("tail_index")(str(tmp_path), epochs=10, seed=1)

    def first_and_last(name: str, tag: str) -> tuple[float, float]:
        values = list(found[name][tag].values())
        return values[0], values[-1]

    start, end = first_and_last("digits", quantities.TAIL_INDEX)
    assert start > 1.95
    assert end < 1.7
    assert first_and_last("digits", quantities.TAIL_INDEX_HIGH)[1] < 1.9
    assert min(found["digits"][quantities.TAIL_BATCH_INDEX].values()) > 1.9
    assert first_and_last("digits", quantities.TAIL_VERDICT) == (
        CODES["gaussian"],
        CODES["heavy-aggregates-to-gaussian"],
    )
    # Gaussian at the start, and yet pooled coordinates are no more than this.
    assert first_and_last("digits", quantities.TAIL_COORDINATE_INDEX)[0] < 1.3
    assert max(found["heavy"][quantities.TAIL_INDEX].values()) < 1.6
    assert max(found["heavy"][quantities.TAIL_BATCH_INDEX_HIGH].values()) < 1.95
    assert min(found["heavy"][quantities.TAIL_NORM_XI_LOW].values()) > 0.2
    unlikely = {CODES["gaussian"], CODES["heavy-aggregates-to-gaussian"]}
    assert unlikely.isdisjoint(found["heavy"][quantities.TAIL_VERDICT].values())
    for name in ("digits", "heavy"):
        for picture in ("quantiles", "survival"):
            assert width(tmp_path / f"{name}_{picture}.png") == 800
    printed = capsys.readouterr().out
    assert "averages that away; heavy: " in printed
    assert "stays heavy" in printed
    assert str(tmp_path) in printed


@pytest.mark.slow
def test_wrong_labels_are_stopped_before_they_are_learned_and_true_ones_go_on(tmp_path: Path, capsys) -> None:
    found = main_of("early_stopping")(str(tmp_path), epochs=50, seed=1)
    unstopped, held_out, stopped, true = found.values()
    assert stopped["best_step"] < stopped["stopped_step"] == stopped["steps"] < unstopped["steps"] == 50 * 19
    assert stopped["error"] < unstopped["error"] - 0.05
    assert held_out["error"] < unstopped["error"] - 0.05
    assert held_out["steps"] % 15 == 0  # epochs of 960 examples, not 1200
    assert true["stopped_step"] is None
    assert true["steps"] == unstopped["steps"]
    assert true["error"] < 0.06
    assert {path.stem for path in tmp_path.glob("*.png")} == {"ComplexityEarlyStopping", "the_same_on_true_labels"}
    assert width(tmp_path / "ComplexityEarlyStopping.png") == 800
    printed = capsys.readouterr().out
    assert "more noise than it takes away of the target" in printed
    assert "not certainly above its lowest" in printed
    assert str(tmp_path) in printed


@pytest.mark.slow
def test_enough_examples_lead_to_the_teacher_and_few_do_not(tmp_path: Path, capsys) -> None:
    found = main_of("teacher_student")(str(tmp_path), steps=200, seed=0)
    ends = {n: {tag: values[-1][1] for tag, values in run.items()} for n, run in found.items()}
    assert ends[10][quantities.RECOVERY_RANK_SHARE] < 0.48  # 10 of 21
    assert ends[10]["test error"] > 0.1
    assert ends[10][quantities.NEURONS_ALIGNMENT] < 0.9
    for n in (60, 200):
        assert ends[n][quantities.RECOVERY_RANK_SHARE] == 1
        assert ends[n][quantities.NEURONS_ALIGNMENT] > 0.999
        assert ends[n]["test error"] < 1e-3
    assert width(tmp_path / "recovery.png") == 1000
    printed = capsys.readouterr().out
    assert "recovery/predicted_rate" in printed
    assert str(tmp_path) in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_pytorch", "fabric"])
def test_a_loop_of_ones_own_is_stopped_and_leaves_curves_and_a_picture(
    name: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)  # as for a script that lies there
    found = main_of(name)(str(tmp_path), epochs=120, seed=0)
    assert found["best_step"] < found["steps"] < 120 * 18
    assert found["error of the best weights"] < found["error of the last weights"] - 0.02
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = read_events(folder)
    steps = [event.step for event in events.Scalars(quantities.GRADIENT_NORM)]
    assert steps == list(range(0, found["steps"], 10))
    assert [event.step for event in events.Scalars(quantities.RESIDUAL_MEDIAN)] == [*steps, found["steps"]]
    assert {quantities.STOPPING_RISK, quantities.NOISE_SCALE, "custom_scalars__config__"} <= {
        *events.Tags()["scalars"],
        *events.Tags()["tensors"],
    }
    assert events.Tags()["images"] == [quantities.STOPPING_CURVE]
    assert events.Tags()["histograms"] == [quantities.EXAMPLE_NORMS]
    assert f"{found['best_step']}" in capsys.readouterr().out


@pytest.mark.slow
def test_large_steps_gain_by_averaging_and_small_ones_lose(tmp_path: Path, capsys) -> None:
    found = main_of("averaging")(str(tmp_path), epochs=10, seed=1)
    (large, last, average), (small, small_last, small_average) = found["large steps"], found["small steps"]
    assert list(large[quantities.AVERAGING_GAIN_LOW].values())[-1] > 0.02
    assert average < last - 0.02
    assert list(small[quantities.AVERAGING_GAIN_HIGH].values())[-1] < -0.05
    assert small_average > small_last - 0.01
    assert min(large[quantities.SVRG_RATIO].values()) > 0.25
    assert list(small[quantities.SVRG_RATIO_HIGH].values())[-1] < 0.1
    assert min(large[quantities.BATCH_SPEEDUP_LOW].values()) > 1
    assert large[quantities.AVERAGING_WINDOW][max(large[quantities.AVERAGING_WINDOW])] > 300
    assert "error on true test labels: last weights" in capsys.readouterr().out
