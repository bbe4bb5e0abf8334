"""The instruments of a monitor, and those like them for every further backward of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lightning_cx.callbacks.failures import Failures
from lightning_cx.instruments import Instrument, Needs, Observation, Reading
from lightning_cx.tensorboard.tags import Series

FIRST = Series()
Concerned: TypeAlias = Callable[[Needs, str], bool]


class Panel:
    """Shows observations to instruments.

    An instrument has a memory, and the gradients of a generator and of a discriminator do not belong into one: each
    further backward has instruments of its own, made like the first, whose tags end in its name.

    Args:
        instruments: Those of the first backward, and of everything else that is observed.
    """

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = list(instruments)
        self._further: dict[Series, list[Instrument]] = {}

    @property
    def needs(self) -> list[Needs]:
        """What the instruments want."""
        return [instrument.needs for instrument in self.instruments]

    @property
    def asking(self) -> list[tuple[str, Needs]]:
        """What each of them wants, by name."""
        return [(type(instrument).__name__, instrument.needs) for instrument in self.instruments]

    def measure(
        self, observation: Observation, concerned: Concerned, failures: Failures, series: Series = FIRST
    ) -> list[Reading]:
        """Readings of the instruments whose needs are concerned; one that fails is told and left out.

        Args:
            observation: What to show.
            concerned: Which instruments to show it, by what they need and their names.
            failures: Where failures are told.
            series: Which backward the observation is of.
        """
        readings: list[Reading] = []
        for instrument in self._of(series):
            name = type(instrument).__name__
            if concerned(instrument.needs, name) and not failures.off(name):
                with failures.guard(name):
                    readings.append(instrument.measure(observation).renamed(series.of))
        return readings

    def _of(self, series: Series) -> list[Instrument]:
        if series == FIRST:
            return self.instruments
        if series not in self._further:
            self._further[series] = [_fresh(i) for i in self.instruments if i.needs.gradients]
        return self._further[series]

    def reset(self) -> None:
        """Forget everything seen so far: another model comes."""
        self._further.clear()
        for instrument in self.instruments:
            instrument.reset()

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        further = [(*series, [i.state_dict() for i in of_series]) for series, of_series in self._further.items()]
        return {"instruments": [i.state_dict() for i in self.instruments], "further": further}

    def load_state_dict(self, state: dict[str, Any], resume: Callable[[Instrument, Any], None]) -> None:
        """Take up what `state_dict` gave.

        Args:
            state: Of a checkpoint.
            resume: Hands an instrument its state.
        """
        self._further.clear()
        for instrument, own in zip(self.instruments, state["instruments"], strict=True):
            resume(instrument, own)
        for optimizer, backward, states in state.get("further", []):
            for instrument, own in zip(self._of(Series(optimizer, backward)), states, strict=True):
                resume(instrument, own)


def _fresh(instrument: Instrument) -> Instrument:
    like = copy.deepcopy(instrument)
    like.reset()
    return like
