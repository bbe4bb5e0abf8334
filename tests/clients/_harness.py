"""Fit a model of another library plainly, watched by our callbacks, and in float64 beside a loop over single examples.

A `Case` is one model with one loader. `outcome(case)` makes its three fits once and holds what they showed:

- plain and watched: weights, optimizer states and random streams have to be equal bit for bit;
- watched: every sentence of ours, and which numbers came;
- in float64: the Gram matrix that an instrument is shown, beside gradients of the examples run alone.

Nothing here reads a batch with our own code, so that the two can disagree.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Both flavours before ours, so that our callbacks are of both kinds.
import lightning.pytorch
import numpy as np
import pytorch_lightning  # noqa: F401
import torch
from torch import Tensor

from lightning_cx import ComplexityEarlyStopping, ComplexityMonitor, ProbeSet
from lightning_cx.callbacks._flavour import Callback  # of both kinds
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import Instrument, Reading
from lightning_cx.rules import SpectralRisk

OUTPUT = Path(__file__).parent / "output"
NEVER = 10**9
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Case:
    """One model of a library, as its users train it.

    Attributes:
        name: `<library>-<model>`.
        fit: Trains a new model: `fit(callbacks, double)`. If `double`, it has no dropout, and float64 weights and data
            where the library can have them.
        loss_of: The loss of one example of a batch alone, `loss_of(module, batch, i)`; None where examples have none.
            An IndexError ends the loop.
        weights: How much each example of a batch counts, in examples, where they do not count alike: a row is its share
            of the batch gradient then, and that is what it is compared with.
        features: What is passed as `ProbeSet(features=...)`, if anything.
    """

    name: str
    fit: Callable[[list[Any], bool], None]
    loss_of: Callable[[Any, Any, int], Tensor] | None = None
    weights: Callable[[Any], Tensor] | None = None
    features: Callable[[Any], Tensor] | None = None

    @property
    def library(self) -> str:
        return self.name.partition(":")[0]

    def losses(self, module: Any, seen: Sampled) -> Iterator[Tensor]:
        """Yield the loss of each example of a sampled batch alone."""
        assert self.loss_of is not None
        with suppress(IndexError):
            for i in count():
                torch.set_rng_state(seen.stream)  # as it was when the step began
                yield self.loss_of(module, seen.batch, i)

    def __str__(self) -> str:
        return self.name


@dataclass
class Sampled:
    """What one sampled step showed, and what is needed to run its examples alone."""

    sample: GradientSample
    weights: dict[str, Tensor]
    batch: Any
    stream: Tensor


@dataclass
class Outcome:
    """What the fits of a case showed.

    Attributes:
        plain: What the plain fit ended with.
        differing: What is not bit for bit as in the plain fit.
        messages: Sentences of ours, each with how it came (warning, or the level of logging).
        metrics: Our numbers at the end of the fit.
        reason: What the stopping rule said last.
        samples: Of the fit in float64.
        gram_error: Relative error of the first sample's Gram matrix against the loop; nan where none was made.
        mean_error: Relative error of the mean of the loop's gradients against the gradient of the batch: whether what
            an example is alone is its share of what was trained on.
        loop_size: Examples in the loop.
        batch: First batch of the watched fit.
        failure: Why a fit did not come to its end, by fit.
    """

    plain: dict[str, Any] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    samples: list[GradientSample] = field(default_factory=list)
    gram_error: float = math.nan
    mean_error: float = math.nan
    loop_size: int | None = None
    batch: Any = None
    failure: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return ", ".join(dict.fromkeys(sample.status for sample in self.samples)) or "off"

    @property
    def examples(self) -> list[int]:
        return sorted({sample.batch_size for sample in self.samples})


class Lasting:
    """Stays what it is where a library copies its callbacks, as neuralforecast does."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class End(Lasting, Callback):
    """Takes a copy of all that training has changed, at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.batch: Any = None
        self.steps = 0
        self.reason = ""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.batch is None:
            self.batch = copy.deepcopy(batch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.state = {
            "weights": copy.deepcopy(dict(pl_module.state_dict())),
            "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
            "streams": [torch.get_rng_state(), np.random.get_state(), random.getstate()],
            "gradients": {name: p.grad for name, p in pl_module.named_parameters()},
        }
        self.steps = trainer.global_step
        self.reason = next((c.reason for c in trainer.callbacks if isinstance(c, ComplexityEarlyStopping)), "")
        self.metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items() if "/" in tag}


class Record(Lasting, Instrument):
    """Keeps what it is shown of gradients."""

    def __init__(self, before: Before) -> None:
        super().__init__()
        self._before = before
        self.seen: list[Sampled] = []

    def on_gradients(self, step: int, gradients: GradientSample, batch: Any) -> Reading:
        if len(self.seen) < 4:
            self.seen.append(Sampled(gradients, *self._before.taken))
        return Reading({"client/seen": float(gradients.batch_size)})


class Before(Lasting, Callback):
    """Holds weights and batch as they are before each step, and runs examples of the sampled steps alone at the end."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        self.record = Record(self)
        self.taken: tuple[dict[str, Tensor], Any, Tensor] = ({}, None, torch.empty(0))
        self.error, self.mean_error, self.size = math.nan, math.nan, None
        self.failure = ""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.taken = (copy.deepcopy(dict(pl_module.state_dict())), copy.deepcopy(batch), torch.get_rng_state())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._case.loss_of is None or not self.record.seen:
            return
        try:
            self.error, self.mean_error, self.size = compare(self._case, pl_module, self.record.seen[0])
        except Exception as error:  # the loop is ours: a case whose loop fails is to be repaired
            self.failure = f"{type(error).__name__}: {error}"


def compare(case: Case, module: Any, seen: Sampled) -> tuple[float, float, int]:
    """Run the examples of a sampled batch alone.

    Returns:
        The relative error of the sample's Gram matrix, that of the mean of these examples against the batch, and how
        many examples there are.
    """
    module.load_state_dict(seen.weights)
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]

    def row(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return torch.cat([g.to_dense().reshape(-1) for g in flat]).double()

    with silent(module), torch.enable_grad():
        rows = [row(loss) for loss in case.losses(module, seen)]
        torch.set_rng_state(seen.stream)
        batch = row(step_of(module, seen.batch))
    own = torch.stack(rows)
    if len(own) > 1 and bool((own == own[0]).all()):
        raise ValueError("the loop ran the whole batch each time: its examples were not cut out")
    if case.weights is not None:
        own = own * case.weights(seen.batch).to(own)[:, None]
    truth = own @ own.T
    mean_error = min(float((own.mean(0) * scale - batch).norm() / batch.norm()) for scale in (1, len(rows)))
    gram = seen.sample.gram
    alike = gram is not None and gram.shape == truth.shape
    return float((gram - truth).norm() / truth.norm()) if alike else math.inf, mean_error, len(rows)


@contextmanager
def silent(module: Any) -> Iterator[None]:
    """Let `log` and `log_dict` of a module do nothing, outside the hooks in which Lightning allows them."""
    names = ("log", "log_dict")
    for name in names:
        object.__setattr__(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)


def step_of(module: Any, batch: Any) -> Tensor:
    """Return the loss of a training step on any batch."""
    output = module.training_step(batch, 0)
    return output["loss"] if isinstance(output, Mapping) else output


def cut(batch: Any, i: int, examples: int) -> Any:
    """Return one example as a batch of its own: row i of every tensor that has as many rows as there are examples."""
    if i >= examples:
        raise IndexError(i)
    if isinstance(batch, Tensor):
        return batch[i : i + 1] if batch.dim() and len(batch) == examples else batch
    if isinstance(batch, Mapping):
        return type(batch)({key: cut(value, i, examples) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(cut(value, i, examples) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(cut(value, i, examples) for value in batch)
    if is_dataclass(batch):
        names = [one.name for one in fields(batch)]
        return replace(batch, **{name: cut(getattr(batch, name), i, examples) for name in names})
    return batch


def seed() -> None:
    """Seed every stream."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@contextmanager
def listening(messages: list[str]) -> Iterator[None]:
    """Collect what we say, by warnings and by logging, and let nothing else through."""

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("lightning_cx") or "lightning_cx" in text:
            messages.append(f"{record.levelname}: {text}")

    names = ("lightning_cx", "lightning_utilities.core.rank_zero")
    before, levels = logging.Logger.handle, [logging.getLogger(name).level for name in names]
    logging.Logger.handle = handle  # type: ignore[method-assign]
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)
    shown = warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")

            def show(message: Warning | str, category: type[Warning], filename: str, *args: Any) -> None:
                if "lightning_cx" in str(message) or "lightning_cx" in filename:
                    messages.append(f"{category.__name__}: {message}")

            warnings.showwarning = show
            yield
    finally:
        warnings.showwarning = shown
        logging.Logger.handle = before  # type: ignore[method-assign]
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)


def watchers(case: Case, monitor: Any = None) -> list[Any]:
    """Return our two callbacks, which measure often and never end the fit."""
    stopper = ComplexityEarlyStopping(SpectralRisk(patience=NEVER), every_n_steps=2, restore_best=False)
    return [ComplexityMonitor(monitor, every_n_steps=2, probe=ProbeSet(features=case.features)), stopper]


@cache
def outcome(case: Case) -> Outcome:
    """Make the fits of a case, once."""
    found = Outcome()
    states: list[dict[str, Any]] = []
    for watched in (False, True):
        end, ours, messages = End(), watchers(case) if watched else [], []
        trouble = _run(case, [*ours, end], False, messages) or ("" if end.steps else "our callbacks saw no step")
        if trouble:
            found.failure["watched" if watched else "plain"] = trouble
        states.append(end.state)
        if watched:
            found.messages, found.metrics, found.reason = messages, end.metrics, end.reason
            found.batch = end.batch
    found.plain = states[0]
    found.differing = sorted(differences(*states))
    before = Before(case)
    monitor = ComplexityMonitor([before.record], every_n_steps=2)
    trouble = _run(case, [before, monitor], True, [])
    if trouble or before.failure:
        found.failure["loop"] = trouble or before.failure
    found.samples = [seen.sample for seen in before.record.seen]
    found.gram_error, found.mean_error, found.loop_size = before.error, before.mean_error, before.size
    return found


@dataclass(frozen=True)
class UnderAll:
    """What a fit with every instrument showed.

    Attributes:
        messages: Sentences of ours.
        differing: What is not bit for bit as in the plain fit.
        failure: Why it did not come to its end.
    """

    messages: list[str]
    differing: list[str]
    failure: str


@cache
def under_all(case: Case) -> UnderAll:
    """Make one more fit of a case, with every instrument on."""
    messages, end = [], End()
    failure = _run(case, [*watchers(case, "all"), end], False, messages)
    return UnderAll(messages, sorted(differences(outcome(case).plain, end.state)), failure)


def _run(case: Case, callbacks: list[Any], double: bool, messages: list[str]) -> str:
    default, here = torch.get_default_dtype(), Path.cwd()
    seed()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # some libraries write where they are
        try:
            with listening(messages):
                case.fit(callbacks, double)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            os.chdir(here)
            torch.set_default_dtype(default)
    return ""


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield where two nestings of tensors and numbers are not bit for bit alike."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not _same_bits(one, other):
            yield where
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if not np.array_equal(one, other):
            yield where
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            if key in one and key in other:
                yield from differences(one[key], other[key], f"{where}/{key}")
            else:
                yield f"{where}/{key} (in one of them)"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif one is not other and one != other and not (one != one and other != other):
        yield where


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided or one.numel() == 0:
        return torch.equal(one, other)
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


def trainer(callbacks: list[Any], double: bool, **options: Any) -> lightning.pytorch.Trainer:
    """Return a Trainer for a few steps that writes nothing."""
    options = {"max_steps": 14, "precision": "64-true" if double else "32-true", **QUIET, **options}
    return lightning.pytorch.Trainer(callbacks=callbacks, **options)
