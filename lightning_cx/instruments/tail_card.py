"""The verdict on the tail as a small number, and as a card that explains it."""

from __future__ import annotations

from lightning_cx.functional import tails

CODES = {"indeterminate": -1, "gaussian": 0, "heavy-aggregates-to-gaussian": 1, "stable": 2}
"""Numbers under which the verdicts are logged: the higher, the heavier the noise that reaches the parameters."""

MEANING = {
    "indeterminate": "No verdict holds; the reason says what is missing. A larger pool, `TailIndex(window=...)`, has "
    "more sums. Look at their interval below: well under 2, it means that what moves the parameters is heavy-tailed.",
    "gaussian": "Nothing in the bulk of the noise speaks for a heavy tail. Theories that take gradient noise for "
    "Gaussian may be used.",
    "heavy-aggregates-to-gaussian": "Single examples differ wildly in their gradients, but a batch averages that away: "
    "what moves the parameters is not heavy-tailed. Look at the examples with the largest gradients (outliers, wrong "
    "labels) before you look at the optimizer.",
    "stable": "Sums are as heavy-tailed as single examples, so larger batches will help little. Clip gradients, or "
    "take an optimizer that normalises them; look for examples with enormous losses.",
}


def card(report: tails.TailReport) -> str:
    """Explain a report in markdown.

    Args:
        report: What was found.

    Example:
        >>> import torch
        >>> from lightning_cx.functional import tail_report
        >>> print(card(tail_report(torch.randn(600, generator=torch.Generator().manual_seed(0)))).splitlines()[0])
        **gaussian** (0): a normal law is not ruled out (p = 0.47)
    """
    lines = [f"**{report.verdict}** ({CODES[report.verdict]}): {report.reason}", "", MEANING[report.verdict]]
    if not bool(report.alpha.isnan()):
        lines += ["", *(f"    {line}" for line in str(report).splitlines()[2:])]
    others = ", ".join(f"{code} {verdict}" for verdict, code in CODES.items())
    return "\n".join([*lines, "", f"Verdicts: {others}. A verdict is what was not ruled out, never a proof."])


def waiting(n: int, wanted: int) -> str:
    """Say that there is nothing to say yet."""
    return f"**waiting**: {n} of {wanted} examples pooled so far. A tail cannot be read from fewer."
