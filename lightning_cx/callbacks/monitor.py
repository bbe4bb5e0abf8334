"""The callback that shows what a network is learning right now."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_cx.batch import Anatomies, BatchSpec
from lightning_cx.callbacks._trainer import Callback, LightningModule, Trainer, rank_zero_warning
from lightning_cx.callbacks.budget import EveryNSteps, FullBatches, OverheadBudget, Schedule
from lightning_cx.callbacks.dispatch import Dispatcher
from lightning_cx.callbacks.distributed import check_strategy
from lightning_cx.callbacks.fit import Fit, told_in
from lightning_cx.callbacks.identity import checked_name, distinct, key_of, keys_of_others, settings
from lightning_cx.callbacks.presets import Preset, preset
from lightning_cx.callbacks.session import Session
from lightning_cx.instruments import Control, Instrument
from lightning_cx.probe import ProbeSet


class ComplexityMonitor(Callback):
    """Shows in every logger what the network is learning now: structure or noise, and how its examples agree.

    Add it to any Trainer; the LightningModule stays as it is. Training is not disturbed: weights, optimizer states,
    random streams, buffers, metrics and your own logs are bit for bit those of a run without the monitor.

    Compiled code shows nothing of its inside, so where `torch.compile` is at work sampled steps run eagerly: they take
    the time and memory of an eager step (the budget counts the time), and nothing is compiled again afterwards.
    Backends that keep eager arithmetic (`eager`, `aot_eager`) still train bit for bit the same; inductor fuses, and
    so rounds, and draws its dropout differently from an eager step, and that much differs on sampled steps.

    Several processes sample at the same steps and put together what they saw: norms, noise scale and tails are those of
    the whole batch, spectra those of the first process's share, and all processes know the same numbers. A sampled
    backward holds one more copy of the gradients then, and adds it up over the processes. With several optimizers each
    has a series of its own: the first has the plain tags, the others `<tag>-optimizer_1` and so on.

    Args:
        instruments: What to measure: a list of instruments, or the name of a set: `"default"` (`GradientNoise`,
            `GradientSpectrum` and `SpectralBias`, also taken for None), `"noise"`, `"theory"` or `"all"`.
        every_n_steps: Measure at every n-th batch, whatever it costs; None measures as often as the budget allows.
        overhead_budget: Share of the wall time that the monitor may spend, between 0 and 1; measured and kept, and
            logged as `complexity/overhead`. Of no account with `every_n_steps`.
        probe: The fixed examples for residual spectra; None takes `ProbeSet()`, 512 training examples.
        strict: Raise where sampling fails, instead of warning once and letting training go on.
        control: `"shuffle"` logs a twin beside each number that depends on which example is which, measured with the
            examples shuffled, under `<tag>_shuffled`: what the method finds where there is nothing to find. For
            instruments of your own choice, pass it to them.
        name: Tells several monitors in one trainer apart: their tags end in it (`gradient/norm-b` for `name="b"`), and
            their states in checkpoints are kept by it. Without one, monitors are told apart by their settings, and two
            of the same settings are refused.
        batch: What the examples of a batch are, and which of its tensors are inputs and targets; what it leaves open
            is found out from the first batch, and logged.
        verbose: Say what a batch is taken to be, what rows mean, and at the end what was measured.

    Raises:
        ValueError: If `every_n_steps` or `overhead_budget` is out of range, there is no set of that name, or `control`
            is not known or given together with a list of instruments, or two instruments would log under one tag.
        TypeError: If `instruments` holds something else than instruments, or one that overrides no method.

    Example:
        >>> from lightning_cx import ComplexityMonitor
        >>> ComplexityMonitor(every_n_steps=50)
        ComplexityMonitor(GradientNoise, GradientSpectrum, SpectralBias; every 50 steps)
        >>> ComplexityMonitor(overhead_budget=0.05)
        ComplexityMonitor(GradientNoise, GradientSpectrum, SpectralBias; 5% of the wall time)
    """

    def __init__(
        self,
        instruments: Preset | Sequence[Instrument] | None = None,
        every_n_steps: int | None = None,
        overhead_budget: float = 0.02,
        probe: ProbeSet | None = None,
        strict: bool = False,
        control: Control = None,
        name: str = "",
        batch: BatchSpec | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if batch is not None and not isinstance(batch, BatchSpec):
            raise TypeError(f"batch must be a BatchSpec(size=, inputs=, targets=), got {batch!r}.")
        if instruments is None or isinstance(instruments, str):
            chosen = preset("default" if instruments is None else instruments, control)
        elif control is not None:
            raise ValueError(f"pass control={control!r} to the instruments themselves where you choose them.")
        else:
            chosen = list(instruments)
        self._dispatcher = Dispatcher(chosen)
        self.every_n_steps = every_n_steps
        self.overhead_budget = overhead_budget
        self.probe = ProbeSet() if probe is None else probe
        if batch is not None:
            self.probe.anatomies = Anatomies(batch)
        self.strict = strict
        self.verbose = verbose
        self.name = checked_name(name)
        # As they were given: what instruments learn later must not change the key.
        own = {"name": name, "control": control, "probe_settings": settings(self.probe, ("size", "seed"))}
        of_instruments = {key: found for key, i in self._dispatcher.instruments.items() if (found := settings(i))}
        self._told_apart_by = {**own, "instrument_settings": of_instruments}
        self._schedule: Schedule = (
            OverheadBudget(overhead_budget) if every_n_steps is None else EveryNSteps(every_n_steps)
        )
        self._session: Session | None = None
        self._full_batches = FullBatches().state_dict()
        self._key_in_fit = ""  # set from `setup` to `teardown`
        self._others: frozenset[str] = frozenset()  # keys of the trainer's other callbacks of this class
        self._module: weakref.ref[LightningModule] | None = None
        self._reached = 0  # optimizer steps done at the last batch that was seen

    def __repr__(self) -> str:
        names = ", ".join(type(i).__name__ for i in self.instruments)
        budget = f"{self.overhead_budget:.0%} of the wall time"
        when = budget if self.every_n_steps is None else f"every {self.every_n_steps} steps"
        return f"{type(self).__name__}({names}; {when})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and other processes start with: settings and what was seen, but nothing of a fit."""
        return {**self.__dict__, "_session": None, "_module": None, "_key_in_fit": ""}

    @property
    def instruments(self) -> list[Instrument]:
        """What is measured."""
        return list(self._dispatcher.instruments.values())

    @property
    def state_key(self) -> str:
        # Lightning's profiler asks before every hook, some eight times a step: in a fit it is what `setup` found.
        return self._key_in_fit or distinct(self, self._key)

    @property
    def _key(self) -> str:
        return key_of(self, self._released_key, self._told_apart_by)

    @property
    def _legacy_state_key(self) -> Any:
        """The key of releases: Lightning takes the state under it where a checkpoint has none under `state_key`."""
        return self._generate_state_key(**self._released_key)

    @property
    def _released_key(self) -> dict[str, Any]:
        return {
            "instruments": [type(i).__name__ for i in self.instruments],
            "every_n_steps": self.every_n_steps,
            "overhead_budget": self.overhead_budget,
            "probe": (self.probe.size, self.probe.seed),
        }

    @property
    def overhead(self) -> float:
        """Share of the wall time since the start of training that was spent here; nan before the start."""
        return math.nan if self._session is None else self._session.ledger.share

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, self)
        self._others, self._key_in_fit = keys_of_others(trainer, self, self._key), self._key
        if self._module is not None and self._module() is not pl_module:
            self._start_afresh()  # another model: nothing that was seen of the last one is comparable
        self._module = weakref.ref(pl_module)

    def _start_afresh(self) -> None:
        self.probe.forget()
        self._dispatcher.reset()
        self._reached = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < self._reached:  # steps are counted anew: the same model in another trainer, or a copy
            self._start_afresh()
        # A smoke test should run what the real run will.
        fit = Fit(trainer, pl_module, self.probe.anatomies)
        schedule = EveryNSteps(1) if fit.is_smoke_test else self._schedule
        self._session = Session(
            fit, self._dispatcher, self.probe, schedule, self.strict, self, self.name, verbose=self.verbose
        )
        if fit.is_first:  # a checkpoint knows the batches of the first process
            self._session.full_batches.load_state_dict(self._full_batches)
        self._full_batches = FullBatches().state_dict()  # of a checkpoint, for the fit that resumes it
        self._session.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module
        if self._session is not None and batch is not None:
            self._session.begin_step(batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        del trainer, pl_module
        if self._session is not None and self._session.sampling:
            self._session.attach(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        if self._session is not None and self._session.sampling:
            self._session.finish()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        del trainer, pl_module
        if self._session is not None and self._session.sampling:
            self._session.stepping(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch_idx
        self._reached = trainer.global_step
        if self._session is not None and batch is not None:
            self._session.end_step(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        if self._session is not None:
            self._session.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        if self._session is None:
            return
        self._session.end()
        self._session.sum_up(self.overhead_budget)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module
        if self._session is not None and isinstance(exception, KeyboardInterrupt | SystemExit):
            self._session.end()  # a run that is ended from outside shows what it has; loggers are closed next
        self._drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        self._key_in_fit = ""
        told_in(trainer).clear()
        self._drop()

    def _drop(self) -> None:
        if self._session is not None:
            self._session.backwards.drop()

    def state_dict(self) -> dict[str, Any]:
        full_batches = self._full_batches if self._session is None else self._session.full_batches.state_dict()
        own = {"probe": self.probe.state_dict(), "full_batches": full_batches, "reached": self._reached}
        return {"key": self._key, **own, **self._dispatcher.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("key") in self._others:  # found under the key of a release, which theirs was then too
            return
        self.probe.load_state_dict(state_dict["probe"])
        self._full_batches = state_dict.get("full_batches", self._full_batches)
        self._reached = state_dict.get("reached", 0)
        self._dispatcher.load_state_dict(state_dict, self._resume)

    def _resume(self, key: str, instrument: Instrument, state: dict[str, Any]) -> None:
        try:
            instrument.load_state_dict(state)
        except (KeyError, TypeError) as error:  # written by another version: no reason to lose the run
            if self.strict:
                raise
            instrument.reset()
            rank_zero_warning(
                f"lightning_cx: {key} starts afresh: the checkpoint's state of it does not fit ({error!r})"
            )
