"""The only place that touches what is private in a Trainer, or differs between versions of Lightning."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only  # a dependency of both flavours
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset, SubsetRandomSampler

from lightning_cx.batch import Anatomies
from lightning_cx.callbacks._flavour import (
    Callback,
    DummyLogger,
    LightningModule,
    Trainer,
    is_param_in_hook_signature,
    is_tensorboard,
    move_data_to_device,
)
from lightning_cx.probe import keyed

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

__all__ = ["Callback", "LightningModule", "Trainer", "is_tensorboard", "rank_zero_info", "rank_zero_warning"]

LOGGER = logging.getLogger("lightning_cx")


@rank_zero_only
def rank_zero_warning(message: str) -> None:
    """Log a warning on the first process; unlike one of Python's it cannot be filtered away by accident."""
    LOGGER.warning(message)


USUAL_BATCH = 32  # examples that are read at a time where batches are of no fixed size


def total_batches(trainer: Trainer) -> int:
    """Return the batches seen since the start of the whole fit, resumed parts included."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def log_step(trainer: Trainer) -> int:
    """Return the step number under which Lightning logs this batch's own values."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def planned_batches(trainer: Trainer) -> float:
    """Return the batches that the run will see if nothing stops it; inf if unknown."""
    per_epoch = float(trainer.num_training_batches)
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    planned = per_epoch * epochs if epochs else 0.0
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        planned = min(planned, float(trainer.max_steps) * trainer.accumulate_grad_batches)
    return planned


def gradient_scale(trainer: Trainer, module: LightningModule) -> float:
    """Return by what Lightning has multiplied the loss when its backward runs: accumulation and the fp16 scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if module.automatic_optimization else scale


def optimizer_parameters(trainer: Trainer, number: int | None) -> set[int] | None:
    """Return the identities of the parameters of one optimizer; None for all."""
    if number is None:
        return None
    return {id(p) for group in trainer.optimizers[number].param_groups for p in group["params"]}


def batch_size_of(trainer: Trainer, batch: Any, anatomies: Anatomies) -> int:
    """Return the number of examples in a batch.

    Lightning's own function takes the first tensor's length, whatever it is of.

    Raises:
        ValueError: If nothing in the batch shows it.
        PassedOverError: If loaders that run side by side gave batches of different sizes, or the batch is empty.
    """
    loaders, size_of_loader = trainer.train_dataloader, loader_batch_size(trainer)
    parts = _parts(loaders, batch)
    expected = logged_batch_size(trainer) if size_of_loader is None else size_of_loader
    if len(parts) == 1:
        size = anatomies.of(batch, expected).examples
        if size == 0:
            raise PassedOverError("batches without an example are skipped")
        return size
    sizes = {0 if part is None else anatomies.of(part).examples for part in parts}  # None of one that is exhausted
    if len(sizes) > 1:
        lengths = " and ".join(sorted("no" if size == 0 else str(size) for size in sizes))
        raise PassedOverError(
            f"batches in which loaders side by side give {lengths} examples are skipped, since nothing says which "
            "of them belong together: give the loaders one batch size and drop_last=True, and combine them with "
            '"min_size" or "max_size_cycle"'
        )
    return sizes.pop()


def loader_batch_size(trainer: Trainer) -> int | None:
    """Return how many examples the training loader puts into a batch; None where it does not say."""
    loader = trainer.train_dataloader
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def logged_batch_size(trainer: Trainer) -> int | None:
    """Return the `batch_size` that the module passes to `self.log`, as far as the means of the epoch tell it."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress.current.completed
    for metric in loop._results.values():
        total = getattr(metric, "cumulated_batch_size", None)
        if metric.meta.on_epoch and metric.meta.is_mean_reduction and isinstance(total, Tensor) and batches > 0:
            size = float(total) / batches
            return int(size) if size == int(size) and size > 0 else None
    return None


class PassedOverError(Exception):
    """Raised where nothing is wrong, but a batch is not one to measure; the message says why."""


def _parts(loaders: Any, batch: Any) -> list[Any]:
    """Return what each loader gave where several run side by side, else the batch itself."""
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping) and loaders.keys() == batch.keys():
        return [part for key in loaders for part in _parts(loaders[key], batch[key])]
    if isinstance(loaders, list | tuple) and isinstance(batch, list | tuple) and len(loaders) == len(batch) > 0:
        return [part for pair in zip(loaders, batch, strict=True) for part in _parts(*pair)]
    return [batch]


def training_data(trainer: Trainer) -> tuple[Any, Callable[[list[Any]], Any], int] | None:
    """Return data set, collate function and batch size of the training loader; None where examples have no index.

    Examples that the loader leaves out (by its sampler, or by batches that are cut off without shuffling) are left out
    here too: on an example that is never trained on, a residual means something else.

    Raises:
        ValueError: If the examples cannot be had outside the loader.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        return None
    collate = loader.collate_fn
    if collate is None or loader.batch_sampler is None:  # the data set itself gives batches
        return None
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or USUAL_BATCH
    # A smoke test trains on one batch, but should say what the real run will say.
    batches = math.inf if trainer.fast_dev_run else trainer.num_training_batches  # type: ignore[attr-defined]
    return _trained_on(loader, int(size), batches), collate, int(size)


def _trained_on(loader: DataLoader, size: int, batches: float) -> Any:
    sampler = loader.sampler
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)  # Lightning's wrapper for processes
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    plain = type(loader.batch_sampler) is BatchSampler  # with one of the user's own, the sampler says nothing
    if plain and isinstance(sampler, SequentialSampler) and batches * size < len(loader.dataset):  # type: ignore[arg-type]
        return Subset(loader.dataset, range(int(batches) * size))
    return keyed(loader, sampler)


def tensor_parallel_size(trainer: Trainer) -> int:
    """Return over how many processes each layer is spread; 1 where none is."""
    mesh = getattr(trainer.strategy, "_device_mesh", None)
    names = () if mesh is None else mesh.mesh_dim_names or ()
    return mesh["tensor_parallel"].size() if mesh is not None and "tensor_parallel" in names else 1


def to_device(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Put a fetched batch where and how the training loop would, its transfer hooks included."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def move_to_device(batch: Any, module: LightningModule) -> Any:
    """Put a batch that already went through the transfer hooks onto the module's device."""
    return move_data_to_device(batch, module.device)


def unseen_batch(module: LightningModule) -> str | None:
    """Return why the batch of a loss is not the one that hooks are given, in words; None if it is."""
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
    """Discard what user code sends to `self.logger`."""
    loggers = trainer._loggers
    silent: list[Logger] = [DummyLogger() for _ in loggers]
    trainer._loggers = silent
    try:
        yield
    finally:
        trainer._loggers = loggers


def callbacks_being_validated() -> list[Callback]:
    """Return the callbacks whose state keys Lightning compares right now; empty if it does not.

    To be called by what `state_key` calls. Lightning refuses two of one key before it runs any hook in which we could
    say what to do, and its function has the callbacks in a local variable. If it is renamed, Lightning's message shows.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("lightning_cx."):
        frame = frame.f_back
    asked = frame is not None and frame.f_code.co_name == "_validate_callbacks_list"
    return list(frame.f_locals.get("callbacks", ())) if frame is not None and asked else []


def can_stop(trainer: Trainer) -> bool:
    """Return whether `min_steps` and `min_epochs` are reached."""
    return trainer.fit_loop._can_stop_early


def announce(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Put values where callbacks look for what they monitor."""
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})


def tensorboard_experiments(trainer: Trainer) -> list[Any]:
    """Return the SummaryWriters of the trainer's TensorBoard loggers; none on ranks that do not log."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if is_tensorboard(logger)]


LOWERED = 0.1  # of its largest value: a learning rate below it has fallen
FALLING = (
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "OneCycleLR",
    "StepLR",
    "MultiStepLR",
    "PolynomialLR",
    "ExponentialLR",
    "SequentialLR",
    "ChainedScheduler",
)


def schedule_left(trainer: Trainer) -> str:
    """Return, in words, that a schedule has yet to lower the learning rate; empty where none is known to.

    Errors fall once more where the learning rate does. What a schedule of the user's own will do is not known.
    """
    for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
        name, last = type(scheduler).__name__, getattr(scheduler, "last_epoch", 0)
        ahead = [milestone for milestone in getattr(scheduler, "milestones", ()) if milestone > last]
        if name not in FALLING or (name == "MultiStepLR" and not ahead):
            continue
        groups = scheduler.optimizer.param_groups
        share = max(float(g["lr"]) / top for g in groups if (top := max(g.get("max_lr", 0), g["initial_lr"])) > 0)
        if share > LOWERED:
            return (
                f"the learning rate still has to fall ({name}: it is at {share:.0%} of its largest value), and errors "
                "fall with it"
            )
    return ""
