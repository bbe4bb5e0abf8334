"""One run of one problem: its paths, and where each way of stopping ends on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time

import numpy as np
import torch
from _stopping_data import Data
from _stopping_problems import COSINE, Problem
from _stopping_rivals import on_full_data
from _stopping_stoppers import FULL, Epoch, Lightning, Look, Stop, Stopper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset, default_collate

from lightning_cx.callbacks.budget import next_check
from lightning_cx.callbacks.probing import GATE_EXAMPLES
from lightning_cx.gradients import GradientSample
from lightning_cx.probe import ProbeReading, ProbeSet

HELD_OUT = {"validation": 0.2, "validation-10": 0.1}  # share of the examples
ANNEALED = "cosine"
NONE = "none"
FIRST_DRAW = 1000  # added to the seed, so that data and weights come from different streams
HARM = 1.05  # times an error that a harmful stop exceeds


@dataclass
class Curve:
    """What one training run was like.

    Attributes:
        errors: Test error after so many steps: at every check, the first and the last step among them, and at ends of
            epochs while a way of stopping looks there.
        entropies: Test cross entropy likewise; empty for regressions.
        seconds: Of the processor, that training took up to each; other work on the machine does not count.
    """

    errors: dict[int, float] = field(default_factory=dict)
    entropies: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.errors)

    @classmethod
    def of(cls, fields: Mapping[str, Mapping[str, float]]) -> Curve:
        """From JSON, which knows no whole numbers as keys."""
        return cls(**{name: {int(step): value for step, value in by.items()} for name, by in fields.items()})


@dataclass(frozen=True)
class Run:
    """What one seed of one problem gave.

    Attributes:
        problem: Its name.
        seed: Of data, weights and batches.
        paths: Training runs: on all examples, without those held out, and with the learning rate falling to 0.
        stops: How each way of stopping ended.
        floor: Half a test example: errors of classes below count as that.
        seconds: Of the processor, that all this took.
    """

    problem: str
    seed: int
    paths: dict[str, Curve]
    stops: dict[str, Stop]
    floor: float
    seconds: float

    @property
    def classifies(self) -> bool:
        return bool(self.paths[FULL].entropies)

    def errors(self, path: str, entropy: bool = False) -> dict[int, float]:
        found = self.paths[path].entropies if entropy else self.paths[path].errors
        return {step: max(error, self.floor) if not entropy else error for step, error in found.items()}

    def kept(self, way: str, entropy: bool = False) -> float:
        """Test error of the weights that a way of stopping keeps."""
        return self.errors(self.stops[way].path, entropy)[self.stops[way].kept]

    def ratio(self, way: str, entropy: bool = False) -> float:
        """That over the smallest test error of the path on all data."""
        return self.kept(way, entropy) / min(self.errors(FULL, entropy).values())

    def harmful(self, way: str) -> bool:
        """Whether it stopped, and keeps over 5% more error than the best and than the end of the run."""
        return self.stops[way].step is not None and self.kept(way) > HARM * max(
            min(self.errors(FULL).values()), self.kept(NONE)
        )

    def saved(self, way: str) -> float:
        """Share of the steps that stopping saves."""
        step = self.stops[way].step
        return 0.0 if step is None else 1 - step / self.paths[self.stops[way].path].last

    def time_saved(self, way: str) -> float:
        """Share of the time of a run on all data without checks; negative where the looks took more."""
        stop, full = self.stops[way], self.paths[FULL]
        path = self.paths[stop.path]
        took = path.seconds[path.last if stop.step is None else stop.step] + stop.seconds
        return 1 - took / full.seconds[full.last]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")  # so a run that is cut off leaves no half result
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Run:
        fields = json.loads(path.read_text())
        paths = {name: Curve.of(found) for name, found in fields["paths"].items()}
        stops = {way: Stop(**stop) for way, stop in fields["stops"].items()}
        return cls(**fields | {"paths": paths, "stops": stops})


def run(problem: Problem, seed: int) -> Run:
    """Train all paths of one seed and read every way of stopping off them."""
    start = process_time()
    data = problem.draw(np.random.default_rng(FIRST_DRAW + seed))
    ways = on_full_data()
    paths = {FULL: follow(problem, data, seed, ways)}
    stops = {way: stopper.result(paths[FULL].last) for way, stopper in ways.items()}
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
    for way, share in HELD_OUT.items():
        held_out, rest = order.split([round(share * len(order)), len(order) - round(share * len(order))])
        stopper = Lightning(held_out=True)
        paths[way] = follow(problem, data.take(rest), seed, {way: stopper}, data.take(held_out))
        stops[way] = stopper.result(paths[way].last, way)
    annealed = FULL if problem.recipe.schedule == COSINE else ANNEALED
    if annealed == ANNEALED:
        paths[ANNEALED] = follow(problem.annealed(), data, seed, {})
    stops[ANNEALED], stops[NONE] = Stop(None, problem.steps, path=annealed), Stop(None, problem.steps)
    floor = 0.5 / len(data.test_y) if data.classifies else 0.0
    return Run(problem.name, seed, paths, stops, floor, process_time() - start)


def again(found: Run, problem: Problem, ways: Mapping[str, Stopper]) -> Run:
    """Show the path on all data to some ways of stopping anew, for instance after they were changed.

    Raises:
        RuntimeError: If the path is not the one of before, as with another torch or machine.
    """
    data = problem.draw(np.random.default_rng(FIRST_DRAW + found.seed))
    path = follow(problem, data, found.seed, ways)
    before = found.paths[FULL]
    if any(before.errors[step] != error for step, error in path.errors.items() if step in before.errors):
        raise RuntimeError(f"{found.problem}, seed {found.seed}: the path is another; run it anew, in a new --cache.")
    stops = {way: stopper.result(before.last) for way, stopper in ways.items()}
    merged = Curve(*(getattr(path, name) | getattr(before, name) for name in ("errors", "entropies", "seconds")))
    return Run(found.problem, found.seed, found.paths | {FULL: merged}, found.stops | stops, found.floor, found.seconds)


class Probe:
    """The callback's own probe, drawn in batches as from the training loader."""

    def __init__(self, data: Data, problem: Problem) -> None:
        self.set, self.refusal = ProbeSet(), ""
        inputs = data.x
        if problem.augment is not None:  # the callback keeps examples as the data set gives them
            inputs = problem.augment(inputs, torch.Generator().manual_seed(0))
        dataset: Dataset = TensorDataset(inputs, data.y)
        try:
            self.set.choose(len(data.x))
            while not self.set.complete:
                self.set.draw(dataset, default_collate, problem.batch or len(data.x))
        except ValueError as error:
            self.refusal = str(error)
        self.rows = torch.tensor(self.set.indices or [], dtype=torch.long)

    def read(self, network: nn.Module, problem: Problem, first: bool) -> tuple[ProbeReading, GradientSample | None]:
        """What the callback asks for: a pass over the probe, and once the gradients for its gate."""

        def loss_of(batch: list[Tensor]) -> Tensor:
            return problem.losses(network(batch[0]), batch[1]).mean()

        reading = self.set.read(network, loss_of)
        return reading, self.set.passes(network, loss_of).gradients(GATE_EXAMPLES) if first else None

    @property
    def least_gap(self) -> int:
        """Steps between two checks at least: `ProbeCheck.least_gap` of one process."""
        return 1 if self.refusal else max(1, self.set.examples // self.set.chunk_size)


def checks_of(steps: int, probe: Probe) -> list[int]:
    """The callback's own grid, with the last step."""
    checks = [0]
    while checks[-1] < steps:
        checks.append(min(steps, next_check(checks[-1], None, probe.least_gap)))
    return checks


class Training:
    """A network on its way.

    Args:
        problem: How it is trained.
        data: On what.
        seed: Of weights and batches.
    """

    def __init__(self, problem: Problem, data: Data, seed: int) -> None:
        torch.manual_seed(seed)
        self.problem, self.data = problem, data
        self.network = problem.network()
        self.optimizer, self.scheduler = problem.optimizer(self.network)
        self.batch = min(problem.batch or len(data.x), len(data.x))
        self.batches = batches_of(len(data.x), None if problem.batch is None else self.batch, seed)
        self.augmentation = torch.Generator().manual_seed(seed)
        self.predictions = torch.full((len(data.x),), -1)
        self.step, self.seconds, self.time = 0, 0.0, 0.0

    @property
    def epoch(self) -> int:
        """Steps in one."""
        return len(self.data.x) // self.batch

    def until(self, step: int) -> None:
        self.network.train()
        while self.step < step:
            start = process_time()
            output, rows = self.do_step()
            self.seconds += process_time() - start
            if self.data.classifies:
                self.predictions[slice(None) if rows is None else rows] = output.argmax(1)
        self.network.eval()

    def do_step(self) -> tuple[Tensor, Tensor | None]:
        rows = next(self.batches)
        x, y = (self.data.x, self.data.y) if rows is None else (self.data.x[rows], self.data.y[rows])
        if self.problem.augment is not None:
            x = self.problem.augment(x, self.augmentation)
        self.optimizer.zero_grad()
        output = self.network(x)
        self.problem.losses(output, y).mean().backward()
        self.time += self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        return output.detach(), rows


def batches_of(examples: int, batch: int | None, seed: int) -> Iterator[Tensor | None]:
    """Rows of each step, shuffled anew in each epoch, an incomplete last batch dropped; None stands for all."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from [None] if batch is None else order[: examples // batch * batch].split(batch)


def follow(
    problem: Problem, data: Data, seed: int, stoppers: Mapping[str, Stopper], held_out: Data | None = None
) -> Curve:
    """Train to the end and show every check and every epoch to those who look there.

    A stop changes nothing before it, so one path serves all ways of stopping that train on the same examples.
    """
    probe, path, training = Probe(data, problem), Curve(), Training(problem, data, seed)
    checks = checks_of(problem.steps, probe) if stoppers else [problem.steps]
    number, last_epoch = 0, 0
    while number < len(checks):
        watched = any(stopper.by_epoch and not stopper.done for stopper in stoppers.values())
        next_epoch = last_epoch + training.epoch if watched else problem.steps + 1
        training.until(min(checks[number], next_epoch))
        test(training, path)
        if training.step == checks[number]:
            look = look_at(training, number, probe, held_out)
            for stopper in stoppers.values():
                stopper.look(look)
            number, training.time = number + 1, 0.0
        if training.step == next_epoch:
            epoch = Epoch(training.step, last_epoch, training.predictions, training.network, data, training.batch)
            for stopper in stoppers.values():
                stopper.look_at_epoch(epoch)
            last_epoch = next_epoch
    return path


def test(training: Training, path: Curve) -> None:
    problem, data = training.problem, training.data
    with torch.no_grad():
        output = training.network(data.test_x)
        path.errors[training.step] = problem.error(output, data.test_y)
        if data.classifies:
            path.entropies[training.step] = float(F.cross_entropy(output, data.test_y))
    path.seconds[training.step] = training.seconds


def look_at(training: Training, number: int, probe: Probe, held_out: Data | None) -> Look:
    problem, network, data = training.problem, training.network, training.data
    start = process_time()
    loss = mean_loss(problem, network, data if held_out is None else held_out)
    loss_seconds, reading, gradients = process_time() - start, None, None
    start = process_time()
    if held_out is None and not probe.refusal:
        try:
            reading, gradients = probe.read(network, problem, first=number == 0)
        except ValueError as error:
            probe.refusal = str(error)
    return Look(
        number,
        training.step,
        network,
        data,
        problem,
        training.optimizer,
        training.time,
        math.nan if held_out is not None else loss,
        math.nan if held_out is None else loss,
        loss_seconds,
        probe.set,
        probe.rows,
        reading,
        process_time() - start,
        probe.refusal,
        gradients,
    )


def mean_loss(problem: Problem, network: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return float(problem.losses(network(data.x), data.y).mean())
