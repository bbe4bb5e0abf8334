"""The benchmark of stopping rules: its table, and that what it reads off a path is what a training run would do."""

from __future__ import annotations

import math
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_cx import ComplexityEarlyStopping
from lightning_cx.rules import SpectralRisk

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = 100


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def overfitting():
    """A problem small enough for a Trainer, on which the rule stops."""
    from _networks import mlp
    from _stopping_problems import Problem, mixture

    return Problem("overfitting", "overfitting", mixture(256, 0.3), lambda: mlp(8, 64, 4), 200, 1e-2)


def look(number, loss=1.0, held_out_loss=1.0, reading=None):
    from _stopping_stoppers import Look

    return Look(number, 10 * number, torch.nn.Identity(), None, loss, held_out_loss, reading)


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
    noisy, clean = (next(line for line in lines if line[0] == name) for name in ("1-D regression", "Gaussian mixture"))
    assert lines[0] == ["problem", *TITLES.values()]
    for row in (noisy, clean):
        ratios = [float(number) for cell in row[1:] for number in re.findall(r"[\d.]+", cell)]
        assert len(ratios) == 2 * len(TITLES)
        assert all(math.isfinite(ratio) and ratio > 0.5 for ratio in ratios)

    monkeypatch.setattr(stopping, "run", lambda *_: pytest.fail("the cache was not read"))
    stopping.main(options)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == [
        line for line in first.splitlines() if line.startswith("|")
    ]


def test_the_rule_stops_and_keeps_where_the_callback_does(tmp_path):
    """The same data, weights and steps in a Trainer: full batches, so that no order of batches comes in."""
    from _stopping_runs import FIRST_DRAW, run

    problem = overfitting()
    stop = run(problem, SEED).stops["ours"]

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
            return problem.optimizer(self)

    callback = ComplexityEarlyStopping(strict=True, verbose=False)
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
    from _stopping_runs import checks_of, follow, probe_of
    from _stopping_stoppers import on_full_data

    problem = overfitting()
    data = problem.draw(np.random.default_rng(0))
    probe = probe_of(data, problem)
    checks = checks_of(problem.steps, probe)
    assert follow(problem, data, 0, checks, {}) == follow(problem, data, 0, checks, on_full_data(), probe=probe)


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
    from _stopping_stoppers import EVIDENCE_EVERY, Evidence

    class Scripted:
        def at(self, look):
            return [-1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0][look.number // EVIDENCE_EVERY]

    way = Evidence(Scripted(), in_a_row)
    for number in range(7 * EVIDENCE_EVERY):
        way.look(look(number))
    assert way.result(last=900).step == stop


def test_evidence_of_a_network_is_that_of_its_gradients_in_one_piece():
    from _evidence import evidence, per_example_gradients
    from _stopping_stoppers import evidence_now

    problem = overfitting()
    data = problem.draw(np.random.default_rng(0))
    torch.manual_seed(0)
    network = problem.network()
    rows = per_example_gradients(network, data.losses, data.x, data.y)
    assert evidence_now(network, data) == pytest.approx(float(evidence(rows)), rel=1e-6)


def test_ratios_of_a_run_are_taken_from_the_path_that_each_way_trained_on():
    from _stopping_runs import Run
    from _stopping_stoppers import Stop

    stops = {"ours": Stop(20, kept=10), "validation": Stop(None, kept=10), "none": Stop(None, kept=30)}
    run = Run("tiny", 0, [0, 10, 20, 30], [4.0, 1.5, 2.0, 1.0], [], [4.0, 2.0, 2.0, 3.0], [], stops, 1.0)
    assert [run.ratio(way) for way in stops] == [1.5, 2.0, 1.0]
    assert [run.saved(way) for way in stops] == [pytest.approx(1 / 3), 0.0, 0.0]
    assert run.still_to_come("ours") == 0.5
    assert run.still_to_come("none") == 1.0


def test_seeds_that_a_setting_was_chosen_on_are_left_out_of_a_table_of_their_own():
    from _stopping_problems import PROBLEMS
    from _stopping_report import Row, unseen
    from _stopping_runs import Run

    runs = [Run("tiny", seed, [0], [1.0], [], [1.0], [], {}, 1.0) for seed in (5, 6, 105, 106)]
    (row,) = unseen([Row(PROBLEMS["tiny"], runs)])
    assert [run.seed for run in row.runs] == [6, 106]
    assert unseen([row]) == []


def test_a_run_survives_its_file(tmp_path):
    from _stopping_problems import PROBLEMS
    from _stopping_runs import Run, run

    found = run(PROBLEMS["tiny-classes"], SEED)
    found.save(tmp_path / "below" / "a.json")
    assert Run.load(tmp_path / "below" / "a.json") == found


def test_every_problem_is_drawn_alike_from_one_seed_and_fits_its_network():
    from _stopping_problems import PROBLEMS

    for problem in PROBLEMS.values():
        data, again = (problem.draw(np.random.default_rng(0)) for _ in range(2))
        assert torch.equal(data.x, again.x), problem.name
        assert torch.equal(data.y, again.y), problem.name
        losses = data.losses(problem.network()(data.test_x), data.test_y)
        assert losses.shape == (len(data.test_x),), problem.name
        assert torch.isfinite(losses).all(), problem.name


def test_noise_is_in_the_training_targets_and_not_in_those_of_the_test():
    from _stopping_problems import cancer, digits, in_ten, mixture, on_plane, on_torus

    for draw in (on_plane, on_torus, in_ten):
        noisy, clean = (draw(sigma)(np.random.default_rng(0)) for sigma in (0.5, 0.0))
        assert torch.equal(noisy.test_y, clean.test_y)
        assert float((noisy.y - clean.y).std()) == pytest.approx(0.5, rel=0.1)
    for draw, classes in ((lambda share: mixture(768, share), 4), (cancer, 2), (digits, 10)):
        noisy, clean = (draw(share)(np.random.default_rng(0)) for share in (0.4, 0.0))
        assert torch.equal(noisy.test_y, clean.test_y)
        assert float((noisy.y != clean.y).double().mean()) == pytest.approx(0.4 * (1 - 1 / classes), abs=0.05)


def test_a_share_of_the_labels_is_drawn_anew():
    from _stopping_problems import redrawn

    classes = np.arange(100_000) % 4
    wrong = (redrawn(classes, 0.4, 4, np.random.default_rng(0)) != classes).mean()
    assert wrong == pytest.approx(0.3, abs=0.01)
