"""The benchmark of stopping rules: its table, and that what it reads off a path is what a training run would do."""

from __future__ import annotations

import io
import math
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityEarlyStopping, PathLeaveOneOut, SpectralRisk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = 100


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def overfitting():
    """A problem small enough for a Trainer, on which the rule stops."""
    from _networks import mlp
    from _stopping_data import mixture
    from _stopping_problems import ADAM, FUNCTION, Problem, Recipe

    draw, recipe = mixture(256, 0.3), Recipe(1e-2, ADAM)
    return Problem("overfitting", "overfitting", FUNCTION, draw, lambda: mlp(8, 64, 4), 200, recipe, None)


def data_of(x, y):
    from _stopping_data import Data

    return Data(x, y, x, y)


def look(number, data=None, **seen):
    from _stopping_stoppers import Look

    return Look(number, 10 * number, torch.nn.Identity(), data, **seen)


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_command_prints_a_row_for_each_problem_and_goes_on_from_its_cache(tmp_path, capsys, monkeypatch):
    import stopping
    from _stopping_report import TITLES

    output = tmp_path / "below" / "stopping.md"
    options = ["--problems", "tiny", "tiny-classes", "--seeds", str(SEED), "--workers", "1"]
    options += ["--cache", str(tmp_path / "cache"), "--output", str(output)]
    stopping.main(options)
    first = capsys.readouterr().out
    assert first.strip() == output.read_text().strip()
    lines = [cells_of(line) for line in first.splitlines() if line.startswith("| ")]
    summary = {line[0]: line for line in lines if len(line) == 10 and line[0] != "---"}
    assert list(summary) == ["", *TITLES.values()]
    assert summary["no stop"][5:] == ["0%"] * 5
    by_name = {line[0]: line for line in reversed(lines)}
    for row in (by_name["1-D regression"], by_name["Gaussian mixture, clean"]):
        ratios = [float(number) for cell in row[1:] for number in re.findall(r"[\d.]+", cell)]
        assert len(ratios) == 2 * len(TITLES)
        assert all(math.isfinite(ratio) and ratio > 0.5 for ratio in ratios)

    monkeypatch.setattr(stopping, "run", lambda *_: pytest.fail("the cache was not read"))
    stopping.main([*options, "--again", "ours", "dominance"])
    again = capsys.readouterr().out
    assert without_times(again) == without_times(first)


def without_times(page):
    return [cells_of(line)[:8] for line in page.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(("way", "rule"), [("ours", PathLeaveOneOut), ("spectral-risk", SpectralRisk)])
def test_the_rule_stops_and_keeps_where_the_callback_does(way, rule, tmp_path):
    """The same data, weights and steps in a Trainer: full batches, so that no order of batches comes in."""
    from _stopping_runs import FIRST_DRAW, run

    problem = overfitting()
    stop = run(problem, SEED).stops[way]

    data = problem.draw(np.random.default_rng(FIRST_DRAW + SEED))
    torch.manual_seed(SEED)
    network = problem.network()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch):
            return data.losses(self.network(batch[0]), batch[1]).mean()

        def configure_optimizers(self):
            return problem.optimizer(self)[0]

    callback = ComplexityEarlyStopping(rule(), strict=True, verbose=False)
    trainer = pl.Trainer(
        max_steps=problem.steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(data.x, data.y), batch_size=len(data.x)))
    assert stop.step is not None
    assert (stop.step, stop.kept, stop.refusal) == (callback.stopped_step, callback.best_step, "")


def test_a_path_does_not_depend_on_who_looks_at_it():
    from _stopping_rivals import on_full_data
    from _stopping_runs import follow
    from _stopping_stoppers import Lightning

    problem = overfitting()
    data = problem.draw(np.random.default_rng(0))
    alone, watched = (follow(problem, data, 0, ways) for ways in ({"one": Lightning(held_out=False)}, on_full_data()))
    assert {step: watched.errors[step] for step in alone.errors} == alone.errors
    assert {step: watched.entropies[step] for step in alone.entropies} == alone.entropies
    assert follow(problem, data, 0, {}).errors == {problem.steps: alone.errors[problem.steps]}


def test_each_check_knows_the_sum_of_learning_rates_since_the_last():
    from _stopping_runs import follow
    from _stopping_stoppers import Stopper

    class Watch(Stopper):
        def __init__(self):
            self.times = []

        def fires(self, look):
            self.times.append(look.time)
            assert look.optimizer is not None
            assert look.probe is not None
            assert torch.equal(look.probe_rows.sort().values, torch.arange(256))
            return False

    problem, watch = overfitting(), Watch()
    follow(problem, problem.draw(np.random.default_rng(0)), 0, {"watch": watch})
    assert watch.times[0] == 0.0
    assert sum(watch.times) == pytest.approx(200 * 1e-2)


def test_without_enough_examples_for_the_probe_our_rules_say_so_and_keep_the_last_weights():
    from _stopping_data import mixture
    from _stopping_runs import follow
    from _stopping_stoppers import Rule

    problem, rule = overfitting(), Rule(SpectralRisk())
    follow(problem, mixture(100, 0.3)(np.random.default_rng(0)), 0, {"ours": rule})
    found = rule.result(problem.steps)
    assert (found.step, found.kept) == (None, problem.steps)
    assert "at least 128 examples" in found.refusal


def test_validation_keeps_the_best_weights_and_the_plateau_those_at_its_stop():
    from _stopping_stoppers import PATIENCE, Lightning, Stop

    losses = [3.0, 1.0, *[2.0] * PATIENCE, 0.0]  # what comes after the stop is not seen
    validation, plateau = Lightning(held_out=True), Lightning(held_out=False)
    for number, loss in enumerate(losses):
        validation.look(look(number, held_out_loss=loss))
        plateau.look(look(number, loss=loss))
    stop = 10 * (1 + PATIENCE)
    assert validation.result(last=900) == Stop(stop, kept=10)
    assert plateau.result(last=900) == Stop(stop, kept=stop)


def test_what_never_stops_keeps_the_last_weights_and_validation_its_best():
    from _stopping_stoppers import Lightning, Stop

    validation, plateau = Lightning(held_out=True), Lightning(held_out=False)
    for number, loss in enumerate([3.0, 1.0, 2.0]):
        validation.look(look(number, held_out_loss=loss))
        plateau.look(look(number, loss=loss))
    assert validation.result(last=20) == Stop(None, kept=10)
    assert plateau.result(last=20) == Stop(None, kept=20)


def test_a_rule_without_ground_counts_as_no_stop_and_says_why():
    from _stopping_stoppers import Rule

    from lightning_cx.probe import ProbeReading

    draw = torch.Generator().manual_seed(0)
    residuals, features = (torch.randn(200, d, generator=draw, dtype=torch.float64) for d in (1, 3))
    rule = Rule(SpectralRisk())
    for number in range(5):
        rule.look(look(number, reading=ProbeReading(residuals, residuals, features)))
    found = rule.result(last=40)
    assert (found.step, found.kept) == (None, 40)
    assert "do not order the target" in found.refusal


@pytest.mark.parametrize(("in_a_row", "stop"), [(1, 20), (3, 100)])
def test_the_evidence_must_say_so_often_enough_in_a_row(in_a_row, stop):
    from _stopping_rivals import GRADIENTS_EVERY, Evidence

    noise = torch.randn(50, 400, generator=torch.Generator().manual_seed(0))

    class Scripted:
        def at(self, look):
            certain = [True, False, True, False, False, False, False][look.number // GRADIENTS_EVERY]
            return (noise + 1 if certain else noise - noise.mean(0)), 0.0

    way = Evidence(Scripted(), in_a_row)
    for number in range(7 * GRADIENTS_EVERY):
        way.look(look(number))
    assert way.result(last=900).step == stop


def test_evidence_of_a_network_is_that_of_its_gradients_in_one_piece():
    from _evidence import evidence, per_example_gradients
    from _stopping_rivals import ExampleGradients, evidence_by_columns

    problem = overfitting()
    data = problem.draw(np.random.default_rng(0))
    torch.manual_seed(0)
    network = problem.network()
    rows = per_example_gradients(network, data.losses, data.x, data.y)
    found, _ = ExampleGradients().at(replace(look(0, data), network=network))
    assert torch.equal(found, rows)
    assert evidence_by_columns(rows) == pytest.approx(float(evidence(rows)), rel=1e-6)


def test_who_asks_second_for_gradients_is_told_what_they_took():
    from _stopping_rivals import ExampleGradients

    problem = overfitting()
    data = problem.draw(np.random.default_rng(0))
    gradients, seen = ExampleGradients(), replace(look(0, data), network=problem.network())
    (rows, first), (same, second) = gradients.at(seen), gradients.at(seen)
    assert first == 0.0
    assert second > 0.0
    assert same is rows


def test_gradients_without_a_mean_are_credible_half_of_the_time_and_with_one_never():
    from _stopping_rivals import credibility

    draw = torch.Generator().manual_seed(0)
    scales = 1 / torch.arange(1.0, 301.0)
    samples = [torch.randn(100, 300, generator=draw) * scales for _ in range(200)]
    found = np.sort([credibility(rows) for rows in samples])
    assert np.abs(found - (np.arange(200) + 0.5) / 200).max() < 1.63 / 200**0.5  # Kolmogorov, 1%
    assert max(credibility(rows + scales) for rows in samples) < 1e-3
    assert credibility(torch.zeros(10, 4)) == 0.0


def epochs_of(predictions, classes):
    from _stopping_stoppers import Epoch

    data = data_of(torch.zeros(len(classes), 1), classes)
    for number, given in enumerate(predictions):
        yield Epoch(10 * (number + 1), 10 * number, torch.tensor(given), torch.nn.Identity(), data, 2)


def test_label_wave_keeps_the_weights_before_its_wave_first_rises():
    from _stopping_rivals import LabelWave
    from _stopping_stoppers import Stop

    changes = [6, 5, 4, 1, 1, 6, 0, 0, 0]  # over three: 5, 3.3, 2, 2.7
    predictions = [[0] * 8]
    for count in changes:
        predictions.append([1 - old if row < count else old for row, old in enumerate(predictions[-1])])
    way = LabelWave()
    for epoch in epochs_of(predictions, torch.zeros(8, dtype=torch.long)):
        way.look_at_epoch(epoch)
    assert way.changes == changes[:6]
    assert way.result(last=900) == Stop(70, kept=60)


def test_label_wave_has_nothing_to_count_in_a_regression():
    from _stopping_rivals import LabelWave

    way = LabelWave()
    way.look(look(0, data_of(torch.zeros(4, 1), torch.zeros(4, 1))))
    assert "no classes" in way.result(last=900).refusal


def test_gradient_disparity_stops_at_the_fifth_rise_of_all(monkeypatch):
    from _stopping_rivals import GradientDisparity
    from _stopping_stoppers import Stop

    values = iter([3.0, 4.0, 2.0, 2.5, 2.6, 2.6, 2.7, 1.0, 1.1, 9.0])
    monkeypatch.setattr(GradientDisparity, "disparity", lambda self, epoch: next(values))
    way = GradientDisparity()
    for epoch in epochs_of([[0, 0]] * 9, torch.zeros(2, dtype=torch.long)):
        way.look_at_epoch(epoch)
    assert way.result(last=900) == Stop(90, kept=90)


def test_gradient_disparity_is_the_mean_distance_of_pairs_of_batches():
    from _stopping_rivals import GradientDisparity
    from _stopping_stoppers import Epoch

    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=draw), torch.randn(20, 1, generator=draw)
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    found = GradientDisparity().disparity(Epoch(10, 0, torch.zeros(0), network, data_of(x, y), 4))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    gradients = []
    for rows in order.view(5, 4):
        with torch.no_grad():
            residual = network(x[rows]) - y[rows]
            scale = residual.square().std()
            slopes = 2 * residual * torch.cat([x[rows], torch.ones(4, 1)], 1)
        gradients.append(slopes.mean(0) / scale)
    pairs = [(one - other).norm() for i, one in enumerate(gradients) for other in gradients[:i]]
    assert found == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_a_recurrent_network_is_the_same_place_by_place():
    from _stopping_networks import gru, unrolled

    torch.manual_seed(0)
    network, x = gru(3, 2)(), torch.randn(5, 3, 7)
    with unrolled(network):
        by_place = network(x)
    torch.testing.assert_close(by_place, network(x))


def scripted_run():
    """Errors 4, 1.5, 2, 1 on all data, 4, 2, 2, 3 where examples are held out."""
    from _stopping_runs import Curve, Run
    from _stopping_stoppers import Stop

    steps = [0, 10, 20, 30]
    seconds = dict(zip(steps, [0.0, 1.0, 2.0, 4.0], strict=True))
    full = Curve(dict(zip(steps, [4.0, 1.5, 2.0, 1.0], strict=True)), {}, seconds)
    fewer = Curve(dict(zip(steps, [4.0, 2.0, 2.0, 3.0], strict=True)), {}, seconds)
    stops = {
        "ours": Stop(20, kept=10, seconds=0.5),
        "validation": Stop(None, kept=10, path="validation"),
        "none": Stop(None, kept=30),
    }
    return Run("tiny", 0, {"full": full, "validation": fewer}, stops, 0.0, 1.0)


def test_ratios_of_a_run_are_taken_from_the_path_that_each_way_trained_on():
    run = scripted_run()
    assert [run.ratio(way) for way in run.stops] == [1.5, 2.0, 1.0]
    assert [run.saved(way) for way in run.stops] == [pytest.approx(1 / 3), 0.0, 0.0]
    assert [run.time_saved(way) for way in run.stops] == [pytest.approx(1.5 / 4), 0.0, 0.0]


def test_only_a_stop_is_harmful_and_only_where_going_on_would_have_been_better():
    run = scripted_run()
    assert [run.harmful(way) for way in run.stops] == [True, False, False]
    run.paths["full"].errors[30] = 1.45
    assert run.ratio("ours") == pytest.approx(1.5 / 1.45)
    assert not run.harmful("ours")


def test_no_wrong_label_at_all_counts_as_half_a_one():
    run = scripted_run()
    run.paths["full"].errors[30] = 0.0
    assert replace(run, floor=0.5).ratio("ours") == 3.0


def test_a_run_survives_its_file(tmp_path):
    from _stopping_problems import PROBLEMS
    from _stopping_runs import Run, run

    found = run(PROBLEMS["tiny-classes"], SEED)
    found.save(tmp_path / "below" / "a.json")
    assert Run.load(tmp_path / "below" / "a.json") == found


def test_ways_of_stopping_can_be_asked_again_of_the_same_path_and_of_no_other():
    from _stopping_problems import PROBLEMS
    from _stopping_rivals import on_full_data
    from _stopping_runs import again, run

    problem = PROBLEMS["tiny-classes"]
    found = run(problem, SEED)
    assert again(found, problem, {"new": on_full_data()["dominance"]}).stops["new"] == found.stops["dominance"]
    found.paths["full"].errors[problem.steps] += 1e-9
    with pytest.raises(RuntimeError, match="the path is another"):
        again(found, problem, on_full_data())


# The problems


def test_both_halves_have_every_problem_once_and_are_those_of_the_draw():
    from _stopping_problems import DEVELOP, DEVELOP_NEW, NEW, PROBLEMS, REPORT, SPLIT_SEED, halves

    assert halves(NEW, SPLIT_SEED) == (DEVELOP_NEW, REPORT)
    assert sorted((*DEVELOP, *REPORT)) == sorted(name for name, problem in PROBLEMS.items() if problem.listed)
    kinds = [{PROBLEMS[name].kind for name in half} for half in (DEVELOP_NEW, REPORT)]
    assert kinds[0] == kinds[1]


def names_of_problems():
    """By their file, since `benchmarks` is on the path only inside of a test."""
    source = (BENCHMARKS / "_stopping_problems.py").read_text()
    return re.findall(r'(?:Problem|add)\(\s*"([a-z0-9-]+)",', source)


@pytest.mark.parametrize("name", names_of_problems())
def test_every_problem_is_drawn_alike_from_one_seed_and_can_be_trained(name):
    from _stopping_problems import PROBLEMS
    from _stopping_runs import Training

    problem = PROBLEMS[name]
    try:
        data, again = (problem.draw(np.random.default_rng(0)) for _ in range(2))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert torch.equal(data.x, again.x)
    assert torch.equal(data.y, again.y)
    assert 64 <= len(data.x) <= 2048
    assert len(data.test_x) == len(data.test_y) >= 60
    training = Training(problem, data, seed=0)
    for step in range(1, 4):
        training.until(step)
        with torch.no_grad():
            outputs = training.network(data.test_x)
        losses = problem.losses(outputs, data.test_y)
        assert losses.shape == (len(data.test_x),)
        assert torch.isfinite(losses).all()
        assert 0 < problem.error(outputs, data.test_y) < math.inf


def test_all_problems_were_found():
    from _stopping_problems import PROBLEMS

    assert sorted(names_of_problems()) == sorted(PROBLEMS)


def test_a_schedule_ends_where_its_name_says():
    from _stopping_problems import CONSTANT, COSINE, ONE_CYCLE, PROBLEMS, STEPS, Recipe

    ends = {}
    for schedule in (CONSTANT, COSINE, ONE_CYCLE, STEPS):
        problem = replace(PROBLEMS["tiny-classes"], recipe=Recipe(0.1, schedule=schedule))
        optimizer, scheduler = problem.optimizer(problem.network())
        rates = []
        for _ in range(problem.steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        ends[schedule] = rates[-1]
        assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert ends[CONSTANT] == 0.1
    assert ends[COSINE] < 1e-3
    assert ends[ONE_CYCLE] < 1e-3
    assert ends[STEPS] == pytest.approx(1e-3)


def test_where_classes_are_rare_the_error_is_the_mean_over_them():
    from _stopping_problems import PROBLEMS

    problem = replace(PROBLEMS["tiny-classes"], balanced=True)
    targets = torch.tensor([0, 0, 0, 1])
    outputs = torch.eye(2)[torch.tensor([0, 0, 1, 0])]
    assert problem.error(outputs, targets) == pytest.approx((1 / 3 + 1) / 2)
    assert replace(problem, balanced=False).error(outputs, targets) == 0.5


def test_noise_is_in_the_training_targets_and_not_in_those_of_the_test():
    from _stopping_data import cancer, digits, mixture
    from _stopping_problems import in_ten, on_plane, on_torus

    for draw in (on_plane, on_torus, in_ten):
        noisy, clean = (draw(sigma)(np.random.default_rng(0)) for sigma in (0.5, 0.0))
        assert torch.equal(noisy.test_y, clean.test_y)
        assert float((noisy.y - clean.y).std()) == pytest.approx(0.5, rel=0.1)
    for draw, classes in ((lambda share: mixture(768, share), 4), (cancer, 2), (digits, 10)):
        noisy, clean = (draw(share)(np.random.default_rng(0)) for share in (0.4, 0.0))
        assert torch.equal(noisy.test_y, clean.test_y)
        assert float((noisy.y != clean.y).double().mean()) == pytest.approx(0.4 * (1 - 1 / classes), abs=0.05)


@pytest.mark.parametrize("noise", ["gaussian", "heavy", "uneven", "flips", "look_alikes"])
def test_noise_of_a_data_set_leaves_its_test_alone(noise):
    import _stopping_data as made

    kinds = {"gaussian": [1.0], "heavy": [1.0], "uneven": [1.0, 0], "flips": [0.3], "look_alikes": [0.3]}
    load = made.toy("digits", made.pixels) if noise in ("flips", "look_alikes") else made.toy("diabetes")
    add = getattr(made, noise)(*kinds[noise])
    noisy, clean = (made.split(load, 300, kind)(np.random.default_rng(0)) for kind in (add, None))
    assert torch.equal(noisy.x, clean.x)
    assert torch.equal(noisy.test_y, clean.test_y)
    assert 60 < int((noisy.y != clean.y).sum()) <= 300


def test_a_share_of_the_labels_is_drawn_anew():
    from _stopping_data import redrawn

    classes = np.arange(100_000) % 4
    wrong = (redrawn(classes, 0.4, 4, np.random.default_rng(0)) != classes).mean()
    assert wrong == pytest.approx(0.3, abs=0.01)


def test_look_alikes_are_the_examples_nearest_to_another_class():
    from _stopping_data import look_alikes

    x = np.array([[0.0], [0.1], [0.9], [2.0], [1.9], [1.05]])
    y = np.array([0, 0, 0, 1, 1, 1])
    assert look_alikes(1 / 6)(x, y, np.random.default_rng(0)).tolist() == [0, 0, 0, 1, 1, 0]


def test_uneven_noise_grows_with_its_column():
    from _stopping_data import uneven

    x = np.repeat([[-1.0], [1.0]], 5000, axis=0)
    low, high = np.split(uneven(1.0, 0)(x, np.zeros((10_000, 1)), np.random.default_rng(0)), 2)
    assert high.std() / low.std() == pytest.approx(math.e**2, rel=0.05)


def test_a_moved_picture_has_the_pixels_of_the_one_that_it_was():
    from _stopping_data import nudged, shifted

    pictures = torch.zeros(200, 8, 8)
    pictures[:, 3, 4] = 1
    moved = nudged(pictures.flatten(1), torch.Generator().manual_seed(0)).view(200, 8, 8)
    places = moved.flatten(1).argmax(1)
    assert torch.equal(moved.sum((1, 2)), torch.ones(200))
    assert set(places.tolist()) == {8 * row + column for row in (2, 3, 4) for column in (3, 4, 5)}
    series = torch.arange(40.0).expand(30, 1, 40)
    turned = shifted(series, torch.Generator().manual_seed(0)).round()
    assert torch.equal(turned.sort(2).values, series)


def test_rare_classes_get_rarer_in_training_alone():
    from _stopping_data import digits, rare

    thin, whole = (draw(np.random.default_rng(0)) for draw in (rare(digits(0.0)), digits(0.0)))
    counts = torch.bincount(thin.y)
    assert counts[0] == torch.bincount(whole.y)[0]
    assert counts[9] < 0.2 * counts[0]
    assert torch.equal(thin.test_y, whole.test_y)


# What packages ship


def test_a_table_is_read_from_its_archive_and_loses_incomplete_rows(tmp_path, monkeypatch):
    import _stopping_sources as sources

    text = b'"","size","kind"\n"1",2,"b"\n"2",NA,"a"\n"3",4,"a"\n'
    with tarfile.open(tmp_path / "resources.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("resources/rdata/csv/made/up.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    monkeypatch.setattr(sources, "folder_of", lambda package: tmp_path)
    assert sources.numbers(sources.r_table.__wrapped__("made/up"), "size", "kind").tolist() == [[2.0, 1.0], [4.0, 0.0]]
    with pytest.raises(FileNotFoundError, match="made/down"):
        sources.r_table.__wrapped__("made/down")


def test_series_are_read_channel_by_channel_with_their_classes(tmp_path, monkeypatch):
    import _stopping_sources as sources

    folder = tmp_path / "datasets" / "data" / "Up"
    folder.mkdir(parents=True)
    (folder / "Up_TRAIN.ts").write_text("#said\n@classLabel true b a\n@data\n1,2,3:4,5,6:b\n")
    (folder / "Up_TEST.ts").write_text("@Data\n7,8,9:0,0,0:a\n")
    monkeypatch.setattr(sources, "folder_of", lambda package: tmp_path)
    x, y = sources.series.__wrapped__("made", "Up")
    assert x.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 0]]]
    assert y.tolist() == [1, 0]


def test_a_package_that_is_not_there_is_asked_for():
    from _stopping_sources import folder_of

    with pytest.raises(ModuleNotFoundError, match="made_up brings: see how `make benchmark-stopping`"):
        folder_of("made_up")
