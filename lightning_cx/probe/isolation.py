"""Run a module again and leave no trace."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SHARED = frozenset({"_parameters", "_modules"})  # what the module is made of stays; the dictionaries are copied


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
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy stream is the one that user code draws from
            random.seed(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def isolated(module: nn.Module, training: bool = False, seed: int = 0, guard: bool = False) -> Iterator[None]:
    """Let a module run inside the block as if it had never run.

    While the block runs, the module and its submodules work on copies of their buffers, torchmetrics states and
    plain attributes; afterwards the originals are back, untouched. `log` and `log_dict` are mute, random streams and
    train/eval modes are put back. Use `torch.autograd.grad` inside, never `.backward()`, and `.grad` stays too.

    Tensors that stand directly in lists are shared, not copied: appending to a list leaves no trace, changing an
    element in place would.

    Args:
        module: The module, for example a LightningModule.
        training: Mode inside the block; eval by default.
        seed: Seed of the random streams inside the block.
        guard: Keep a copy of the parameters as well and put them back should the block change them in place.

    Raises:
        RuntimeError: If the block changed parameters in place; with `guard` they are put back first.
    """
    saved = [(part, part.__dict__.copy()) for part in module.modules()]
    versions = [(p, p._version, p.detach().clone() if guard else None) for p in module.parameters()]
    memo: dict[int, Any] = {}
    with isolated_rng(seed):
        try:
            for part, _ in saved:
                for name, value in part.__dict__.items():
                    part.__dict__[name] = value.copy() if name in _SHARED else _copied(value, memo)
                if hasattr(type(part), "log") and hasattr(type(part), "log_dict"):
                    part.__dict__["log"] = part.__dict__["log_dict"] = _mute
            module.train(training)
            yield
        finally:
            for part, attributes in saved:
                part.__dict__.clear()
                part.__dict__.update(attributes)
            changed = [(p, original) for p, version, original in versions if p._version != version]
            for p, original in changed:
                if original is not None:
                    p.data.copy_(original)
    if changed:
        raise RuntimeError(
            "running training_step again changed parameters in place, so it cannot be replayed without disturbing "
            "training: give the probe an explicit loss_fn(module, batch) instead"
        )


def _mute(*args: object, **kwargs: object) -> None:
    del args, kwargs


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy tensors and containers, share everything else; what was one object stays one object."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Parameter | nn.Module):
        return value
    if isinstance(value, Tensor):
        result = value.detach().clone().requires_grad_(value.requires_grad) if value.is_leaf else value
        memo[id(value)] = result
    elif isinstance(value, dict):
        result = memo[id(value)] = copy.copy(value)
        for key, item in value.items():
            result[key] = _copied(item, memo)
    elif isinstance(value, list | deque):
        result = memo[id(value)] = copy.copy(value)
        for index, item in enumerate(value):
            if isinstance(item, dict | list | deque | set):
                result[index] = _copied(item, memo)
    elif isinstance(value, set):
        result = memo[id(value)] = copy.copy(value)
    else:
        result = value
    return result
