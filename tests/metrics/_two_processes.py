"""What each of two processes does in `test_two_processes.py`; they import it by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _metric_data import draw, examples, gram
from _metric_data import gradients as heavy
from torch import Tensor, distributed
from torchmetrics import Metric, MetricCollection

from lightning_cx.metrics import GradientNoiseScale, MedianComplexity, ResidualSpectrum, TailIndex

Share = Callable[[int], list[tuple[Tensor, ...]]]


def interleaved(rank: int) -> list[tuple[Tensor, ...]]:
    """80 and 40 of 120 examples, in batches of 30, 30 and 20 and of 30 and 10."""
    features, values = examples()
    is_first = (torch.arange(120) % 5 < 3) | (torch.arange(120) >= 100)
    mine = is_first if rank == 0 else ~is_first
    return list(zip(features[mine].split(30), values[mine].split(30), strict=True))


def first_only(rank: int) -> list[tuple[Tensor, ...]]:
    return [examples()] if rank == 0 else []


def second_only(rank: int) -> list[tuple[Tensor, ...]]:
    return [examples()] if rank == 1 else []


def words(rank: int) -> list[tuple[Tensor, ...]]:
    """Token ids of which some occur in one process only."""
    ids = torch.randint(40, (90, 8), generator=draw(0))
    mine = ids[:, 0] < 15 if rank == 0 else ids[:, 0] >= 15
    return [(ids[mine], (ids[mine] == 3).sum(1))]


def many(rank: int) -> list[tuple[Tensor, ...]]:
    features, values = examples(1000)
    mine = slice(0, 300) if rank == 0 else slice(300, None)
    return [(features[mine], values[mine])]


def noisy_batches(rank: int) -> list[Tensor]:
    """Gradients of five batches; the first process has larger ones, and one batch more."""
    count, size = (6, 40) if rank == 0 else (5, 25)
    return [heavy(size, seed=10 * step + rank) * 0.8**step for step in range(count)]


def gradients(rank: int) -> list[tuple[Tensor, ...]]:
    return [(gram(n, seed=n),) for n in ((16, 40, 1) if rank == 0 else (24,))]


CASES: dict[str, tuple[Callable[[], Metric], Share]] = {
    "median, interleaved": (MedianComplexity, interleaved),
    "spectrum, interleaved": (ResidualSpectrum, interleaved),
    "median, words": (MedianComplexity, words),
    "spectrum, words": (ResidualSpectrum, words),
    "median, a sample of many": (lambda: MedianComplexity(max_examples=64), many),
    "spectrum, nothing on the second process": (ResidualSpectrum, first_only),
    "spectrum, nothing on the first process": (ResidualSpectrum, second_only),
    "noise scale": (GradientNoiseScale, gradients),
    "noise scale, after a cast": (lambda: GradientNoiseScale().to(torch.bfloat16), gradients),
    "spectrum on the processor": (lambda: ResidualSpectrum(compute_on_cpu=True), interleaved),
}


def answer(case: str, ranks: list[int]) -> Tensor:
    make, share = CASES[case]
    metric = make()
    for rank in ranks:
        for batch in share(rank):
            metric.update(*batch)
    return metric.compute()


def work(rank: int, folder: str) -> None:
    """Compute every case on the data of this process, synced with the other, and save what came out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results: dict[str, Any] = {case: answer(case, [rank]) for case in CASES}

    on_step = GradientNoiseScale(dist_sync_on_step=True)
    results["forward, synced on step"] = on_step(gram(seed=rank))

    collection = MetricCollection([MedianComplexity(), ResidualSpectrum()])
    for batch in interleaved(rank):
        collection.update(*batch)
    results["collection"] = collection.compute()

    noise = GradientNoiseScale()
    noise.update(gram(seed=rank))
    interval = noise.interval()
    results["interval"] = (interval.low, interval.high)
    results["own signal after the sync"] = noise.signal

    tail = TailIndex()
    for batch in noisy_batches(rank):
        tail.update(batch)
    report = tail.report()
    results["tail"] = (report.alpha, report.alpha_low, report.xi, report.sum_alpha, report.p_gaussian)
    results["tail words"] = str(report)
    results["tail computed"] = tail.compute()
    results["tail held"] = tail.held
    lonely = TailIndex()
    if rank == 0:
        lonely.update(heavy())
    results["tail, nothing on the second process"] = lonely.compute()

    again = MedianComplexity()
    again.update(*interleaved(rank)[0])
    again.compute()
    for batch in interleaved(rank)[1:]:
        again.update(*batch)
    results["updated after a synced compute"] = again.compute()

    distributed.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
