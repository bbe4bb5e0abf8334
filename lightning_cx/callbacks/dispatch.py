"""The instruments of a monitor: what each is shown, when, and under which key it is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from lightning_cx.callbacks.budget import PARAMETERS, PassesOf
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit
from lightning_cx.callbacks.probing import MonitoredProbe
from lightning_cx.instruments import Instrument, Method, Reading, Series, keyed

FIRST = Series()
Show: TypeAlias = Callable[[Instrument], Reading]


class Dispatcher:
    """Show instruments what they ask for, and collect their readings.

    An instrument has a memory, and the gradients of a generator and of a discriminator do not belong into one: each
    further backward has instruments of its own, made like the first, whose tags end in its name.

    An instrument is known by its key (its class's name, with its own name or an ordinal where there are several of a
    class): failures, time spent and state are counted and kept by it.

    Args:
        instruments: Those of the first backward, and of everything else that is shown.

    Raises:
        TypeError: If one of them is no instrument, or there is none.
        ValueError: If two of them would log under one tag.

    Attributes:
        instruments: By key.
    """

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.instruments = keyed(instruments)
        self._further: dict[Series, dict[str, Instrument]] = {}
        self._owners: dict[str, str] = {}  # the key of whoever logged a tag first

    def asking(self, method: Method) -> list[str]:
        """Return the keys of the instruments that are shown something by a method."""
        return [key for key, instrument in self.instruments.items() if method in instrument.shown]

    def show(
        self,
        method: Method,
        show: Show,
        failures: Failures,
        series: Series = FIRST,
        concerned: Callable[[str], bool] = lambda key: True,
    ) -> list[Reading]:
        """Return the readings of the instruments that are shown something by a method; one that fails is left out.

        Args:
            method: Which one is called.
            show: Calls it.
            failures: Where failures are told.
            series: Which backward is shown.
            concerned: Whether to show it to the instrument of a key.
        """
        readings: list[Reading] = []
        for key, instrument in self._of(series).items():
            if method in instrument.shown and concerned(key) and not failures.off(key):
                with failures.guard(key):
                    reading = show(instrument).renamed(instrument.tag)
                    self._claim(key, reading, failures)
                    readings.append(reading.renamed(series.of))
        return readings

    def _claim(self, key: str, reading: Reading, failures: Failures) -> None:
        """Warn once where two instruments give a number under one tag; a picture or a card may replace another."""
        for tag in reading.scalars:
            owner = self._owners.setdefault(tag, key)
            if owner != key:
                failures.tell(f"{owner} and {key} both log {tag}: give one of them a name", f"{owner} and {key}")

    def _of(self, series: Series) -> dict[str, Instrument]:
        if series == FIRST:
            return self.instruments
        if series not in self._further:
            self._further[series] = {key: _fresh(self.instruments[key]) for key in self.asking("on_gradients")}
        return self._further[series]

    def reset(self) -> None:
        """Forget everything seen so far: another model follows."""
        self._further.clear()
        self._owners.clear()
        for instrument in self.instruments.values():
            instrument.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint, by key."""
        further = [(*series, _states(of_series)) for series, of_series in self._further.items()]
        return {"instruments": _states(self.instruments), "further": further}

    def load_state_dict(self, state: Mapping[str, Any], resume: Callable[[str, Instrument, Any], None]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: Of a checkpoint.
            resume: Hands the instrument of a key its state.
        """
        self._further.clear()
        _resume(self.instruments, state.get("instruments", {}), resume)
        for optimizer, backward, states in state.get("further", []):
            _resume(self._of(Series(optimizer, backward)), states, resume)


def _fresh(instrument: Instrument) -> Instrument:
    like = copy.deepcopy(instrument)
    like.reset()
    return like


def _states(instruments: Mapping[str, Instrument]) -> dict[str, Any]:
    return {key: instrument.state_dict() for key, instrument in instruments.items()}


def _resume(
    instruments: Mapping[str, Instrument], states: Mapping[str, Any] | list[Any], resume: Callable[..., None]
) -> None:
    if isinstance(states, list):  # in 0.1.0 states went by position
        states = dict(zip(instruments, states, strict=False))
    for key in instruments.keys() & states.keys():
        resume(key, instruments[key], states[key])


class OwnPasses:
    """Show the model to the instruments that make passes of their own, and the parameters to those that follow them.

    Each instrument that makes passes does so at times of its own. Where several processes share a fit all of them make
    the same passes, since a forward may wait for the others; the numbers of the first one count.

    Args:
        fit: Whose model is shown.
        dispatcher: Holds the instruments.
        probe: The fixed examples.
        failures: Where refusals are told.

    Attributes:
        works: The instruments that make passes, as kinds of work.
    """

    def __init__(self, fit: Fit, dispatcher: Dispatcher, probe: MonitoredProbe, failures: Failures) -> None:
        self._fit, self._probe, self._failures = fit, probe, failures
        self._steps = fit.steps
        self._parameters = dispatcher.asking("on_parameters")
        self.works = [self._work(key, dispatcher.instruments[key]) for key in dispatcher.asking("on_model")]
        keys = [work.key for work in self.works] or self._parameters
        if keys and fit.is_sharded:
            failures.tell(
                f"{', '.join(keys)}: off, since no process of a sharded module has all parameters: leave them out"
            )

    def _work(self, key: str, instrument: Instrument) -> PassesOf:
        needs = instrument.needs
        return PassesOf(key, needs.every_n_steps, partial(self._probe.reader.pass_seconds, needs.passes))

    def wanted(self, work: str) -> bool:
        """Return whether an instrument still asks for a kind of work of this sort."""
        if self._fit.is_sharded or self._failures.off(work):
            return False
        if work == PARAMETERS:
            return any(not self._failures.off(key) for key in self._parameters)
        return not self._probe.refused and any(own.key == work for own in self.works)

    def due(self, due: Callable[[str], bool]) -> list[str]:
        """Return which of them are due after this batch; parameters are shown once for each optimizer step.

        Args:
            due: Whether a kind of work is due by the schedule.
        """
        works = [work.key for work in self.works if due(work.key)]
        if not self._parameters:
            return works
        steps = self._fit.steps
        stepped, self._steps = steps != self._steps, steps
        return [PARAMETERS, *works] if stepped and due(PARAMETERS) else works

    def show(self, work: str, step: int) -> tuple[Method, Show] | None:
        """Return how to show a kind of work; None where the probe is incomplete, or cannot be had."""
        if work == PARAMETERS:
            live = {name: p.detach() for name, p in self._fit.module.named_parameters() if p.requires_grad}
            return "on_parameters", lambda instrument: instrument.on_parameters(step, live)
        passes = self._probe.view()
        return None if passes is None else ("on_model", lambda instrument: instrument.on_model(step, passes))
