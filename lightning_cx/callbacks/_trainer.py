"""The one place that knows a Trainer from inside: whatever is private there, or differs between versions, is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn  # a dependency of both flavours
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset, SubsetRandomSampler

from lightning_cx.callbacks._flavour import (
    Callback,
    DummyLogger,
    LightningModule,
    Trainer,
    is_param_in_hook_signature,
    is_tensorboard,
    move_data_to_device,
)
from lightning_cx.probe.batches import leaves

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

__all__ = [
    "Callback",
    "LightningModule",
    "Trainer",
    "agreed",
    "any_process",
    "batch_size_of",
    "can_stop",
    "first_process",
    "gathered_rows",
    "gradient_scale",
    "has_tensorboard",
    "log_step",
    "move_to_device",
    "planned_batches",
    "publish",
    "rank_zero_info",
    "rank_zero_warn",
    "replayable",
    "replayed_loss",
    "tensorboard_experiments",
    "to_device",
    "total_batches",
    "training_data",
]


USUAL_BATCH = 32  # examples that are read at a time where batches are of no fixed size


def total_batches(trainer: Trainer) -> int:
    """Batches seen since the start of the whole fit, resumed parts included."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def log_step(trainer: Trainer) -> int:
    """The step number under which Lightning logs this batch's own values."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def planned_batches(trainer: Trainer) -> float:
    """Batches that the run will see if nothing stops it; inf if nobody knows."""
    per_epoch = float(trainer.num_training_batches)
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    planned = per_epoch * epochs if epochs else 0.0
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        planned = min(planned, float(trainer.max_steps) * trainer.accumulate_grad_batches)
    return planned


def gradient_scale(trainer: Trainer, module: LightningModule) -> float:
    """What Lightning has multiplied the loss by when its backward runs: accumulation and the fp16 scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if module.automatic_optimization else scale


def batch_size_of(batch: Any) -> int:
    """Number of examples in a batch: the length of its first tensor.

    Lightning's own look at a batch warns where tensors differ in length, which is no concern of the user's here.

    Raises:
        ValueError: If the batch holds no tensor with an axis.
    """
    for _, leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    raise ValueError(f"the number of examples in a batch of type {type(batch).__name__} is not clear")


def training_data(trainer: Trainer) -> tuple[Any, Callable[[list[Any]], Any], int] | None:
    """Data set, collate function and batch size of the training loader, or None where examples have no index.

    Examples that the loader leaves out (a `SubsetRandomSampler`, or batches cut off without shuffling) are left out: on
    what was never trained on a residual means something else.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        return None
    collate = loader.collate_fn
    if collate is None:
        return None
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or USUAL_BATCH
    return _trained_on(loader, int(size), trainer.num_training_batches), collate, int(size)


def _trained_on(loader: DataLoader, size: int, batches: float) -> Any:
    sampler = loader.sampler
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)  # Lightning's wrapper for processes
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    plain = type(loader.batch_sampler) is BatchSampler  # with one of the user's own, the sampler says nothing
    if plain and isinstance(sampler, SequentialSampler) and batches * size < len(loader.dataset):  # type: ignore[arg-type]
        return Subset(loader.dataset, range(int(batches) * size))
    return loader.dataset


def to_device(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Put a fetched batch where and how the training loop would, its transfer hooks included."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def move_to_device(batch: Any, module: LightningModule) -> Any:
    """Put a batch that already went through the transfer hooks onto the module's device."""
    return move_data_to_device(batch, module.device)


def replayable(module: LightningModule) -> str | None:
    """Why `training_step` cannot be run again, in words; None if it can."""
    if not module.automatic_optimization:
        return "under manual optimisation training_step steps the optimizer itself"
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return "training_step fetches its own batches (dataloader_iter)"
    return None


def replayed_loss(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """Run `training_step` again and return its loss; for use inside `isolated(module)`.

    Raises:
        ValueError: If the step returns no loss.
    """
    arguments: dict[str, Any] = {"batch_idx": batch_idx}
    accepted = {k: v for k, v in arguments.items() if is_param_in_hook_signature(module.training_step, k, min_args=2)}
    with _quiet(trainer), trainer.precision_plugin.train_step_context():
        output = module.training_step(batch, *accepted.values())
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError("training_step returned no loss when it was replayed")
    return loss


@contextmanager
def _quiet(trainer: Trainer) -> Iterator[None]:
    """Let what user code sends to `self.logger` vanish."""
    loggers = trainer._loggers
    silent: list[Logger] = [DummyLogger() for _ in loggers]
    trainer._loggers = silent
    try:
        yield
    finally:
        trainer._loggers = loggers


def can_stop(trainer: Trainer) -> bool:
    """Whether `min_steps` and `min_epochs` are behind us."""
    return trainer.fit_loop._can_stop_early


def any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process says yes; every process has to ask."""
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def agreed(trainer: Trainer, number: int) -> bool:
    """Whether all processes have the same number; every process has to ask."""
    every = trainer.strategy.all_gather(torch.tensor(number, device=trainer.strategy.root_device))
    return bool((every == number).all())


def first_process(trainer: Trainer, claim: bool) -> int:
    """Rank of the first process that claims something, 0 if none does; every process has to ask."""
    claims = trainer.strategy.all_gather(torch.tensor(claim, device=trainer.strategy.root_device)).reshape(-1)
    return int(claims.int().argmax())


def gathered_rows(trainer: Trainer, rows: Tensor) -> list[Tensor]:
    """The matrices [n_i, C_i] of all processes, widened with zeros to one width; every process has to call."""
    strategy, rows = trainer.strategy, rows.double()
    sizes = strategy.all_gather(torch.tensor(rows.shape, device=strategy.root_device)).reshape(-1, 2)
    padded = rows.new_zeros(tuple(sizes.amax(0).tolist()))
    padded[: rows.shape[0], : rows.shape[1]] = rows
    everything = strategy.all_gather(padded.to(strategy.root_device)).cpu().reshape(-1, *padded.shape)
    return [part[:count] for part, count in zip(everything, sizes[:, 0].tolist(), strict=True)]


def publish(trainer: Trainer, scalars: Mapping[str, float], step: int) -> None:
    """Send finite values to every logger, and all of them to where callbacks look for what they monitor."""
    finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(finite, step=step)
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether pictures have somewhere to go."""
    return any(map(is_tensorboard, trainer.loggers))


def tensorboard_experiments(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of the trainer's TensorBoard loggers; none on ranks that do not log."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if is_tensorboard(logger)]
