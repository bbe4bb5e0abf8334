"""Send readings where people and other callbacks look for them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lightning_cx.callbacks._trainer import Trainer, announce, tensorboard_experiments
from lightning_cx.callbacks.failures import Failures
from lightning_cx.instruments import Picture, Reading
from lightning_cx.tensorboard.writer import write_histograms, write_layout, write_pictures, write_texts


class Publisher:
    """Logs scalars and histograms at once, and draws the latest pictures when told to.

    Args:
        failures: Where refusals are told.
    """

    def __init__(self, failures: Failures) -> None:
        self.failures = failures
        self._tags: set[str] = set()
        self._pictures: dict[str, Picture] = {}
        self._texts: dict[str, str] = {}
        self._step = 0
        self._untold: dict[str, float] = {}

    @property
    def has_pictures(self) -> bool:
        """Whether there is something to draw that was not drawn yet."""
        return bool(self._pictures)

    def publish(self, trainer: Trainer, readings: Sequence[Reading], step: int, extra: dict[str, float]) -> None:
        """Log what was read at one step."""
        scalars, texts = dict(extra), dict(self._texts)
        for reading in readings:
            scalars.update(reading.scalars)
            self._pictures.update(reading.pictures)
            texts.update(reading.texts)
            for why in sorted(set(reading.refusals.values())):
                names = [tag for tag, reason in reading.refusals.items() if reason == why]
                self.failures.tell(f"{', '.join(names)}: nan, {why}", re.sub(r"\d+", "#", f"{names} {why}"))
            for tag, message in reading.warnings.items():
                self.failures.tell(message, f"warning of {tag}")
        self._step = step
        self._untold.update(scalars)
        announce(trainer, scalars)
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            part = f"logging to {type(logger).__name__}"
            if not self.failures.off(part):
                with self.failures.guard(part):  # one that fails must not keep values from the others
                    logger.log_metrics(finite, step=step)
        for experiment in tensorboard_experiments(trainer):
            if not self._tags.issuperset(scalars):
                write_layout(experiment, sorted(self._tags.union(scalars)))
            for reading in readings:
                write_histograms(experiment, reading.histograms, step)
            write_texts(experiment, {tag: text for tag, text in texts.items() if text != self._texts.get(tag)}, step)
        self._tags.update(scalars)
        self._texts = texts

    def take_untold(self) -> dict[str, float]:
        """Numbers that other processes have not heard of yet."""
        told, self._untold = self._untold, {}
        return told

    def hear(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        """Put numbers of the first process where this one's callbacks look for what they monitor."""
        if not trainer.is_global_zero:
            announce(trainer, scalars)

    def show(self, reading: Reading) -> None:
        """Have pictures drawn the next time, without logging numbers again."""
        self._pictures.update(reading.pictures)

    def draw(self, trainer: Trainer) -> None:
        """Draw the latest pictures into TensorBoard; without one there is nobody to look at them."""
        for experiment in tensorboard_experiments(trainer):
            write_pictures(experiment, self._pictures, self._step)
        self._pictures = {}
