"""What an optimizer step did to the parameters, seen through a short sketch of them."""

from __future__ import annotations

from torch import Tensor

from lightning_cx.callbacks._trainer import LightningModule, Trainer, training_data
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.sharded import is_sharded
from lightning_cx.gradients import DIRECTIONS, ParameterSketch
from lightning_cx.instruments import ParameterStep


class ParameterFollower:
    """Sketches the parameters before a sampled batch and after the optimizer step that it belongs to.

    Where gradients are accumulated the step comes some batches later; until then nothing else is begun.

    Args:
        wanted: Whether an instrument asks for it.
    """

    def __init__(self, wanted: bool) -> None:
        self._sketch = ParameterSketch(DIRECTIONS) if wanted else None
        self._before: tuple[int, Tensor] | None = None
        self._training_examples: int | None = None

    def start(self, module: LightningModule, failures: Failures) -> None:
        """At the start of a fit: say so where the parameters cannot be followed."""
        if self._sketch is not None and is_sharded(module):
            self._sketch = None
            failures.tell(
                "the steps of the parameters are not followed, since no process of a sharded module has them whole: "
                "pass TailIndex(trajectory=False), and leave Dwelling and TrajectoryGeometry out"
            )

    @property
    def waiting(self) -> bool:
        """Whether a step was begun and has not been seen through."""
        return self._before is not None

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Before a sampled batch."""
        if self._sketch is not None and self._before is None:
            self._before = (trainer.global_step, self._sketch(module.named_parameters()))
            if self._training_examples is None and (data := training_data(trainer)) is not None:
                self._training_examples = len(data[0])

    def end(self, trainer: Trainer, module: LightningModule) -> ParameterStep | None:
        """After any batch: what the step did, once it was made."""
        if self._sketch is None or self._before is None or trainer.global_step == self._before[0]:
            return None
        (_, before), self._before = self._before, None
        after = self._sketch(module.named_parameters())
        return ParameterStep(after, after - before, self._training_examples)
