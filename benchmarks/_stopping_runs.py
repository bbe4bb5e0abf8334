"""One run of one problem: the path on all data, the path on four fifths of it, and where each way of stopping ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from _stopping_problems import Data, Problem
from _stopping_stoppers import Lightning, Look, Stop, Stopper, on_full_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, default_collate

from lightning_cx.callbacks.budget import next_check
from lightning_cx.callbacks.probing import GATE_EXAMPLES
from lightning_cx.gradients import GradientSample
from lightning_cx.probe import ProbeReading, ProbeSet

HELD_OUT = 0.2
FIRST_DRAW = 1000  # added to the seed, so that data and weights come from different streams
VALIDATION = "validation"


@dataclass(frozen=True)
class Run:
    """What one seed of one problem gave.

    Attributes:
        problem: Its name.
        seed: Of data, weights and batches.
        checks: Optimizer steps done at each check, the first and the last step among them.
        errors: Test error at each, trained on all data.
        entropies: Test cross entropy likewise; empty for regressions.
        held_out_errors: Test error at each, trained without the validation examples.
        held_out_entropies: Likewise.
        stops: How each way of stopping ended.
        seconds: That all this took.
    """

    problem: str
    seed: int
    checks: list[int]
    errors: list[float]
    entropies: list[float]
    held_out_errors: list[float]
    held_out_entropies: list[float]
    stops: dict[str, Stop]
    seconds: float

    def ratio(self, way: str, entropy: bool = False) -> float:
        """Test error of the weights that a way of stopping keeps, over the smallest of the path on all data."""
        full, held_out = (self.entropies, self.held_out_entropies) if entropy else (self.errors, self.held_out_errors)
        kept = self.checks.index(self.stops[way].kept)
        return (held_out if way == VALIDATION else full)[kept] / min(full)

    def saved(self, way: str) -> float:
        """Share of the run that stopping saves."""
        step = self.stops[way].step
        return 0.0 if step is None else 1 - step / self.checks[-1]

    def still_to_come(self, way: str) -> float:
        """Smallest test error from the stop on, over that at the stop."""
        step = self.stops[way].step
        later = self.errors[self.checks.index(self.checks[-1] if step is None else step) :]
        return min(later) / later[0]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")  # so a run that is cut off leaves no half result
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Run:
        fields = json.loads(path.read_text())
        return cls(**fields | {"stops": {way: Stop(**stop) for way, stop in fields["stops"].items()}})


def run(problem: Problem, seed: int) -> Run:
    """Train both paths of one seed and read every way of stopping off them."""
    start = perf_counter()
    data = problem.draw(np.random.default_rng(FIRST_DRAW + seed))
    probe = probe_of(data, problem)
    checks = checks_of(problem.steps, probe)
    rows = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
    held_out = round(HELD_OUT * len(rows))
    full = follow(problem, data, seed, checks, ways := on_full_data(), probe=probe)
    fewer = follow(
        problem,
        data.take(rows[held_out:]),
        seed,
        checks,
        validation := {VALIDATION: Lightning(held_out=True)},
        held_out=data.take(rows[:held_out]),
    )
    stops = {way: stopper.result(checks[-1]) for way, stopper in (ways | validation).items()}
    stops["none"] = Stop(None, checks[-1])
    return Run(problem.name, seed, checks, *full, *fewer, stops, perf_counter() - start)


def probe_of(data: Data, problem: Problem) -> ProbeSet:
    """The callback's own probe, drawn in batches as from the training loader."""
    probe, dataset = ProbeSet(), TensorDataset(data.x, data.y)
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, default_collate, problem.batch or len(dataset))
    return probe


def checks_of(steps: int, probe: ProbeSet) -> list[int]:
    """The callback's own grid, with the last step."""
    least_gap = max(1, probe.examples // probe.chunk_size)  # `ProbeCheck.least_gap` of one process
    checks = [0]
    while checks[-1] < steps:
        checks.append(min(steps, next_check(checks[-1], None, least_gap)))
    return checks


def follow(
    problem: Problem,
    data: Data,
    seed: int,
    checks: list[int],
    stoppers: Mapping[str, Stopper],
    probe: ProbeSet | None = None,
    held_out: Data | None = None,
) -> tuple[list[float], list[float]]:
    """Train to the end, show all stoppers every check, and give test errors and cross entropies there.

    A stop changes nothing before it, so one path serves them all.
    """
    errors, entropies = [], []
    for number, network in enumerate(train(problem, data, seed, checks)):
        with torch.no_grad():
            output = network(data.test_x)
            errors.append(error_of(output, data.test_y))
            entropies += [float(F.cross_entropy(output, data.test_y))] if data.classifies else []
            loss = mean_loss(network, data)
            held_out_loss = math.nan if held_out is None else mean_loss(network, held_out)
        reading, gradients = (None, None) if probe is None else read(probe, network, data, first=number == 0)
        look = Look(number, checks[number], network, data, loss, held_out_loss, reading, gradients)
        for stopper in stoppers.values():
            stopper.look(look)
    return errors, entropies


def train(problem: Problem, data: Data, seed: int, checks: list[int]) -> Iterator[nn.Module]:
    """Give the network at each check, from before the first step on."""
    torch.manual_seed(seed)
    network = problem.network()
    optimizer, batches = problem.optimizer(network), batches_of(len(data.x), problem.batch, seed)
    for start, end in pairwise([0, *checks]):
        for _ in range(end - start):
            rows = next(batches)
            x, y = (data.x, data.y) if rows is None else (data.x[rows], data.y[rows])
            optimizer.zero_grad()
            data.losses(network(x), y).mean().backward()
            optimizer.step()
        yield network


def batches_of(examples: int, batch: int | None, seed: int) -> Iterator[Tensor | None]:
    """Rows of each step, shuffled anew in each epoch, an incomplete last batch dropped; None stands for all."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from [None] if batch is None else order[: examples // batch * batch].split(batch)


def read(probe: ProbeSet, network: nn.Module, data: Data, first: bool) -> tuple[ProbeReading, GradientSample | None]:
    """What the callback asks for: a pass over the probe, and once the gradients for its gate."""

    def loss_of(batch: list[Tensor]) -> Tensor:
        return data.losses(network(batch[0]), batch[1]).mean()

    reading = probe.read(network, loss_of)
    return reading, probe.passes(network, loss_of).gradients(GATE_EXAMPLES) if first else None


def mean_loss(network: nn.Module, data: Data) -> float:
    return float(data.losses(network(data.x), data.y).mean())


def error_of(output: Tensor, target: Tensor) -> float:
    """Mean squared error, or the share of wrong labels."""
    if target.is_floating_point():
        return float((output - target).square().mean())
    return float((output.argmax(1) != target).double().mean())
