"""The backward passes of a sampled batch, each attributed to the optimizer whose step it feeds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_cx.callbacks._trainer import LightningModule, Trainer, optimizer_parameters
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.gradient_sampler import GradientSampler
from lightning_cx.callbacks.sharded import held_parameters, is_sharded
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import Needs, Series
from lightning_cx.probe import anything_compiled, eagerly

PATIENCE = 100  # batches after a due one in which an optimizer that did not step in it may still do so


class Backwards:
    """Reads every backward of a sampled batch for every optimizer whose parameters it reaches.

    What an optimizer steps along is the sum of all backward passes since its gradients were last cleared; so these are
    its samples, and a backward that only passes through its parameters (a generator's, through the discriminator) is
    none of its. Under automatic optimisation there is one backward for each step, and of a closure that runs several
    times the first counts: it is the one at the weights that the step starts from.

    Args:
        failures: Where refusals are told.
        needs: What the instruments want.

    Attributes:
        owed: Numbers of the optimizers that have not stepped since they were due; alike in all processes of a fit.
    """

    def __init__(self, failures: Failures, needs: Sequence[Needs]) -> None:
        self._failures, self._needs = failures, needs
        self.samplers: list[GradientSampler] = []
        self._numbers: list[int | None] = []
        self.eager = False
        self._stance = ExitStack()
        self._pending: dict[int, list[GradientSample]] = {}
        self._taken: dict[int, list[GradientSample]] = {}
        self._active: list[int] = []
        self.owed: set[int] = set()
        self._owing_since = 0
        self._automatic = self._done = False

    def start(self, trainer: Trainer) -> None:
        """Begin the fit: one sampler for each optimizer."""
        several = len(trainer.optimizers) > 1
        # Summed gradients are as large as the whole model, and a sharded one is sharded because that is too large.
        shared = trainer.world_size > 1 and not is_sharded(trainer.lightning_module)
        self._numbers = list(range(len(trainer.optimizers))) if several else [None]
        self.samplers = [GradientSampler(self._failures, self._needs, shared, number) for number in self._numbers]

    @property
    def off(self) -> bool:
        """Whether nothing of this model can be read; the reasons were told."""
        return bool(self.samplers) and all(sampler.off for sampler in self.samplers)

    def calibrates(self, examples: int) -> bool:
        """Whether a sampled step on so many examples begins with a comparison of a few of them alone."""
        return any(sampler.calibrates(examples) for sampler in self.samplers)

    @property
    def hook_seconds(self) -> float:
        """Host time that hooks have spent inside the backward so far."""
        return sum(sampler.hook_seconds for sampler in self.samplers)

    @property
    def one_off_seconds(self) -> float:
        """Time that the step spent on what will not be needed again."""
        return sum(sampler.one_off_seconds for sampler in self.samplers)

    def forget_calibration(self) -> None:
        """Compare a few examples alone once more: another process does."""
        for sampler in self.samplers:
            sampler.forget_calibration()

    def begin(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, examples: int, due: bool = True
    ) -> None:
        """Prepare for the step that is about to run; one that is not due is for optimizers that did not step since."""
        self.drop()
        self._automatic, self._done = module.automatic_optimization, False
        self._active = list(range(len(self.samplers))) if due else sorted(self.owed)
        self._owing_since += 1
        for number in self._active:
            self.samplers[number].begin(trainer, module, batch, batch_idx, examples)
            self._take_up(number)
        active = [self.samplers[number] for number in self._active if self.samplers[number].taps]
        # Held to the end of the step, since a closure may run `training_step` more than once.
        self.eager = bool(active) and (anything_compiled() or any(sampler.compiled for sampler in active))
        if self.eager:
            self._stance.enter_context(eagerly())

    def attach(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Ride on the backward that is about to start."""
        if self._automatic and self._done:
            return
        for number in self._active:
            if not self._automatic and self._pending.get(number) and _cleared(trainer, module, self._numbers[number]):
                del self._pending[number]
            self.samplers[number].attach(trainer, module, loss, self.eager)

    def finish(self, module: LightningModule) -> None:
        """Take what the backward showed."""
        self._done = True
        for number in self._active:
            self.samplers[number].finish(module)
            self._take_up(number)

    def _take_up(self, number: int) -> None:
        sampler = self.samplers[number]
        if sampler.sample is not None:
            self._pending.setdefault(number, []).append(sampler.sample)
            sampler.sample = None

    def stepping(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """An optimizer is about to step along what has come together for it."""
        for number in self._active:
            if trainer.optimizers[number] is optimizer and self._pending.get(number) and number not in self._taken:
                self._taken[number] = self._pending.pop(number)

    def samples(self) -> list[tuple[Series, GradientSample]]:
        """What the batch showed; call once, at its end."""
        found = dict(self._taken)
        if len(self.samplers) == 1 and not found:
            found = self._pending  # with accumulation the step comes later, and there is no question whose it is
        self._settle_debts(found)
        return [
            (Series(optimizer, backward), sample)
            for optimizer, of_optimizer in sorted(found.items())
            for backward, sample in enumerate(of_optimizer)
        ]

    def _settle_debts(self, found: dict[int, list[GradientSample]]) -> None:
        """An optimizer that does not step in every batch is sampled when it does."""
        if len(self.samplers) == 1:
            return
        before, after = self.owed, {n for n in self._active if n not in found and not self.samplers[n].off}
        if not before:
            self._owing_since = 0
        elif self._owing_since >= PATIENCE:
            names = ", ".join(map(str, sorted(after)))
            self._failures.tell(
                f"optimizer {names} made no step in {PATIENCE} batches after a sample was due, so its gradients are "
                "not measured there; step optimizers through self.optimizers(), since others cannot be followed"
            )
            after = set()
        self.owed = after

    def drop(self) -> None:
        """Forget an unfinished step, remove its hooks and let compiled parts be compiled again."""
        self._stance.close()
        self.eager = False
        for sampler in self.samplers:
            sampler.drop()
        self._pending, self._taken = {}, {}


def _cleared(trainer: Trainer, module: LightningModule, number: int | None) -> bool:
    """Whether nothing has come together for an optimizer: its gradients were zeroed after the last backward."""
    own = optimizer_parameters(trainer, number)
    gradients = [p.grad for p in held_parameters(module).values() if own is None or id(p) in own]
    return not any(bool(gradient.count_nonzero()) for gradient in gradients if gradient is not None)
