"""Send readings to the loggers, to the pictures, and to other callbacks."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from time import perf_counter
from weakref import WeakKeyDictionary

from lightning_cx.callbacks._trainer import Callback, Trainer, announce, tensorboard_experiments
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit
from lightning_cx.callbacks.identity import ADVICE
from lightning_cx.instruments import Picture, Reading
from lightning_cx.loggers import write_histograms, write_layout, write_pictures, write_texts

EXPLAIN_AFTER = 60.0  # seconds, or the end of the run if that is earlier, after which it is said why curves are nan

# Which of our callbacks logs a tag in a trainer: two of them would draw one zigzag curve.
_LOGGED: WeakKeyDictionary[Trainer, dict[str, weakref.ref[Callback]]] = WeakKeyDictionary()


class Publisher:
    """Log scalars and histograms at once, and draw the latest pictures when told to.

    Args:
        fit: Whose loggers are written to.
        failures: Where refusals are told.
        callback: Whose numbers these are.
        name: The callback's; tags end in it.
    """

    def __init__(self, fit: Fit, failures: Failures, callback: Callback, name: str = "") -> None:
        self._fit, self.failures = fit, failures
        self._callback, self._name = weakref.ref(callback), name
        self._tags: set[str] = set()
        self._pictures: dict[str, Picture] = {}
        self._texts: dict[str, str] = {}
        self._step = 0
        self._untold: dict[str, float] = {}
        self._started = perf_counter()

    @property
    def has_pictures(self) -> bool:
        """Whether there is a picture that was not drawn yet."""
        return bool(self._pictures)

    def publish(self, readings: Sequence[Reading], step: int, extra: Mapping[str, float]) -> None:
        """Log what was read at one step."""
        readings = [self._named(reading) for reading in (Reading(extra), *readings)]
        scalars, texts = {}, dict(self._texts)
        for reading in readings:
            scalars.update(reading.scalars)
            self._pictures.update(reading.pictures)
            texts.update(reading.texts)
            for why in sorted(set(reading.refusals.values())):
                self.failures.no_number([tag for tag, reason in reading.refusals.items() if reason == why], why)
            for tag, message in reading.warnings.items():
                self.failures.tell(message, f"warning of {tag}")
        self._step = step
        self._untold.update(scalars)
        announce(self._fit.trainer, scalars)
        self.failures.has_number(tag for tag, value in scalars.items() if math.isfinite(value))
        if perf_counter() - self._started > EXPLAIN_AFTER:
            self.failures.tell_reasons()
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        for logger in self._fit.trainer.loggers:
            part = f"logging to {type(logger).__name__}"
            if not self.failures.off(part):
                with self.failures.guard(part):  # one that fails must not keep values from the others
                    logger.log_metrics(finite, step=step)
        for experiment in tensorboard_experiments(self._fit.trainer):
            if not self._tags.issuperset(scalars):
                write_layout(experiment, sorted(self._tags.union(scalars)))
            for reading in readings:
                write_histograms(experiment, reading.histograms, step)
            write_texts(experiment, {tag: text for tag, text in texts.items() if text != self._texts.get(tag)}, step)
        if not self._tags.issuperset(scalars):
            self._tell_shared_tags(scalars)
        self._tags.update(scalars)
        self._texts = texts

    def _named(self, reading: Reading) -> Reading:
        return reading.renamed(lambda tag: f"{tag}-{self._name}") if self._name else reading

    def _tell_shared_tags(self, scalars: Mapping[str, float]) -> None:
        logged, this = _LOGGED.setdefault(self._fit.trainer, {}), self._callback
        others = {tag: other() for tag in scalars if (other := logged.setdefault(tag, this)) is not this}
        shared = sorted(tag for tag, other in others.items() if other not in (None, this()))
        logged.update(dict.fromkeys(others, this))
        if shared:
            some = ", ".join(shared[:3]) + ", ..." * (len(shared) > 3)
            self.failures.say(f"two callbacks of one trainer log {some} and overwrite each other: {ADVICE}", "tags")

    def take_untold(self) -> dict[str, float]:
        """Return the numbers that other processes have not been told yet."""
        told, self._untold = self._untold, {}
        return told

    def hear(self, scalars: Mapping[str, float]) -> None:
        """Put numbers of the first process where this one's callbacks look for what they monitor."""
        if not self._fit.is_first:
            announce(self._fit.trainer, scalars)

    def show(self, reading: Reading) -> None:
        """Have pictures drawn the next time, without logging numbers again."""
        self._pictures.update(self._named(reading).pictures)

    def draw(self) -> None:
        """Draw the latest pictures into TensorBoard; without one they have nowhere to go."""
        for experiment in tensorboard_experiments(self._fit.trainer):
            write_pictures(experiment, self._pictures, self._step)
        self._pictures = {}
