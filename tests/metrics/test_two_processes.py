"""Two processes that each saw a part answer, both, what one process answers that saw everything."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _metric_data import gradients, gram
from _two_processes import CASES, answer, interleaved, noisy_batches, work
from torch import multiprocessing

from lightning_cx.functional import alpha_ecf, noise_scale, pool_noise_scales, tail_report
from lightning_cx.functional.tails.ecf import project
from lightning_cx.functional.tails.pooling import without_drift
from lightning_cx.metrics import MedianComplexity, ResidualSpectrum

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("two")
    multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:GradientNoiseScale leaves out 1 of 4 batches")
def test_both_processes_answer_as_one_that_saw_everything(results, case):
    expected = answer(case, [0, 1])
    assert expected.isfinite().all()
    for result in results:
        torch.testing.assert_close(result[case], expected, **TOLERANCE)


@pytest.mark.parametrize("kind", [MedianComplexity, ResidualSpectrum])
def test_a_collection_is_synced_too(results, kind):
    metric = kind()
    for rank in (0, 1):
        for batch in interleaved(rank):
            metric.update(*batch)
    for result in results:
        torch.testing.assert_close(result["collection"][kind.__name__], metric.compute(), **TOLERANCE)


def test_the_tail_is_that_of_the_noise_of_all_processes(results):
    """Each process takes its own means off; batches of the same number belong to one time and one step."""
    rows, steps = [], []
    for rank in (0, 1):
        for step, batch in enumerate(noisy_batches(rank)):
            projected = project(batch, 16, 0)
            rows.append(projected - projected.mean(0))
            steps.append(torch.full((len(batch),), step + 1.0))
    noise, steps = torch.cat(rows), torch.cat(steps)
    norms = noise.square().mean(1, keepdim=True).sqrt()
    level = without_drift(torch.cat([noise, norms], 1), steps)
    expected = tail_report(level[:, :-1], 65, projections=None, norms=level[:, -1])
    assert expected.sum_size == 5  # 365 examples
    numbers = (expected.alpha, expected.alpha_low, expected.xi, expected.sum_alpha, expected.p_gaussian)
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["tail"], numbers, **TOLERANCE)
        assert result["tail words"] == str(expected)
        torch.testing.assert_close(result["tail computed"], expected.alpha, **TOLERANCE)
        assert result["tail held"] == (240, 125)[rank]  # its own, once the sync is over


def test_a_process_that_saw_no_gradients_answers_too(results):
    for result in results:
        noise = project(gradients(), 16, 0)
        expected = alpha_ecf(noise - noise.mean(0), projections=None).index
        torch.testing.assert_close(result["tail, nothing on the second process"], expected, **TOLERANCE)


def test_the_interval_is_synced_and_leaves_the_own_sums_as_they_were(results):
    expected = pool_noise_scales([noise_scale(gram(seed=0)), noise_scale(gram(seed=1))])
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["interval"], (expected.low, expected.high), **TOLERANCE)
        torch.testing.assert_close(result["own signal after the sync"], noise_scale(gram(seed=rank)).signal)


def test_forward_is_synced_where_that_is_asked_for(results):
    expected = pool_noise_scales([noise_scale(gram(seed=0)), noise_scale(gram(seed=1))])
    for result in results:
        torch.testing.assert_close(result["forward, synced on step"], expected.value, **TOLERANCE)


def test_a_process_can_go_on_after_a_sync(results):
    for result in results:
        expected = answer("median, interleaved", [0, 1])
        torch.testing.assert_close(result["updated after a synced compute"], expected, **TOLERANCE)
