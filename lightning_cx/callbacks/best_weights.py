"""Keep a copy of the best weights, and put it back in all processes."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.callbacks._trainer import Callback, Trainer
from lightning_cx.callbacks.fit import Fit

IN_MEMORY = 1 << 30
"""Up to this many bytes a copy is held in host memory, whatever device the module is on. A larger one goes into a file
of the run's folder: a second or two each time that a check is the best so far, instead of gigabytes held for hours."""


class KeptWeights:
    """Parameters and buffers of a module as they were at one step.

    Args:
        limit: Bytes up to which the copy is held in host memory.
    """

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self.limit = limit
        self.step: int | None = None
        self._held: dict[str, Tensor] = {}
        self._file: Path | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the copy lies in a file."""
        return self._file is not None

    def keep(self, module: nn.Module, step: int, folder: str) -> None:
        """Copy the weights.

        Args:
            module: The module, which is only read.
            step: Step number of the weights.
            folder: Where a file may lie, if they are too many for memory.
        """
        tensors = tensors_of(module)
        if sum(t.numel() * t.element_size() for t in tensors.values()) > self.limit:
            self._write({name: t.detach().cpu() for name, t in tensors.items()}, folder)
        elif self._fits(tensors):
            for name, tensor in tensors.items():
                self._held[name].copy_(tensor.detach())
        else:
            self._held = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        self.step = step

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Return whether the last copy can be written over: a new one would cost the memory's pages again."""
        held = self._held
        return held.keys() == tensors.keys() and all(
            held[name].shape == t.shape and held[name].dtype == t.dtype for name, t in tensors.items()
        )

    def _write(self, tensors: dict[str, Tensor], folder: str) -> None:
        if self._file is None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix="best_weights_", suffix=".pt", dir=folder, delete=False) as file:
                self._file = Path(file.name)
            weakref.finalize(self, self._file.unlink, missing_ok=True)  # whichever way the run ends
        partial = self._file.with_suffix(".part")
        torch.save(tensors, partial)
        partial.replace(self._file)  # a full disk must not cost the copy that is there
        self._held = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy, in host memory."""
        if self._file is not None:
            return torch.load(self._file, map_location="cpu", weights_only=True)
        return self._held

    def restore(self, module: nn.Module) -> None:
        """Put the copy back into the module.

        Raises:
            ValueError: If the module has other parameters or buffers by now.
        """
        put_back(module, self.tensors())

    def forget(self) -> None:
        """Let go of the copy, its file included."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._held, self._file, self.step = {}, None, None

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint: the copy itself."""
        # A copy of the copy: the next one that is kept is written over it.
        return {"step": self.step, "weights": {name: tensor.clone() for name, tensor in self.tensors().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the copy is in memory until the next one is made."""
        self.forget()
        self.step, self._held = state["step"], dict(state["weights"])


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; states of torchmetrics are neither, and stay out of it.

    Of what is sharded, the piece that lies in this process.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: t.to_local() if hasattr(t, "to_local") else t for name, t in tensors.items()}  # type: ignore[operator]


def put_back(module: nn.Module, kept: dict[str, Tensor]) -> None:
    """Copy kept values into the module's own tensors.

    Raises:
        ValueError: If the module has other parameters or buffers by now.
    """
    tensors = tensors_of(module)
    changed = sorted(tensors.keys() ^ kept.keys()) or [n for n, t in tensors.items() if t.shape != kept[n].shape]
    if changed:
        raise ValueError(f"the module has changed since its weights were kept: {', '.join(changed[:3])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])


WAY_OUT = "whichever is later in `callbacks` sets the final weights, and restore_best=False keeps the average"


def restore_in_all_processes(fit: Fit, kept: KeptWeights, wanted: bool, claim: bool) -> int | None:
    """Put kept weights back into the module if any process wants it; every process has to call.

    Args:
        fit: Whose module's weights are replaced.
        kept: This process's copy.
        wanted: Whether this process wants them back.
        claim: Whether its copy is the one to take where copies are of different steps, as streams make them.

    Returns:
        The step of the weights; None if no process wanted any.

    Raises:
        RuntimeError: If the copy cannot be read in some process.
    """
    if not fit.any_process(wanted):
        return None
    tensors: dict[str, Any] = {}
    error: Exception | None = None
    try:
        tensors = kept.tensors()
    except Exception as problem:  # a file that is gone; the other processes have to hear of it
        error = problem
    if fit.any_process(error is not None):
        raise RuntimeError("a process could not read its copy of the best weights") from error
    step = kept.step
    if not fit.agreed(-1 if step is None else step):
        step, tensors = fit.from_process((step, tensors), fit.first_process(claim))
    put_back(fit.module, tensors)
    return step


def averages_beside(trainer: Trainer, callback: Callback) -> str | None:
    """Return whose weights the module ends with where another callback averages weights; None if none does.

    At the end of a fit each puts weights of its own into the module, one after another.
    """
    callbacks, own = trainer.callbacks, type(callback).__name__  # type: ignore[attr-defined]
    place = callbacks.index(callback)
    behind = next((type(c).__name__ for c in callbacks[place + 1 :] if _averages(c)), None)
    if behind:
        return f"{behind} comes after {own} in `callbacks` and may replace the best weights by its average; {WAY_OUT}"
    front = next((type(c).__name__ for c in callbacks[:place] if _averages(c)), None)
    return (
        front
        and f"{front} comes before {own} in `callbacks`: the restored best weights will replace its average; {WAY_OUT}"
    )


def _averages(callback: Callback) -> bool:
    return any(kind.__name__.endswith("WeightAveraging") for kind in type(callback).__mro__)
