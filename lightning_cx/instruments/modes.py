"""The modes of several steps, for the picture of strength against complexity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_cx.instruments.reading import ModeScatter

EARLIER_STEPS = 12  # more are hard to tell apart in one picture
MODES_KEPT = 64  # of each earlier step, the strongest; the others lie at the bottom of the picture


class ModeHistory:
    """Remembers the modes of some earlier steps, evenly over the run so far.

    Args:
        title: What the modes belong to, for the title of the picture.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self._seen: list[tuple[int, Tensor, Tensor]] = []
        self._every = 1
        self._count = 0

    def picture(self, step: int, singular_values: Tensor, positions: Tensor, whole: float) -> ModeScatter:
        """The picture of this step before those seen so far; this step is then one of them."""
        singular_values, positions = singular_values.cpu(), positions.cpu()
        picture = ModeScatter(
            step=step,
            singular_values=singular_values,
            medians=positions,
            whole_median=whole,
            title=f"{self._title} at step {step}",
            reading="Each dot is a function of the examples that the gradient changes: strong ones are high up, simple "
            "ones to the left. Learning structure: the strong dots lie left of .5. Fitting noise: all dots gather "
            "around .5.",
            earlier=tuple(self._seen),
        )
        self._keep(step, singular_values[:MODES_KEPT].clone(), positions[:MODES_KEPT].clone())
        return picture

    def _keep(self, step: int, singular_values: Tensor, positions: Tensor) -> None:
        if self._count % self._every == 0:
            self._seen.append((step, singular_values, positions))
        self._count += 1
        if len(self._seen) > EARLIER_STEPS:
            self._seen = self._seen[::2]
            self._every *= 2

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {"seen": self._seen, "every": self._every, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._seen, self._every, self._count = list(state["seen"]), state["every"], state["count"]
