"""The callback that stops training before noise is fitted, without a validation set."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from lightning_cx.batch import Anatomies, BatchSpec
from lightning_cx.callbacks._trainer import (
    Callback,
    LightningModule,
    Trainer,
    can_stop,
    rank_zero_info,
    rank_zero_warning,
)
from lightning_cx.callbacks.best_weights import (
    KeptWeights,
    averages_beside,
    put_back,
    restore_in_all_processes,
    tensors_of,
)
from lightning_cx.callbacks.budget import PICTURE_PAUSE, UNKNOWN_LENGTH, next_check
from lightning_cx.callbacks.distributed import check_strategy
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.fit import Fit, told_in
from lightning_cx.callbacks.identity import checked_name, distinct, key_of, keys_of_others, settings
from lightning_cx.callbacks.monitor import ComplexityMonitor
from lightning_cx.callbacks.probing import ProbeCheck
from lightning_cx.callbacks.publishing import Publisher
from lightning_cx.functional import stopping
from lightning_cx.probe import ProbeSet
from lightning_cx.rules import PathStopper, ResidualStopper, SpectralRisk, StoppingRule

CHECKS_SHARE = 0.05  # of the wall time that checks may take
FREE_SECONDS = 5.0  # that checks may take in all before their share counts
GROWTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # shares of the steps done, after which the next check may come
OVERDRAWN = 1.5  # times as much as the budget allows, from which on checks become rarer


class ComplexityEarlyStopping(Callback):
    """Stops training when what is being fitted is noise, and goes back to the best weights: no validation set needed.

    At each check the fixed probe, a few hundred training examples, is passed once through the model. What is left
    unlearned there is ordered from simple to complex functions of the inputs: a target shows among the simple ones,
    noise among all alike. From both the rule estimates the error on fresh targets, as a validation loss would, and
    stops when that has certainly passed its minimum. Training is not disturbed: up to the stop, weights, optimizer
    states, random streams, buffers and your own logs are bit for bit those of a run without the callback.

    The rule is disabled, and says why, where it has no ground to stand on: fewer than 128 training examples, a loss
    from which no output gradient can be had, or features on which the target looks like noise from the start.

    With `restore_best` a copy of the best weights is held in host memory, up to 1 GiB of them; more go into a file of
    `default_root_dir`, deleted in the end. Checkpoints hold the copy as well, so a resumed run stops at the same step
    with the same weights. If the run ends by itself, the best weights are put back only if the last are certainly
    worse. Checkpoints written on the way keep the weights of their time: after the fit `trainer.test(module)` sees the
    best weights, a checkpoint of the last step does not hold them. Under several processes the probe is shared out, and
    all stop as soon as one says so.

    Args:
        rule: What decides; None takes `SpectralRisk()`.
        every_n_steps: Check at every n-th optimizer step, mid-epoch too; the number of steps in an epoch checks once an
            epoch. None checks often at first, then again after every sixteenth of the steps done so far.
        probe: The fixed examples; None takes those of the `ComplexityMonitor` beside it, or `ProbeSet()`, 512 training
            examples.
        restore_best: Put the weights of the best check back at the end of the fit.
        verbose: Say so when training is stopped.
        strict: Raise where a check fails or the rule has no ground, instead of warning once and letting training go on.
        name: Tells several of them in one trainer apart: their tags end in it (`stopping/risk-b` for `name="b"`), and
            their states in checkpoints are kept by it. Without one they are told apart by their settings, and two of
            the same settings are refused.
        batch: What the examples of a batch are, and which of its tensors are inputs and targets; what it leaves open
            is found out from the first batch. None takes what the `ComplexityMonitor` beside it was told.
        stop: False recommends only: the error is logged, the best weights are kept and put back at the end of the fit
            as far as `restore_best` says, and the run is never ended.
        overhead_budget: Share of the wall time that checks may take, once they have taken 5 seconds in all; None is
            0.05. Checks at a fixed period keep to their period.

    Attributes:
        stopped_step: Optimizer steps done when training was stopped (`trainer.global_step`); None if it was not.
        reason: In words, what the rule said last, or why it is disabled.

    Raises:
        ValueError: If `every_n_steps` is less than 1, `overhead_budget` not between 0 and 1, or tags cannot end in
            `name`.
        TypeError: If `rule` is not a rule.

    Example:
        >>> from lightning_cx import ComplexityEarlyStopping
        >>> ComplexityEarlyStopping(every_n_steps=50)
        ComplexityEarlyStopping(SpectralRisk(patience=10, z=1.645, doubling=True, sigma2=None); every 50 steps)
    """

    def __init__(
        self,
        rule: StoppingRule | None = None,
        every_n_steps: int | None = None,
        probe: ProbeSet | None = None,
        restore_best: bool = True,
        verbose: bool = True,
        strict: bool = False,
        name: str = "",
        batch: BatchSpec | None = None,
        stop: bool = True,
        overhead_budget: float | None = None,
    ) -> None:
        super().__init__()
        if overhead_budget is not None and not 0 < overhead_budget < 1:
            raise ValueError(f"overhead_budget must lie between 0 and 1, got {overhead_budget}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        if rule is not None and not isinstance(rule, StoppingRule):
            raise TypeError(f"rule must be a StoppingRule such as SpectralRisk(), got {rule!r}.")
        if batch is not None and not isinstance(batch, BatchSpec):
            raise TypeError(f"batch must be a BatchSpec(size=, inputs=, targets=), got {batch!r}.")
        self.rule = SpectralRisk() if rule is None else rule
        self.every_n_steps = every_n_steps
        self.probe = ProbeSet() if probe is None else probe
        if batch is not None:
            self.probe.anatomies = Anatomies(batch)
        self._own_batch = batch is not None
        self.restore_best = restore_best
        self.verbose = verbose
        self.strict = strict
        self.stop = stop
        self.overhead_budget = CHECKS_SHARE if overhead_budget is None else overhead_budget
        self.name = checked_name(name)
        self.watch = (PathStopper if self.rule.follows_gradients else ResidualStopper)(self.rule)
        self.kept = KeptWeights()
        self._own_probe = probe is not None
        of_probe = settings(probe, ("size", "seed")) if probe is not None else {}
        self._told_apart_by = {"name": name, "restores": "" if restore_best else "nothing", "probe_settings": of_probe}
        self._key_in_fit = ""  # set from `setup` to `teardown`
        self._others: frozenset[str] = frozenset()  # keys of the trainer's other callbacks of this class
        self._module: weakref.ref[LightningModule] | None = None
        self._check: ProbeCheck | None = None
        self._forget()

    def _forget(self) -> None:
        self.watch.reset()
        self.kept.forget()
        self.stopped_step: int | None = None
        self.reason = "no check yet"
        self._start = KeptWeights()
        self._spent: list[float] = []
        self._began, self._from = perf_counter(), 0
        self._growth: float | None = None  # not chosen yet
        self._off = self._says = self._resumed = self._at_start = False
        self._checked: int | None = None
        self._next = self._counted = 0
        self._clock_state: dict[str, Any] | None = None

    def __repr__(self) -> str:
        when = "ever more rarely" if self.every_n_steps is None else f"every {self.every_n_steps} steps"
        return f"{type(self).__name__}({self.rule!r}; {when})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and other processes start with: settings and what was seen, but nothing of a fit."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_fit", "_publisher", "_failures")}
        return {**kept, "_module": None, "_check": None, "_key_in_fit": ""}

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
            "rule": repr(self.rule),
            "every_n_steps": self.every_n_steps,
            "probe": (self.probe.size, self.probe.seed) if self._own_probe else None,
        }

    @property
    def best_step(self) -> int | None:
        """Optimizer steps done at the check whose weights are kept; None before the first check."""
        return self.watch.best_step if self.rule.keeps_best else self.stopped_step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, self, keeps_weights=self.restore_best)
        self._others, self._key_in_fit = keys_of_others(trainer, self, self._key), self._key
        if self._module is not None and self._module() is not pl_module:
            self.probe.forget()
            self._forget()
        self._module = weakref.ref(pl_module)
        monitor = next((c for c in trainer.callbacks if isinstance(c, ComplexityMonitor)), None)  # type: ignore[attr-defined]
        if not self._own_probe and not self._own_batch and monitor is not None:
            self.probe = monitor.probe

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checked is not None and trainer.global_step < self._checked:  # the same model in another trainer
            self._forget()
        if self._off and not self._resumed:  # a new fit may be of other data
            self._forget()
        self.stopped_step, self._resumed = None, False
        self._spent, self._began, self._from = [], perf_counter(), trainer.global_step
        self._failures = Failures(self.strict, told_in(trainer))
        self._fit = Fit(trainer, pl_module, self.probe.anatomies)
        self._publisher, self._drawn = Publisher(self._fit, self._failures, self, self.name), perf_counter()
        self._check = None if self._off else ProbeCheck(self._fit, self.probe, self.watch, self._failures)
        if self._check is None:
            if self.strict:
                raise ValueError(f"as before the checkpoint: {self.reason}")
            self._failures.tell(f"ComplexityEarlyStopping is disabled, as before the checkpoint: {self.reason}")
            return
        self._counted = trainer.global_step
        if self._clock_state is not None:
            self._check.clock.load_state_dict(self._clock_state)
            self._clock_state = None
        if self.restore_best and (conflict := averages_beside(trainer, self)):
            self._failures.tell(conflict)
        if self._check.start():
            if self.watch.begun:
                self._failures.tell("the probe so far does not fit this data set: the stopping rule starts afresh")
            self._forget()
        if self._is_off() or self.watch.begun:
            return
        self._at_start = True  # the module's own hooks come first

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        del batch_idx
        if self._check is not None and self._at_start:
            self._at_start = False
            if not self._check.reader.streamed:
                self._run_check(self._check, self._fit.log_step)
            if self._check is not None and self._check.reader.streamed:
                # Its examples are still to come, and will be shown to these weights.
                self._start.keep(pl_module, trainer.global_step, trainer.default_root_dir)
        if self._check is not None and batch is not None:
            self._check.keep(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        done = trainer.global_step
        if self._check is None:
            return
        if done != self._counted:
            self._counted = done
            if self.rule.follows_gradients:
                self._check.clock.step()
        if done == self._checked or done < self._next:
            return
        if self._check.ready():
            if self._start.step is not None:
                self._check_the_start(self._check)
            # Lightning's own values of this batch are logged one step lower: it counts the steps before the batch,
            # while the weights that are checked here are those after it.
            self._run_check(self._check, self._fit.log_step + 1)

    def _check_the_start(self, check: ProbeCheck) -> None:
        """Check the weights of the start on the examples of a stream, now that they have arrived."""
        module = self._fit.module
        now = {name: tensor.detach().clone() for name, tensor in tensors_of(module).items()}
        assert self._start.step is not None
        try:
            self._start.restore(module)
            check.check(self._start.step)
        finally:
            put_back(module, now)
            self.probe.latest = None
        if self.restore_best and self.rule.keeps_best:
            self.kept = self._start
        self._start = KeptWeights()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        if self._check is not None:
            self._check.close()
            self._is_off()

    def _run_check(self, check: ProbeCheck, log_as: int) -> None:
        done, start = self._fit.steps, perf_counter()
        decision = check.check(done)
        self._spent.append(perf_counter() - start)
        if self.every_n_steps is None:
            growth = self._slower(done)
            self._growth = growth if done > 0 else None
        self._checked = done
        self._next = next_check(done, self.every_n_steps, check.least_gap, self._growth or GROWTHS[0])
        if self._is_off() or decision is None:
            return
        self.reason = decision.reason
        if self.restore_best and self.rule.keeps_best and self.watch.best_step == done:
            folder = self._fit.trainer.default_root_dir
            self._try("keeping the best weights", lambda: self.kept.keep(self._fit.module, done, folder))
        if self._fit.any_process(decision.stop):
            if self.stop:
                self._stop(decision)
            else:
                self._failures.say(f"{decision.reason}: this would stop the run (stop=False)", "recommends only")
        self._try("logging", lambda: self._publisher.publish([self.watch.reading()], log_as, {}))
        if perf_counter() - self._drawn > PICTURE_PAUSE:
            self._draw()

    def _slower(self, done: int) -> float:
        """Share of the steps done after which to check again, for the budget, as the first process counts.

        It is chosen at the first check after the start, and doubled where checks take much longer than they took then:
        a run that is repeated or resumed is to check at the same steps. Every process has to call.
        """
        later = self._spent[1:]  # the first check calibrates, once
        if not later or done <= 0:
            return self._growth or GROWTHS[0]
        spent, elapsed = sum(later), perf_counter() - self._began - self._spent[0]
        step = max(elapsed - spent, 1e-9) / max(1, done - self._from)
        planned = self._fit.planned_batches / max(1, self._fit.batches)
        total = done * planned if math.isfinite(planned) else math.inf
        allowed = max(FREE_SECONDS, self.overhead_budget * min(step * total, UNKNOWN_LENGTH))
        growth = self._growth or GROWTHS[0]
        if self._growth is None:
            checks = allowed / median(later)
            fit_in = (g for g in GROWTHS if math.log(max(min(total, 1e6) / done, 2)) / math.log1p(g) <= checks)
            growth = next(fit_in, GROWTHS[-1])
        elif spent > OVERDRAWN * max(FREE_SECONDS, self.overhead_budget * elapsed):
            growth = min(2 * growth, GROWTHS[-1])
        return float(self._fit.numbers_of_all([growth])[0, 0])

    def _try(self, part: str, work: Callable[[], None]) -> None:
        if not self._failures.off(part):
            with self._failures.guard(part):
                work()

    def _is_off(self) -> bool:
        if self._check is not None and self._check.off:
            self._off, self.reason, self._check = True, self._check.refusal, None
        return self._off

    def _stop(self, decision: stopping.Decision) -> None:
        if self._fit.is_smoke_test:
            return
        trainer = self._fit.trainer
        if not can_stop(trainer):
            self._failures.say("the stopping rule would stop, but min_steps or min_epochs is not reached", "minimum")
            return
        trainer.should_stop, self._says = True, decision.stop
        self.stopped_step = trainer.global_step
        self.reason = decision.reason if decision.stop else "another process says stop"
        self.watch.mark_stop(self.stopped_step)
        if self.verbose:
            rank_zero_info(
                f"lightning_cx: {self.reason}. Signaling Trainer to stop after {self.stopped_step} optimizer steps."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        self._key_in_fit = ""
        told_in(trainer).clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self._check is None:
            return
        if self.watch.begun and trainer.global_step != self._checked:  # the last weights are candidates, too
            self._run_check(self._check, self._fit.log_step)
        if self._check is None:
            return
        with self._failures.guard("restoring the best weights"):
            self.watch.mark_end(self._restore())
        self._publisher.show(self.watch.reading())
        self._draw()
        self._failures.tell_reasons()

    def _restore(self) -> bool:
        """Put the best weights back where the last are certainly worse; return whether the module has them."""
        worse = self.stopped_step is not None or (self.rule.past_best and self.watch.has_learned)
        wanted = worse and self.kept.step is not None and self.kept.step != self._fit.steps
        if self._fit.is_smoke_test:
            return False
        claim = wanted if self.stopped_step is None else self._says
        step = restore_in_all_processes(self._fit, self.kept, wanted, claim)
        if step is None:
            return self.kept.step == self._fit.steps
        self.watch.best_step = step
        if self.verbose:
            rank_zero_info(f"lightning_cx: the weights after {step} optimizer steps, the best ones, are put back.")
        return True

    def _draw(self) -> None:
        self._drawn = perf_counter()
        self._try("pictures", self._publisher.draw)

    def state_dict(self) -> dict[str, Any]:
        return {
            "key": self._key,
            "watch": self.watch.state_dict(),
            "kept": self.kept.state_dict(),
            "probe": self.probe.state_dict(),
            "stopped_step": self.stopped_step,
            "reason": self.reason,
            "off": self._off,
            "growth": self._growth,
            "checked": self._checked,
            "next": self._next,
            "clock": None if self._check is None else self._check.clock.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("key") in self._others:  # found under the key of a release, which theirs was then too
            return
        try:
            self._take_up(state_dict)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self._forget()
            self.kept, self._resumed = KeptWeights(), False
            rank_zero_warning(
                "lightning_cx: the checkpoint holds a state of ComplexityEarlyStopping of another version "
                f"({type(error).__name__}: {error}), so the stopping rule starts afresh"
            )

    def _take_up(self, state_dict: dict[str, Any]) -> None:
        self._resumed = True
        self._growth = state_dict["growth"]
        self.watch.load_state_dict(state_dict["watch"])
        self.kept.load_state_dict(state_dict["kept"])
        self.probe.load_state_dict(state_dict["probe"])
        self.stopped_step, self.reason = state_dict["stopped_step"], state_dict["reason"]
        self._off, self._checked, self._next = state_dict["off"], state_dict["checked"], state_dict["next"]
        self._clock_state = state_dict.get("clock")
