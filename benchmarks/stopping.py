"""How near to the best test error our stopping rules and their rivals end.

    make benchmark-stopping                                  # the tables into docs/, in an environment of their own
    python benchmarks/stopping.py --problems reg2 digits-40 --seeds 100 101
    python benchmarks/stopping.py --problems develop --seeds 0 1 --cache runs/stopping-develop
    python benchmarks/stopping.py --again ours dominance     # after a change of these rules: their path alone
    python benchmarks/stopping.py --cache runs/again         # afresh: results of other code are not in there

Prints Markdown. Each run of a problem and a seed is kept as a file in the cache, so that what was cut off goes on.
Settings of our rules are chosen on DEVELOP with seeds below 100, and on nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from _stopping_problems import DEVELOP, PROBLEMS, REPORT
from _stopping_report import Row, to_markdown
from _stopping_rivals import on_full_data
from _stopping_runs import Run, again, run

SEEDS = range(100, 110)
HALVES = {"develop": DEVELOP, "report": REPORT}
Job = tuple[str, int, Path]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    start = perf_counter()
    files = {(name, seed): options.cache / f"{name}-{seed}.json" for seed in options.seeds for name in options.problems}
    missing = [(*job, file) for job, file in files.items() if not file.exists()]
    there = [(*job, file) for job, file in files.items() if file.exists()]
    complete(missing, options.workers, train)
    if options.again:
        complete(there, options.workers, partial(train_again, options.again))
    rows = [Row(PROBLEMS[name], [Run.load(files[name, seed]) for seed in options.seeds]) for name in options.problems]
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/stopping.py", *given])
    text = to_markdown(rows, command, perf_counter() - start, options.workers)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    print(text)


def complete(jobs: Sequence[Job], workers: int, work: Callable[[Job], None]) -> None:
    """Run what is missing, seed by seed, so that a table can be had early."""
    if workers == 1:
        for job in jobs:
            work(job)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:  # a forked torch hangs
        for _ in pool.imap_unordered(work, jobs):
            pass


def train(job: Job) -> None:
    name, seed, file = job
    start = perf_counter()
    on_one_thread(lambda: run(PROBLEMS[name], seed)).save(file)
    print(f"{name}, seed {seed}: {perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def train_again(ways: Sequence[str], job: Job) -> None:
    name, _, file = job
    stoppers = on_full_data()
    chosen = {way: stoppers[way] for way in ways}
    on_one_thread(lambda: again(Run.load(file), PROBLEMS[name], chosen)).save(file)


def on_one_thread(work: Callable[[], Run]) -> Run:
    """Small layers gain nothing by a second."""
    warnings.simplefilter("ignore")  # of the moving parts of torch and Lightning, once a process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = "names, or develop and report for the halves; both unless given"
    parser.add_argument(
        "--problems", nargs="+", default=list(HALVES), choices=[*PROBLEMS, *HALVES], metavar="PROBLEM", help=named
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--again",
        nargs="+",
        default=[],
        choices=list(on_full_data()),
        metavar="WAY",
        help="ways of stopping that changed",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/stopping"), help="a folder; a new one for other code")
    parser.add_argument("--output", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)
    options.problems = list(named_by(options.problems))
    return options


def named_by(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        yield from HALVES.get(word, (word,))


if __name__ == "__main__":
    main()
