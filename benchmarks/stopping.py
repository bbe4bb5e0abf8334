"""How near to the best test error our stopping rules and their rivals end.

    make benchmark-stopping                                  # the table into docs/, in the project's environment
    python benchmarks/stopping.py --problems reg2 digits-40 --seeds 100 101
    python benchmarks/stopping.py --cache runs/again         # afresh: results of other code are not in there

Prints Markdown. Each run of a problem and a seed is kept as a file in the cache, so that what was cut off goes on.
Seeds 0 to 5 were used to choose the settings of our rules.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from _stopping_problems import PROBLEMS
from _stopping_report import Row, to_markdown
from _stopping_runs import Run, run

SEEDS = range(100, 110)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    start = perf_counter()
    files = {(name, seed): options.cache / f"{name}-{seed}.json" for seed in options.seeds for name in options.problems}
    complete([(*job, file) for job, file in files.items() if not file.exists()], options.workers)
    rows = [Row(PROBLEMS[name], [Run.load(files[name, seed]) for seed in options.seeds]) for name in options.problems]
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/stopping.py", *given])
    text = to_markdown(rows, command, perf_counter() - start, options.workers)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    print(text)


def complete(jobs: Sequence[tuple[str, int, Path]], workers: int) -> None:
    """Run what is missing, seed by seed, so that a table can be had early."""
    if workers == 1:
        for job in jobs:
            work(job)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:  # a forked torch hangs
        for _ in pool.imap_unordered(work, jobs):
            pass


def work(job: tuple[str, int, Path]) -> None:
    """One run, on one thread: small layers gain nothing by a second."""
    name, seed, file = job
    warnings.simplefilter("ignore")  # of the moving parts of torch and Lightning, once a process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(PROBLEMS[name], seed)
    torch.set_num_threads(threads)
    found.save(file)
    print(f"{name}, seed {seed}: {found.seconds:.1f} s", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    listed = [problem.name for problem in PROBLEMS.values() if problem.listed]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=listed, metavar="PROBLEM")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("runs/stopping"), help="a folder; a new one for other code")
    parser.add_argument("--output", type=Path, help="also write the table here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
