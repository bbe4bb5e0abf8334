"""What a training step costs that also gives the Gram matrix of its per-example gradients, beside every peer.

    make benchmark                                    # its own environment with the peers, the table into docs/
    python benchmarks/tap.py                          # here, with what is installed
    python benchmarks/tap.py --quick                  # minutes: the small workloads, three rounds
    python benchmarks/tap.py --workloads cnn-64 gpt-256 --contenders ours loop --rounds 15 --no-memory

Prints Markdown: times over a plain forward and backward of the same batch beside a counted floor, peak memory, errors
against the naive loop in float64, and the message of whatever fails. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from _floor import count_floor
from _measure import Outcome, bound_memory, measure_memory, measure_times, report_peak
from _peers import CONTENDERS, DEFAULT_CONTENDERS, PLAIN, Contender
from _report import Row, to_markdown
from _workloads import CUDA, DEFAULT, WORKLOADS, Workload, names

QUICK = ["mlp-64", "cnn-64", "lstm-64", "regression-256"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device(options.device)
    warnings.simplefilter("ignore")  # peers warn about each layer, each step
    if options.peak is not None:
        workload, contender = options.peak
        print(report_peak(WORKLOADS[workload], CONTENDERS.get(contender, PLAIN), device))
        return
    bound_memory(device)
    contenders, rows = [CONTENDERS[name] for name in options.contenders], []
    for name in options.workloads:
        rows.append(measure(WORKLOADS[name], contenders, options, device))
        text = to_markdown(rows, contenders, options.rounds, device)
        if options.output is not None:  # after each row, since the whole takes an hour
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(text)
    print(text)


def measure(
    workload: Workload, contenders: Sequence[Contender], options: argparse.Namespace, device: torch.device
) -> Row:
    """Memory first: what dies there would take the process that times everything with it."""
    outcomes: dict[str, Outcome] = {}
    for contender in contenders:
        print(f"{workload.name}: {contender.name}", file=sys.stderr, flush=True)
        if not contender.is_installed():
            outcomes[contender.name] = Outcome(failure=f"{contender.package} is not installed")
        elif options.memory:
            outcomes[contender.name] = measure_memory(workload, contender, device)
        else:
            outcomes[contender.name] = Outcome()
    alive = [contender for contender in contenders if outcomes[contender.name].failure is None]
    seconds, timed = measure_times(workload, alive, options.rounds, device, options.patience)
    for name, outcome in timed.items():
        outcome.memory = outcomes[name].memory
    return Row(workload, seconds, count_floor(workload), outcomes | timed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, help="those without further needs unless given")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT_CONTENDERS)
    parser.add_argument("--rounds", type=int, help="9 unless given, 3 with --quick")
    parser.add_argument("--quick", action="store_true", help=f"three rounds of {', '.join(QUICK)}")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--patience", type=float, default=60.0, help="a step of more seconds than this is timed once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--peak", nargs=2, metavar=("WORKLOAD", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.workloads = options.workloads or (QUICK if options.quick else names(DEFAULT, *everything(options.device)))
    return options


def everything(device: str) -> list[str]:
    return [CUDA] if device == "cuda" else []


if __name__ == "__main__":
    main()
