"""Conditions under which a module runs: other weights, the statistics of each batch, code that is not compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx._torch import BatchNorm, InstanceNorm, buffers, dynamo, is_compiled_in_place

LIBRARIES = ("torch", "lightning", "pytorch_lightning", "torchmetrics")  # their classes hold no compiled methods


@contextmanager
def other_weights(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values in the place of parameters while the block runs.

    The parameters stay the objects they are, so optimizers and tied modules see nothing; their own storage is laid
    aside and comes back, so no bit of it can change.

    Args:
        module: The model.
        parameters: Values by name, as `module.named_parameters()` names them; those that are missing stay.

    Raises:
        ValueError: If a name is unknown or a shape does not fit; nothing is changed then.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False)
        >>> before = net.weight.detach().clone()
        >>> with other_weights(net, {"weight": torch.ones(1, 2)}):
        ...     net(torch.ones(3, 2))[0].item()
        2.0
        >>> torch.equal(net.weight, before)
        True
    """
    own = dict(module.named_parameters())
    strangers = sorted(set(parameters) - set(own))
    if strangers:
        raise ValueError(f"the module has no parameter {strangers[0]!r}; other weights go by the names of its own.")
    for name, values in parameters.items():
        if values.shape != own[name].shape:
            raise ValueError(f"{name} has shape {list(own[name].shape)}, other weights came as {list(values.shape)}.")
    storages = {name: own[name].data for name in parameters}
    try:
        for name, values in parameters.items():
            own[name].data = values.detach().to(storages[name], copy=True)
        yield
    finally:
        for name, storage in storages.items():
            own[name].data = storage


def running_norms(module: nn.Module) -> list[nn.Module]:
    """Layers whose running statistics follow the weights through training; those that were set to eval do not.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
        >>> len(running_norms(net))
        1
    """
    # A model that is in eval mode as a whole does not tell which of them are frozen.
    follows = [part for part in module.modules() if part.training or not module.training]
    kinds = (BatchNorm, InstanceNorm)
    return [part for part in follows if isinstance(part, kinds) and part.running_mean is not None]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[bool]:
    """Have the layers of `running_norms` use the statistics of each batch inside the block, in eval mode too.

    Running statistics belong to the weights that they were gathered under: under other weights, or an average of
    weights, they are wrong, and a comparison of weights would be one of statistics. The buffers themselves are laid
    aside and come back as they were.

    Args:
        module: The model.

    Yields:
        Whether there are such layers.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> with batch_statistics(norm):
        ...     print(norm(torch.tensor([[2.0], [4.0]])).tolist()[1][0] > 0.99)
        True
        >>> norm.running_mean
        tensor([0.])
    """
    layers = running_norms(module)
    laid_aside = [(layer, buffers(layer)["running_mean"], buffers(layer)["running_var"]) for layer in layers]
    try:
        for layer in layers:
            # Without buffers a layer in eval mode takes the batch's statistics.
            buffers(layer)["running_mean"] = buffers(layer)["running_var"] = None
        yield bool(layers)
    finally:
        for layer, mean, variance in laid_aside:
            buffers(layer)["running_mean"], buffers(layer)["running_var"] = mean, variance


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled parts inside the block as they were written; compiled code and its guards stay as they are.

    Compiled code calls no hook and hides its parameters, and other batch sizes would compile it anew. Where no
    compiler is loaded nothing happens: its import alone takes a second.
    """
    return torch.compiler.set_stance("force_eager") if dynamo() is not None else nullcontext()


def compiled_parts(module: nn.Module) -> list[str]:
    """Names of the submodules, methods and functions held by a module that `torch.compile` has been applied to.

    Compiled functions that a module only calls, from the globals of its file, are not seen.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
        >>> compiled_parts(net)
        []
        >>> net[1].compile(backend="eager")
        >>> compiled_parts(net)
        ['1']
    """
    if dynamo() is None:
        return []
    found: list[str] = []
    for name, part in module.named_modules():
        if is_compiled_in_place(part):
            found.append(name or type(part).__name__)
        found.extend(f"{name}.{attribute}".strip(".") for attribute in _compiled_functions(part))
    return found


def _compiled_functions(part: nn.Module) -> Iterator[str]:
    own = [kind for kind in type(part).__mro__ if kind.__module__.partition(".")[0] not in LIBRARIES]
    for holder in (part, *own):
        for name, value in vars(holder).items():
            function = type(value) in (FunctionType, MethodType)
            if function and hasattr(value, "get_compiler_config") and name != "_compiled_call_impl":
                yield name
