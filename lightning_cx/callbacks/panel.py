"""The instruments of a monitor, and those like them for every further backward of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lightning_cx.callbacks.failures import Failures
from lightning_cx.instruments import Instrument, Method, Reading, Series, keyed

FIRST = Series()
Show: TypeAlias = Callable[[Instrument], Reading]
Concerned: TypeAlias = Callable[[str, Instrument], bool]


class Panel:
    """Shows instruments what happened at a step.

    An instrument has a memory, and the gradients of a generator and of a discriminator do not belong into one: each
    further backward has instruments of its own, made like the first, whose tags end in its name.

    Args:
        instruments: Those of the first backward, and of everything else that is shown.

    Attributes:
        instruments: By key.
    """

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = keyed(instruments)
        self._further: dict[Series, dict[str, Instrument]] = {}

    def measure(
        self,
        method: Method,
        show: Show,
        failures: Failures,
        series: Series = FIRST,
        concerned: Concerned = lambda key, instrument: True,
    ) -> list[Reading]:
        """Readings of the instruments that are shown something by a method; one that fails is told and left out.

        Args:
            method: Which one is called.
            show: Calls it.
            failures: Where failures are told.
            series: Which backward is shown.
            concerned: Which instruments to show it, by key and instrument.
        """
        readings: list[Reading] = []
        for key, instrument in self._of(series).items():
            if method in instrument.shown and concerned(key, instrument) and not failures.off(key):
                with failures.guard(key):
                    readings.append(show(instrument).renamed(lambda tag, own=instrument.tag: series.of(own(tag))))
        return readings

    def _of(self, series: Series) -> dict[str, Instrument]:
        if series == FIRST:
            return self.instruments
        if series not in self._further:
            self._further[series] = {k: _fresh(i) for k, i in self.instruments.items() if "on_gradients" in i.shown}
        return self._further[series]

    def reset(self) -> None:
        """Forget everything seen so far: another model comes."""
        self._further.clear()
        for instrument in self.instruments.values():
            instrument.reset()

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        further = [(*series, _states(of_series)) for series, of_series in self._further.items()]
        return {"instruments": _states(self.instruments), "further": further}

    def load_state_dict(self, state: dict[str, Any], resume: Callable[[Instrument, Any], None]) -> None:
        """Take up what `state_dict` gave.

        Args:
            state: Of a checkpoint.
            resume: Hands an instrument its state.
        """
        self._further.clear()
        _resume(self.instruments, state["instruments"], resume)
        for optimizer, backward, states in state.get("further", []):
            _resume(self._of(Series(optimizer, backward)), states, resume)


def _fresh(instrument: Instrument) -> Instrument:
    like = copy.deepcopy(instrument)
    like.reset()
    return like


def _states(instruments: dict[str, Instrument]) -> dict[str, Any]:
    return {key: instrument.state_dict() for key, instrument in instruments.items()}


def _resume(
    instruments: dict[str, Instrument], states: dict[str, Any], resume: Callable[[Instrument, Any], None]
) -> None:
    for key, own in states.items():
        resume(instruments[key], own)
