"""What each fit of a client has to show; `expectations.py` says which checks wait for something to be built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from _harness import OUTPUT, Case, Outcome, outcome
from expectations import EXPECTED, Expected

Check = Callable[[Outcome, Expected], None]


def ended(found: Outcome, expected: Expected) -> None:
    assert not found.failure


def bits_are_those_of_a_plain_fit(found: Outcome, expected: Expected) -> None:
    assert not found.differing


def exact_is_exact(found: Outcome, expected: Expected) -> None:
    """No status `exact` that a loop over single examples contradicts."""
    if found.samples and found.samples[0].status == "exact":
        assert found.gram_error <= expected.tolerance


def rows_are_those_of_the_loop(found: Outcome, expected: Expected) -> None:
    """Whatever the status: where the loop adds up to the gradient of the batch, it says what the rows should be."""
    if found.samples and found.mean_error <= expected.tolerance:
        assert found.gram_error <= expected.tolerance


def examples_are_examples(found: Outcome, expected: Expected) -> None:
    assert found.examples == ([] if expected.status == "off" else [expected.examples])


def status_is_as_expected(found: Outcome, expected: Expected) -> None:
    assert found.status == expected.status


def residual_numbers_are_there(found: Outcome, expected: Expected) -> None:
    value = found.metrics.get("complexity/residual_median", math.nan)
    assert math.isfinite(value) == expected.residual


def stopping_rule_acts(found: Outcome, expected: Expected) -> None:
    value = found.metrics.get("stopping/risk", math.nan)
    assert math.isfinite(value) == expected.stops, found.reason


def anatomy_is_said(found: Outcome, expected: Expected) -> None:
    """One line at the first sample, as '64 examples; inputs encoder_cont [64, 24, 3]; targets target [64, 6]'."""
    lines = [message for message in found.messages if "examples; inputs" in message]
    assert len(lines) == 1
    assert not expected.missing(lines[0])


def five_lines_at_most(found: Outcome, expected: Expected) -> None:
    assert len(found.messages) <= 5


CHECKS: tuple[Check, ...] = (
    ended,
    bits_are_those_of_a_plain_fit,
    exact_is_exact,
    rows_are_those_of_the_loop,
    examples_are_examples,
    status_is_as_expected,
    residual_numbers_are_there,
    stopping_rule_acts,
    anatomy_is_said,
    five_lines_at_most,
)


def checks_of(cases: Sequence[Case]) -> list[object]:
    """Return each check of each case; one that waits is expected to fail, and tells when it does no more."""
    return [_parameters(case, check) for case in cases for check in CHECKS]


def _parameters(case: Case, check: Check) -> object:
    waits = check.__name__ in EXPECTED[case.name].pending
    marks = [pytest.mark.xfail(strict=True, reason="waits for issue 19")] if waits else []
    return pytest.param(case, check, id=f"{case.name}-{check.__name__}", marks=marks)


def verify(case: Case, check: Check) -> None:
    """Check what the fits of a case showed, and print and keep what we said in them."""
    found = outcome(case)
    keep(case, found)
    check(found, EXPECTED[case.name])


def keep(case: Case, found: Outcome, more: Sequence[str] = ()) -> None:
    """Write every sentence of ours to a file, so that a person can check it, and print it."""
    OUTPUT.mkdir(exist_ok=True)
    text = "\n".join([*found.messages, *(f"[all] {line}" for line in more)])
    (OUTPUT / f"{case.name.replace(':', '_')}.txt").write_text(text + "\n")
    print(text)
