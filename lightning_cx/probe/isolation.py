"""Run a module again and leave no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_cx._torch import backward_hooks, drop_backward_hooks, preserve_version_counter, version
from lightning_cx.probe.snapshot import Snapshot


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Keep the random streams of torch (all devices), numpy and python as they are, whatever happens inside.

    Args:
        seed: If given, all streams start from it inside the block, so that what is drawn there is reproducible.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with isolated_rng(seed=0):
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch_state, put_back = torch.get_rng_state(), _device_streams(seed)
    try:
        if seed is not None:
            # Not torch.manual_seed: it also seeds devices that are not in use yet, for the day they will be.
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy stream is the one that user code draws from
            random.seed(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        for undo in put_back:
            undo()


@contextmanager
def isolated_streams(holder: object) -> Iterator[None]:
    """Keep the generators that an object holds (a data set and its transforms) where they are."""
    snapshot = Snapshot()
    snapshot.take_streams(holder)
    try:
        yield
    finally:
        snapshot.restore()


def _device_streams(seed: int | None) -> list[Callable[[], None]]:
    """Seed the accelerators that are in use; returns what puts their streams back."""
    undo: list[Callable[[], None]] = []
    for device in (torch.cuda, torch.xpu):
        if device.is_available() and device.is_initialized():
            states = device.get_rng_state_all()
            undo.append(lambda set_all=device.set_rng_state_all, states=states: set_all(states))
            if seed is not None:
                device.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        state = torch.mps.get_rng_state()
        undo.append(lambda: torch.mps.set_rng_state(state))
        if seed is not None:
            torch.mps.manual_seed(seed)
    return undo


@contextmanager
def isolated(module: nn.Module, training: bool = False, seed: int = 0, guard: bool = False) -> Iterator[None]:
    """Let a module run inside the block as if it had never run.

    Whatever can be reached from the module through attributes and containers (buffers, torchmetrics states, lists,
    dictionaries, arrays, plain objects, generators, hooks, modes) is put back afterwards, and no tensor is written
    to: inside the block, clones stand in the place of all tensors that are not parameters. `log` and `log_dict` are
    mute, `.grad` is None inside and back afterwards, random streams too.

    Out of reach: globals, files, iterators, the trainer, what a library of loggers or threads holds, and in-place
    changes of elements that lie ten thousand places before the end of a list.

    Args:
        module: The module, for example a LightningModule.
        training: Mode inside the block; eval by default. A module that is in training mode already keeps the modes
            of its submodules, so that a frozen part stays in eval mode.
        seed: Seed of the random streams inside the block.
        guard: Keep a copy of the parameters as well and put them back should the block change them in place. This
            also sees changes through `.data`, which leave no other sign.

    Raises:
        RuntimeError: If the block changed parameters in place; with `guard` they are put back first.
    """
    snapshot = Snapshot()
    kept: list[_Kept] = []
    with isolated_rng(seed):
        try:
            snapshot.take(module)
            for parameter in snapshot.parameters:  # one by one: memory may run out half way
                kept.append(_Kept(parameter, guard))  # noqa: PERF401
            for part in module.modules():
                if hasattr(type(part), "log") and hasattr(type(part), "log_dict"):
                    part.__dict__["log"] = part.__dict__["log_dict"] = _mute
            if not (training and module.training):
                module.train(training)
            yield
        finally:
            snapshot.restore()
            changed = [one.parameter for one in kept if one.put_back()]
    if changed:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        raise RuntimeError(
            "running training_step again changed parameters in place "
            f"({len(changed)} of them, {names.get(id(changed[0]), 'one outside named_parameters')} first), so it "
            "cannot be replayed without disturbing training: give the probe an explicit loss_fn(module, batch) instead"
        )


def _mute(*args: object, **kwargs: object) -> None:
    del args, kwargs


class _Kept:
    """One parameter as it was: its version, gradient and hooks, and with `guard` its values."""

    def __init__(self, parameter: nn.Parameter, guard: bool) -> None:
        self.parameter = parameter
        self._trainable, self._gradient = parameter.requires_grad, parameter.grad
        self._hooks: dict[int, Any] | None = backward_hooks(parameter)
        self._hooks_inside = dict(self._hooks or {})
        # Exists to hide a change from autograd; here there is nothing to hide once the values are back.
        self._version = preserve_version_counter(parameter)
        self._seen, self._place = version(parameter), parameter.data
        self._values = parameter.detach().clone() if guard else None
        parameter.grad = None

    def put_back(self) -> bool:
        """Put everything back; returns whether the values had changed."""
        parameter, values = self.parameter, self._values
        moved = parameter.shape != self._place.shape or parameter.data_ptr() != self._place.data_ptr()
        if moved:
            parameter.data = self._place
        changed = version(parameter) != self._seen or (values is not None and not _same_bits(parameter, values))
        if changed and values is not None:
            parameter.data.copy_(values)
            self._version.__exit__(None, None, None)
        if parameter.requires_grad != self._trainable:
            parameter.requires_grad_(self._trainable)
        if parameter.grad is not self._gradient:
            parameter.grad = self._gradient
        if self._hooks is None and backward_hooks(parameter) is not None:
            drop_backward_hooks(parameter)
        elif self._hooks is not None and self._hooks != self._hooks_inside:
            self._hooks.clear()
            self._hooks.update(self._hooks_inside)
        return changed or moved


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    # Equal values suffice nearly always; only NaN, which is unlike itself, needs the bits.
    one = one.detach()
    if torch.equal(one, other):
        return True
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(one.element_size())
    return integers is not None and torch.equal(one.contiguous().view(integers), other.contiguous().view(integers))
