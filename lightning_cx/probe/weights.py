"""Let a module run at other weights, and have its own back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


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
    places = {name: own[name].data for name in parameters}
    try:
        for name, values in parameters.items():
            own[name].data = values.detach().to(places[name], copy=True)
        yield
    finally:
        for name, place in places.items():
            own[name].data = place
