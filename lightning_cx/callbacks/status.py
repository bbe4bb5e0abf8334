"""Say in plain words what the per-example gradients of a fit are."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_cx.gradients import CONTRIBUTION, EXACT, GradientSample

MEANING = {
    EXACT: "each row is the derivative of the example's own loss",
    CONTRIBUTION: "each row is the example's share of the batch gradient, since the examples of a batch are coupled",
}
NAMED = 3  # compiled parts that are named before the list is cut


def in_words(
    sample: GradientSample, replayed: bool = False, compiled: Sequence[str] = (), remark: str = "", whose: str = ""
) -> str:
    """One line on a sample: what its rows mean, how they were read, and what this does to the sampled steps.

    Args:
        sample: The first sample of its status.
        replayed: Whether examples were replayed one at a time instead of tapped.
        compiled: Names of compiled parts, which run eagerly on sampled steps.
        remark: What else to say.
        whose: Which of several optimizers they belong to.

    Example:
        >>> from lightning_cx.gradients import GradientSample
        >>> in_words(GradientSample(8), replayed=True, remark="slow")
        "per-example gradients: exact, 8 examples replayed one at a time (0 parameters); each row is the derivative of
        the example's own loss; slow"
    """
    how = "read from the training's own backward"
    if replayed:
        how = f"{sample.batch_size} examples replayed one at a time"
    remarks = [MEANING[sample.status]]
    if compiled:
        names = ", ".join(compiled[:NAMED]) + ", ..." * (len(compiled) > NAMED)
        remarks.append(f"sampled steps run without torch.compile ({names})")
    remarks += [remark] * bool(remark)
    what = f"per-example gradients{whose}: {sample.status}, {how} ({len(sample.layers)} parameters)"
    return "; ".join([what, *remarks])
