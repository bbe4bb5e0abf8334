"""Runs are compared where they have learned equally much, whatever logger they used and however fast they were."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx import compare_runs
from lightning_cx.__main__ import main
from lightning_cx.instruments import quantities
from lightning_cx.loggers.compare import fall_of
from lightning_cx.loggers.run_logs import read_curves

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
LOSS, DISTANCE = quantities.TRAJECTORY_LOSS, quantities.TRAJECTORY_DISTANCE


def write_table(folder: Path, curves: Curves) -> str:
    folder.mkdir(parents=True)
    rows: dict[int, dict[str, float]] = {}
    for tag, (steps, values) in curves.items():
        for step, value in zip(steps, values, strict=True):
            rows.setdefault(int(step), {})[tag] = value
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "step", *curves])
        table.writeheader()
        table.writerows({"step": step, **row} for step, row in sorted(rows.items()))
    return str(folder)


def write_events(folder: Path, curves: Curves) -> str:
    with SummaryWriter(str(folder)) as writer:
        for tag, (steps, values) in curves.items():
            for step, value in zip(steps, values, strict=True):
                writer.add_scalar(tag, value, int(step))
    return str(folder)


def run(speed: float, steps: int = 60, every: int = 2, **more: float) -> Curves:
    """A loss of exp(-progress) and a distance of twice the progress; faster runs make more progress in a step."""
    at = np.arange(0, steps, every)
    return {LOSS: (at, np.exp(-speed * at) + more.get("floor", 0.0)), DISTANCE: (at + 1, 2 * speed * (at + 1))}


@pytest.mark.parametrize("write", [write_table, write_events])
def test_a_fast_and_a_slow_run_along_the_same_path_are_the_same(
    write: Callable[[Path, Curves], str], tmp_path: Path
) -> None:
    slow, fast = write(tmp_path / "slow", run(0.02)), write(tmp_path / "fast", run(0.06))
    found = compare_runs([slow, fast], losses=[0.9, 0.7, 0.5])
    assert found.losses == (0.9, 0.7, 0.5)
    for loss in found.losses:
        for name, speed in ((slow, 0.02), (fast, 0.06)):
            row = found.at(name, loss, DISTANCE)
            assert row.value == pytest.approx(-2 * math.log(loss), abs=0.01)
            assert row.step == pytest.approx(-math.log(loss) / speed, rel=0.02)
    at_the_same_step = [curves[DISTANCE][1][10] for curves in (run(0.02), run(0.06))]
    assert at_the_same_step[1] == pytest.approx(3 * at_the_same_step[0])


def test_both_loggers_tell_the_same(tmp_path: Path) -> None:
    table, events = write_table(tmp_path / "a", run(0.03)), write_events(tmp_path / "b", run(0.03))
    found = compare_runs([table, events])
    for loss in found.losses:
        one, other = found.at(table, loss, DISTANCE), found.at(events, loss, DISTANCE)
        assert (one.value, one.step) == pytest.approx((other.value, other.step), rel=1e-5)


def test_levels_lie_within_what_all_runs_went_through(tmp_path: Path) -> None:
    far, near = write_table(tmp_path / "far", run(0.1)), write_table(tmp_path / "near", run(0.02, floor=0.1))
    found = compare_runs([far, near])
    start, best = 1.0, math.exp(-0.02 * 58) + 0.1
    assert found.losses == pytest.approx([start * (best / start) ** (k / 3) for k in (1, 2, 3)])
    assert found.losses[-1] == best
    assert not found.left_out
    assert found.at(near, best, DISTANCE).step == 58


def test_a_run_that_learned_nothing_is_named_and_left_out(tmp_path: Path) -> None:
    flat: Curves = {LOSS: (range(9), [3.0] * 9), DISTANCE: (range(9), range(9))}
    runs = [write_table(tmp_path / name, curves) for name, curves in (("a", run(0.03)), ("b", run(0.05)), ("c", flat))]
    found = compare_runs(runs)
    assert found.runs == (runs[0], runs[1])
    assert found.left_out == {runs[2]: "its loss never fell below 3, and another run began no higher"}
    assert str(found).endswith(f"left out: {runs[2]}: its loss never fell below 3, and another run began no higher")
    with pytest.raises(ValueError, match="fewer than two runs can be compared at equal"):
        compare_runs([runs[0], runs[2]])


def test_a_run_that_misses_a_level_that_was_asked_for_is_left_out(tmp_path: Path) -> None:
    runs = [write_table(tmp_path / f"{speed}", run(speed)) for speed in (0.01, 0.05, 0.06)]
    found = compare_runs(runs, losses=[0.4])
    assert list(found.left_out) == [runs[0]]
    assert found.left_out[runs[0]] == "its loss went from 1 to 0.5599 and never through 0.4"


def test_what_was_not_logged_so_early_is_a_gap_and_no_guess(tmp_path: Path) -> None:
    late = run(0.05)
    late = {**late, DISTANCE: tuple(np.asarray(part)[20:] for part in late[DISTANCE])}
    runs = [write_table(tmp_path / "a", run(0.05)), write_table(tmp_path / "b", late)]
    found = compare_runs(runs, losses=[0.8, 0.1])
    assert math.isnan(found.at(runs[1], 0.8, DISTANCE).value)
    assert found.at(runs[1], 0.1, DISTANCE).value == pytest.approx(found.at(runs[0], 0.1, DISTANCE).value)
    assert str(found).splitlines()[4].split()[-1] == "-"


def test_noise_in_the_loss_is_smoothed_and_told(tmp_path: Path) -> None:
    """Where the raw loss dips below a level by chance long before, the running median does not."""
    draw, at = np.random.default_rng(0), np.arange(400)
    clean = 1 - 0.002 * at
    noisy = clean + 0.03 * draw.normal(size=400)
    noisy[50] = 0.2
    runs = [
        write_table(tmp_path / name, {LOSS: (at, loss), DISTANCE: (at, at)})
        for name, loss in (("clean", clean), ("noisy", noisy))
    ]
    row = compare_runs(runs, losses=[0.5]).at(runs[1], 0.5, DISTANCE)
    assert row.value == pytest.approx(250, abs=8)
    assert row.low < row.value < row.high
    exact = compare_runs(runs, losses=[0.5]).at(runs[0], 0.5, DISTANCE)
    assert (exact.low, exact.value, exact.high) == pytest.approx((250, 250, 250))


def test_a_noisy_crossing_comes_neither_early_nor_late_and_its_range_holds_the_truth_two_times_in_three() -> None:
    found, covered = [], []
    for seed in range(100):
        noise = 0.03 * np.random.default_rng(seed).normal(size=400)
        fall = fall_of((np.arange(400.0), 1 - 0.002 * np.arange(400) + noise))
        found.append(fall.crossing(0.5))
        early, late = fall.while_at(0.5)
        covered.append(early <= 250 <= late)
    assert np.mean(found) == pytest.approx(250, abs=2)
    assert np.std(found) < 7
    assert 0.55 < np.mean(covered) < 0.8


def test_a_loss_without_noise_is_followed_without_lag_to_its_first_crossing() -> None:
    fall = fall_of((np.arange(20.0), np.arange(20.0)[::-1].copy()))
    assert fall.values.tolist() == list(range(19, -1, -1))
    assert fall.noise == 0
    assert fall.crossing(9.5) == 9.5
    up_again = fall_of((np.arange(30.0), np.abs(np.arange(30.0) - 12)))
    assert up_again.crossing(6.0) == 6.0
    assert up_again.steps[-1] == 11  # where the running median is lowest first
    assert math.isnan(up_again.crossing(-1.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_smoothed_loss_is_the_isotonic_fit_of_its_running_median(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=80) - 0.02 * np.arange(80)
    fall = fall_of((np.arange(80.0), values))
    padded = [values[i - r : i + r + 1] for i, r in ((i, min(2, i, 79 - i)) for i in range(80))]
    median = np.array([np.median(window) for window in padded])[: len(fall.values)]
    expected = IsotonicRegression(increasing=False).fit_transform(np.arange(len(median)), median)
    np.testing.assert_allclose(fall.values, expected, atol=1e-12)


def test_repeated_steps_of_a_resumed_run_and_bad_values_are_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    text = "epoch,step,loss,word\n0,0,1.0,hello\n0,2,0.5,\n0,4,0.2,\n0,2,0.6,\n0,6,nan,\n0,,0.1,\n"
    (folder / "metrics.csv").write_text(text)
    steps, values = read_curves(folder)["loss"]
    assert (steps.tolist(), values.tolist()) == ([0, 2, 4], [1.0, 0.6, 0.2])
    assert set(read_curves(folder)) == {"loss"}


def test_the_only_run_below_a_folder_is_found_and_several_are_not_mixed(tmp_path: Path) -> None:
    write_events(tmp_path / "one" / "version_0", run(0.05))
    write_table(tmp_path / "two" / "version_0", run(0.03))
    assert len(compare_runs([tmp_path / "one", tmp_path / "two"]).runs) == 2
    write_table(tmp_path / "two" / "version_1", run(0.03))
    with pytest.raises(ValueError, match=r"two holds 2 runs \(.*version_0, .*version_1\): name one of them"):
        compare_runs([tmp_path / "one", tmp_path / "two"])


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    one, other = write_table(tmp_path / "one", run(0.03)), write_table(tmp_path / "other", {"mine": ([0, 1], [2, 1])})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a comparison takes two or more different runs"):
        compare_runs([one])
    with pytest.raises(ValueError, match="a comparison takes two or more different runs"):
        compare_runs([one, one])
    with pytest.raises(ValueError, match=r"nowhere is no folder"):
        compare_runs([one, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"empty holds neither TensorBoard event files nor a metrics\.csv"):
        compare_runs([one, tmp_path / "empty"])
    with pytest.raises(ValueError, match="other did not log trajectory/training_loss; give a loss_tag"):
        compare_runs([one, other])
    with pytest.raises(ValueError, match=r"no run logged \['length'\]; give tags that are there: mine, trajectory/"):
        compare_runs([one, other], tags=["length"])
    for levels in ([math.nan], []):
        with pytest.raises(ValueError, match="levels of the loss are one or more finite numbers"):
            compare_runs([one, other], losses=levels)


@pytest.mark.parametrize("again", ["one/", "../parent/one", "link", "parent"])
def test_one_run_by_two_names_is_no_comparison(tmp_path: Path, again: str) -> None:
    folder = tmp_path / "parent" / "one"
    one = write_table(folder, run(0.03))
    (tmp_path / "parent" / "link").symlink_to(folder)
    other = f"{tmp_path}/parent" if again == "parent" else f"{tmp_path}/parent/one/../{again}"
    with pytest.raises(ValueError, match="a comparison takes two or more different runs"):
        compare_runs([one, other])


def test_rows_without_a_step_are_left_out_and_a_mark_before_the_first_name_is_no_part_of_it(tmp_path: Path) -> None:
    rows = ["\ufeffstep,loss", "inf,1", "nan,2", "later,3", ",4", "5,6"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows), encoding="utf-8")
    steps, losses = read_curves(tmp_path)["loss"]
    assert (steps.tolist(), losses.tolist()) == ([5], [6])


def test_event_files_without_tensorboard_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write_events(tmp_path / "a", run(0.05))
    tables = [write_table(tmp_path / name, run(0.05)) for name in ("b", "c")]
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(ImportError, match="holds TensorBoard event files: pip install tensorboard reads them"):
        compare_runs([events, tables[0]])
    assert len(compare_runs(tables).runs) == 2


def test_the_table_has_a_block_for_each_level_and_a_column_for_each_run(tmp_path: Path) -> None:
    runs = [write_table(tmp_path / name, run(speed)) for name, speed in (("slow", 0.02), ("fast", 0.06))]
    lines = str(compare_runs(runs, losses=[0.7, 0.5])).splitlines()
    assert lines[0].startswith("at equal trajectory/training_loss, never at equal step")
    assert lines[2].split() == ["loss", "0.7", "slow", "fast"]
    assert lines[3].split() == ["step", "18", "6"]
    assert lines[4].split()[0] == DISTANCE
    assert lines[6].split()[:2] == ["loss", "0.5"]


def test_the_command_line_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_table(tmp_path / name, run(speed)) for name, speed in (("slow", 0.02), ("fast", 0.06))]
    assert main(["compare", *runs, "--loss", "0.5", "--tag", DISTANCE]) == 0
    assert capsys.readouterr().out.strip() == str(compare_runs(runs, [DISTANCE], [0.5])).strip()
    assert main(["compare", *runs, "--loss-tag", "mine"]) == 2
    assert "did not log mine; give a loss_tag" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    runs = [write_table(tmp_path / name, run(speed)) for name, speed in (("slow", 0.02), ("fast", 0.06))]
    command = [sys.executable, "-m", "lightning_cx", "compare", *runs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str(compare_runs(runs)).strip()
