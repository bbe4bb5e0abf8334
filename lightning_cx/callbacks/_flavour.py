"""Which Lightning the user has: `lightning.pytorch`, `pytorch_lightning`, or both, whose classes are strangers."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger

NAMES = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
OLDEST = "2.5"  # pip holds `pytorch-lightning` to it, and nobody `lightning`: see pyproject.toml


def imported() -> list[ModuleType]:
    """The flavours in use; whatever belongs to a run comes from one of these."""
    # One that is only half imported, because it is importing us, has no Trainer yet.
    return [sys.modules[name] for name in NAMES if hasattr(sys.modules.get(name), "Trainer")]


def is_tensorboard(logger: Any) -> TypeGuard[TensorBoardLogger]:
    """Whether a logger of either flavour writes for TensorBoard."""
    return any(isinstance(logger, flavour.loggers.TensorBoardLogger) for flavour in imported())


def _chosen() -> list[ModuleType]:
    """What the user has imported before us; else what is installed."""
    for flavour in (found := imported() or [_installed()]):
        if TorchVersion(flavour.__version__) < OLDEST:
            name = flavour.__name__.partition(".")[0]
            raise ImportError(
                f"lightning_cx needs {name} {OLDEST} or later, found {flavour.__version__}: pip install -U {name}"
            )
    return found


def _installed() -> ModuleType:
    for name in NAMES:
        try:
            return import_module(name)
        except ModuleNotFoundError as missing:  # noqa: PERF203 - there are two
            if missing.name not in (name, name.partition(".")[0]):  # there, and out of order
                raise
    raise ModuleNotFoundError(
        f"lightning_cx needs Lightning {OLDEST} or later for its callbacks: pip install lightning"
    )


if TYPE_CHECKING:
    from lightning.fabric.utilities.apply_func import move_data_to_device
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
else:
    _flavours = _chosen()
    _name = _flavours[0].__name__
    move_data_to_device = import_module(f"{NAMES[_name]}.utilities.apply_func").move_data_to_device
    LightningModule, Trainer = _flavours[0].LightningModule, _flavours[0].Trainer
    DummyLogger = import_module(f"{_name}.loggers.logger").DummyLogger
    is_param_in_hook_signature = import_module(f"{_name}.utilities.signature_utils").is_param_in_hook_signature
    # `Trainer(callbacks=one)` and a command line take callbacks of their own kind only: be one of each.
    _kinds = tuple(flavour.Callback for flavour in _flavours)
    Callback = _kinds[0] if len(_kinds) == 1 else type("Callback", _kinds, {"__module__": __name__})

__all__ = [
    "Callback",
    "DummyLogger",
    "LightningModule",
    "Trainer",
    "imported",
    "is_param_in_hook_signature",
    "is_tensorboard",
    "move_data_to_device",
]
