"""The instruments of a monitor, and those like them for every further backward of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from lightning_cx.callbacks._trainer import LightningModule, Trainer
from lightning_cx.callbacks.budget import PARAMETERS, PassesOf
from lightning_cx.callbacks.distributed import is_sharded
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.probing import MonitoredProbe
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


# --- What single instruments do by themselves: passes over the probe, and a look at the parameters.


class OwnPasses:
    """Offers the model to the instruments that ask for it, each at a time of its own.

    Where several processes share a fit all of them make the same passes, since a forward may wait for the others; the
    numbers of the first one count.

    Args:
        panel: The instruments.
        probe: The fixed examples.
        failures: Where refusals are told.

    Attributes:
        works: The instruments that make passes, as kinds of work.
    """

    def __init__(self, panel: Panel, probe: MonitoredProbe, failures: Failures) -> None:
        self._panel, self._probe, self._failures = panel, probe, failures
        self._sharded = False
        self._steps = 0
        asking = {type(i).__name__: i.needs for i in panel.instruments if i.needs.passes > 0}
        self.works: Sequence[PassesOf] = [self._work(name, needs) for name, needs in asking.items()]
        self._parameters = [type(i).__name__ for i in panel.instruments if i.needs.parameters]

    def _work(self, name: str, needs: Needs) -> PassesOf:
        return PassesOf(name, needs.every_n_steps, partial(self._probe.reader.pass_seconds, needs.passes))

    def start(self, trainer: Trainer) -> None:
        """At the start of a fit: say so where the model cannot be offered."""
        names = [work.name for work in self.works] or self._parameters
        self._sharded, self._steps = is_sharded(trainer.lightning_module), trainer.global_step
        if names and self._sharded:
            self._failures.tell(
                f"{', '.join(names)}: off, since no process of a sharded module has all parameters: leave them out"
            )

    def wanted(self, work: str) -> bool:
        """Whether anybody still asks for a kind of work of this sort."""
        if self._sharded or self._failures.off(work):
            return False
        if work == PARAMETERS:
            return any(not self._failures.off(name) for name in self._parameters)
        return not self._probe.refused and any(own.name == work for own in self.works)

    def due(self, trainer: Trainer, due: Callable[[str], bool]) -> list[str]:
        """Which of them are due after this batch; parameters are looked at once for each optimizer step.

        Args:
            trainer: Of the fit.
            due: Whether a kind of work is due by the schedule.
        """
        names = [work.name for work in self.works if due(work.name)]
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        return [PARAMETERS, *names] if self._parameters and stepped and due(PARAMETERS) else names

    def observe(self, trainer: Trainer, module: LightningModule, work: str, step: int) -> Observation | None:
        """What to show for a kind of work; None where the probe is not there yet, or cannot be had."""
        if work == PARAMETERS:
            live = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
            return Observation(step, parameters=live)
        view = self._probe.view(trainer, module)
        return None if view is None else Observation(step, model=view)

    @staticmethod
    def concerns(work: str, needs: Needs, name: str) -> bool:
        """Whether an instrument is to be shown a kind of work."""
        return needs.parameters if work == PARAMETERS else name == work and needs.passes > 0
