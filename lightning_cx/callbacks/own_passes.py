"""What single instruments do by themselves: passes over the probe, and a look at the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from lightning_cx.callbacks._trainer import LightningModule, Trainer
from lightning_cx.callbacks.cadence import PARAMETERS, PassesOf
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.monitored_probe import MonitoredProbe
from lightning_cx.callbacks.panel import Panel, Show
from lightning_cx.callbacks.sharded import is_sharded
from lightning_cx.instruments import Instrument, Method, Needs


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
        self._probe, self._failures = probe, failures
        self._sharded = False
        self._steps = 0
        given = panel.instruments.items()
        self.works: Sequence[PassesOf] = [self._work(key, i.needs) for key, i in given if "on_model" in i.shown]
        self._parameters = [key for key, i in given if "on_parameters" in i.shown]

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

    def show(self, trainer: Trainer, module: LightningModule, work: str, step: int) -> Show | None:
        """What to show for a kind of work; None where the probe is not there yet, or cannot be had."""
        if work == PARAMETERS:
            live = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
            return lambda instrument: instrument.on_parameters(step, live)
        view = self._probe.view(trainer, module)
        return None if view is None else lambda instrument: instrument.on_model(step, view)

    @staticmethod
    def method(work: str) -> Method:
        """By which method a kind of work is shown."""
        return "on_parameters" if work == PARAMETERS else "on_model"

    @staticmethod
    def concerns(work: str, key: str, instrument: Instrument) -> bool:
        """Whether an instrument is to be shown a kind of work."""
        del instrument
        return work in (PARAMETERS, key)
