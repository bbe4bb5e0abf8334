"""`python -m lightning_cx compare runs/a runs/b`: compare runs at equal training loss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_cx.instruments import quantities
from lightning_cx.loggers import compare_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(compare_runs(options.runs, options.tag, options.loss, options.loss_tag))
    except (ValueError, ImportError) as error:
        print(f"lightning-cx compare: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-cx", description="What lightning_cx can say of runs that are over."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    words = "compare runs at equal training loss, never at equal step"
    compare = commands.add_parser("compare", help=words, description=words)
    compare.add_argument("runs", nargs="+", help="log directories of two or more runs (TensorBoard or CSVLogger)")
    compare.add_argument("--tag", action="append", help="what to compare; may be given several times")
    compare.add_argument("--loss", action="append", type=float, help="a training loss to compare at; may be repeated")
    compare.add_argument(
        "--loss-tag", default=quantities.TRAJECTORY_LOSS, help="the training loss to match (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
