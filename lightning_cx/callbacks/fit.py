"""One fit: its trainer and module, its processes, and how far it is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_cx.batch import Anatomies
from lightning_cx.callbacks import _trainer, distributed
from lightning_cx.callbacks._trainer import LightningModule, PassedOverError, Trainer
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.probe import Found, LossOf, used_up

T = TypeVar("T")
TrainingData: TypeAlias = tuple[Any, Callable[[list[Any]], Any], int]  # data set, collate function, batch size


_TOLD: weakref.WeakKeyDictionary[Trainer, set[str]] = weakref.WeakKeyDictionary()


def told_in(trainer: Trainer) -> set[str]:
    """Return what our callbacks have said in the fit that a trainer is at; they clear it in `teardown`."""
    return _TOLD.setdefault(trainer, set())


@dataclass(frozen=True)
class Trouble:
    """What went wrong in the first process where anything did.

    Attributes:
        process: Its rank.
        kind: What to raise elsewhere: a ValueError where it lies in the model or the data, and will not change.
        words: What it was.
    """

    process: int
    kind: type[Exception]
    words: str

    @property
    def lasting(self) -> bool:
        """Whether it will not change."""
        return self.kind is ValueError


class Fit:
    """What the parts of a callback have to know of a fit, made when training starts.

    Trainer and module are held by weak references: callbacks outlive a fit and must not keep a model in memory.

    The methods from `any_process` to `together` are collective: every process has to call them, in the same order, or
    the others wait for ever. With one process they return at once.

    Args:
        trainer: About to train.
        module: Its LightningModule.
        anatomies: What its batches are, as far as others found out; None starts with nothing.

    Attributes:
        anatomies: What its batches are.
        rank: Number of this process.
        world_size: Number of processes.
        is_first: Whether this is the process that logs.
        is_sharded: Whether `fully_shard` has cut parameters of the module in pieces.
        is_smoke_test: Whether `fast_dev_run` is set.
        has_tensorboard: Whether one of the loggers writes for TensorBoard.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, anatomies: Anatomies | None = None) -> None:
        self.anatomies = Anatomies() if anatomies is None else anatomies
        self._trainer, self._module = weakref.ref(trainer), weakref.ref(module)
        self._used_up: Found | None = None
        self.rank, self.world_size, self.is_first = trainer.global_rank, trainer.world_size, trainer.is_global_zero
        self.is_sharded = distributed.is_sharded(module)
        self.is_smoke_test = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self.has_tensorboard = any(map(_trainer.is_tensorboard, trainer.loggers))

    @property
    def trainer(self) -> Trainer:
        """The trainer."""
        trainer = self._trainer()
        assert trainer is not None
        return trainer

    @property
    def module(self) -> LightningModule:
        """The module."""
        module = self._module()
        assert module is not None
        return module

    # How far the fit is.

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self.trainer.global_step

    @property
    def log_step(self) -> int:
        """The step number under which Lightning logs this batch's own values."""
        return _trainer.log_step(self.trainer)

    @property
    def batches(self) -> int:
        """Batches seen since the start of the whole fit, resumed parts included."""
        return _trainer.total_batches(self.trainer)

    @property
    def planned_batches(self) -> float:
        """Batches that the run will see if nothing stops it; inf if unknown."""
        return _trainer.planned_batches(self.trainer)

    def schedule_left(self) -> str:
        """Return, in words, that a schedule has yet to lower the learning rate; empty where none is known to."""
        return _trainer.schedule_left(self.trainer)

    # Its parameters, its batches and its loss.

    def optimizer_parameters(self, number: int | None) -> set[int] | None:
        """Return the identities of the parameters of one optimizer; None for all."""
        return _trainer.optimizer_parameters(self.trainer, number)

    def held_parameters(self, optimizer: int | None = None) -> dict[str, Parameter]:
        """Return parameters by name, as optimizers hold them: of one optimizer, or all."""
        own = self.optimizer_parameters(optimizer)
        held = distributed.held_parameters(self.module)
        return {name: p for name, p in held.items() if own is None or id(p) in own}

    def batch_size_of(self, batch: Any) -> int:
        """Return the number of examples in a batch.

        Raises:
            ValueError: If nothing in the batch shows it.
            PassedOverError: If loaders that run side by side gave batches of different sizes, or the batch is empty.
        """
        return _trainer.batch_size_of(self.trainer, batch, self.anatomies)

    def to_device(self, batch: Any) -> Any:
        """Put a fetched batch where and how the training loop would, its transfer hooks included."""
        return _trainer.to_device(self.trainer, self.module, batch)

    @cached_property
    def training_data(self) -> TrainingData | None:
        """Data set, collate function and batch size of the training loader; None where examples have no index."""
        return _trainer.training_data(self.trainer)

    @property
    def training_examples(self) -> int | None:
        """Size of the training set, where it is known."""
        return None if self.training_data is None else len(self.training_data[0])

    @property
    def gradient_scale(self) -> float:
        """By what Lightning has multiplied the loss when its backward runs: accumulation and the fp16 scaler."""
        return _trainer.gradient_scale(self.trainer, self.module)

    def why_not_replayed(self, together: bool = False) -> str | None:
        """Return why `training_step` cannot be run again, in words; None if it can.

        Args:
            together: Whether all processes run it at once, which a sharded module needs.
        """
        if self._iterator is not None:
            return (
                f"training_step uses {self._iterator}, and what an iterator gives is gone: let the batch bring it, by "
                "a CombinedLoader"
            )
        if not self.module.automatic_optimization:
            return "under manual optimisation training_step steps the optimizer itself"
        if not together and self.is_sharded:
            return "the module is sharded, and its processes run it together"
        return _trainer.unseen_batch(self.module)

    @property
    def _iterator(self) -> Found | None:
        """What a replay would use up; looked for until the first is found, since hooks may make one later."""
        if self._used_up is None:
            self._used_up = used_up(self.module, ("training_step",))
        return self._used_up

    def replayed_loss(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Run `training_step` again and return its loss, inside `isolated(module)`.

        Raises:
            ValueError: If the step returns no loss.
        """
        return _trainer.replayed_loss(self.trainer, self.module, batch, batch_idx)

    def loss_of(self, together: bool = False) -> LossOf | None:
        """Return what runs `training_step` on a batch, inside `isolated(module)`; None if it cannot be run again."""
        if self.why_not_replayed(together) is not None:
            return None
        return self.replayed_loss

    # What its processes tell each other.

    def any_process(self, decision: bool) -> bool:
        """Return whether any process says yes."""
        return self.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def agreed(self, number: int) -> bool:
        """Return whether all processes have the same number."""
        strategy = self.trainer.strategy
        every = strategy.all_gather(torch.tensor(number, device=strategy.root_device))
        return bool((every == number).all())

    def first_process(self, claim: bool) -> int:
        """Return the rank of the first process that claims something, 0 if none does."""
        strategy = self.trainer.strategy
        claims = strategy.all_gather(torch.tensor(claim, device=strategy.root_device)).reshape(-1)
        return int(claims.int().argmax())

    def from_process(self, thing: Any, source: int = 0) -> Any:
        """Return what one process has, in all of them."""
        return self.trainer.strategy.broadcast(thing, source)

    def numbers_of_all(self, numbers: Sequence[float]) -> Tensor:
        """Return the numbers of all processes, [processes, numbers] float64; each has to give as many."""
        strategy = self.trainer.strategy
        own = torch.tensor(numbers, dtype=torch.float64, device=strategy.root_device)
        return strategy.all_gather(own).cpu().reshape(-1, len(numbers))

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes of tensors of one shape, which may be written to."""
        total = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def gathered_rows(self, rows: Tensor) -> list[Tensor]:
        """Return the matrices [n_i, C_i] of all processes, widened with zeros to one width."""
        strategy, rows = self.trainer.strategy, rows.double()
        sizes = strategy.all_gather(torch.tensor(rows.shape, device=strategy.root_device)).reshape(-1, 2)
        padded = rows.new_zeros(tuple(sizes.amax(0).tolist()))
        padded[: rows.shape[0], : rows.shape[1]] = rows
        everything = strategy.all_gather(padded.to(strategy.root_device)).cpu().reshape(-1, *padded.shape)
        return [part[:count] for part, count in zip(everything, sizes[:, 0].tolist(), strict=True)]

    def trouble(self, error: Exception | None) -> Trouble | None:
        """Return what went wrong in any process, None if nothing did."""
        if not self.any_process(error is not None):
            return None
        source = self.first_process(error is not None)
        kind = ValueError if isinstance(error, (ValueError, UnsupportedGradientError)) else RuntimeError
        kind = PassedOverError if isinstance(error, PassedOverError) else kind
        words = f"{type(error).__name__}: {error}" if kind is RuntimeError else str(error)
        return Trouble(source, *self.from_process((kind, words), source))

    def together(self, work: Callable[[], T]) -> T:
        """Do something in every process, and raise in all of them if it failed in one.

        Raises:
            Exception: What went wrong here; where it did elsewhere, a ValueError or RuntimeError that says where and
                what.
        """
        done, error = attempt(work)
        met = self.trouble(error)
        if error is not None:
            raise error
        if met is not None:
            raise met.kind(f"process {met.process}: {met.words}")
        return done  # type: ignore[return-value]  # nothing was raised


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Do something and return what went wrong: other processes have to hear of it before anything is raised."""
    try:
        return work(), None
    except Exception as error:
        return None, error
