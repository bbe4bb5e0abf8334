"""Print, for each client, what was expected and what was found, and every sentence of ours.

    python tests/clients/report.py [--all] [library ...]

`--all` makes one more fit of each case, with every instrument on, for its sentences.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from _checks import CHECKS, keep  # noqa: E402
from _harness import Case, Outcome, outcome, under_all  # noqa: E402
from expectations import EXPECTED, Expected  # noqa: E402

from lightning_cx.batch import inputs_of, leaves  # noqa: E402


def shape_of(tensors: Any) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in tensors.items())


def taken(found: Outcome, expected: Expected) -> str:
    """Which tensor of the first batch is taken for the inputs today, by its size and by the true one.

    Goes when the anatomy is said.
    """
    parts = []
    for examples in dict.fromkeys([*found.examples, expected.examples]):
        try:
            inputs = inputs_of(found.batch, examples)
        except Exception as error:
            parts.append(f"{examples}: none ({type(error).__name__})")
            continue
        named = [name for name, leaf in leaves(found.batch) if leaf is inputs]
        parts.append(f"{examples}: {', '.join(named) or 'unnamed'} {list(inputs.shape)} {inputs.dtype}")
    return "; ".join(parts)


def said(found: Outcome) -> str:
    """Return the line about the anatomy of a batch."""
    return next((message for message in found.messages if "examples; inputs" in message), "not said")


def few(names: list[str]) -> str:
    """Return the first of them and how many there are."""
    return f"{len(names)} differ, as {', '.join(names[:3])}" if names else ""


def failing(found: Outcome, expected: Expected) -> list[str]:
    """Names of the checks that do not hold."""

    def holds(check: Any) -> bool:
        try:
            check(found, expected)
        except AssertionError:
            return False
        return True

    return [check.__name__ for check in CHECKS if not holds(check)]


def report(case: Case, everything: bool) -> None:
    start = time.perf_counter()
    found, expected = outcome(case), EXPECTED[case.name]
    more = under_all(case) if everything else None
    numbers = {tag: found.metrics.get(tag) for tag in NUMBERS}
    rows = [
        ("examples", expected.examples, found.examples),
        ("inputs", shape_of(expected.inputs), taken(found, expected)),
        ("targets", shape_of(expected.targets), "-"),
        ("anatomy", "one line", said(found)),
        ("status", expected.status, found.status),
        ("residual", expected.residual, numbers["complexity/residual_median"]),
        ("stopping", expected.stops, numbers["stopping/risk"] if not _off(found) else found.reason),
        ("Gram", f"<= {expected.tolerance:g}", f"{found.gram_error:.1e} over {found.loop_size}"),
        ("bits", "identical", few(found.differing) or "identical"),
        ("mean", "<= 1e-5", f"{found.mean_error:.1e}"),
        *([("all: bits", "identical", few(more.differing) or "identical")] if more else []),
        *([("all: lines", "at most 8", len(more.messages))] if more else []),
        *([("all: ended", "", more.failure or "yes")] if more else []),
        ("failures", "none", found.failure or "none"),
        ("lines", "at most 5", len(found.messages)),
    ]
    print(f"\n=== {case.name} ({time.perf_counter() - start:.0f} s): {expected.why}")
    for what, wanted, got in rows:
        print(f"  {what:10} expected {wanted!s:60.60} found {got!s}")
    print(f"  fails      {', '.join(failing(found, expected)) or 'nothing'}")
    print(f"  pending    {', '.join(expected.pending) or 'nothing'}")
    print("  numbers   ", {tag: None if v is None else round(v, 4) for tag, v in numbers.items()})
    for sample in found.samples[:1]:
        print("  notes     ", sample.notes, "coverage", round(sample.coverage, 6))
    keep(case, found, more.messages if more else ())


NUMBERS = (
    "complexity/residual_median",
    "complexity/gradient_median",
    "complexity/whiteness_distance",
    "gradient/norm",
    "gradient/noise_scale",
    "stopping/risk",
    "stopping/noise_floor",
)


def _off(found: Outcome) -> bool:
    return "stopping/risk" not in found.metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("libraries", nargs="*")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # what was found stays if a later fit is cut off
    for path in sorted(HERE.glob("test_*.py")):
        if not options.libraries or any(name in path.stem for name in options.libraries):
            try:
                cases = importlib.import_module(path.stem).CASES
            except ImportError as error:
                print(f"\n=== {path.stem}: not installed here: {error}")
                continue
            for case in cases:
                report(case, options.all)
