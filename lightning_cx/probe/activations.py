"""What the parts of a module put out on the probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cx.probe.batches import padded_cat
from lightning_cx.probe.eager import eagerly
from lightning_cx.probe.isolation import isolated
from lightning_cx.probe.passes import Chunk, LossOf


def activations_of(
    module: nn.Module, chunks: Sequence[Callable[[], Chunk]], loss_of: LossOf, wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Outputs of the submodules that have no submodules, [n, ...] float32 on the host, by name, in order of use.

    A part that runs several times in one pass gives its first output; one whose output is no floating-point tensor
    with the examples along its first axis is left out.

    Args:
        module: The model; run in eval mode and in isolation.
        chunks: Functions that put a chunk on the device, called one after another.
        loss_of: Loss of a batch, which makes the pass.
        wanted: Which parts to record, by name.
    """
    names = {part: name for name, part in module.named_modules() if not any(part.children()) and wanted(name)}
    found: dict[str, list[Tensor]] = {}
    seen: dict[str, Tensor] = {}

    def record(part: nn.Module, _: object, output: Any) -> None:
        name = names.get(part)
        if name is not None and name not in seen and isinstance(output, Tensor) and output.is_floating_point():
            seen[name] = output.detach().to("cpu", torch.float32, copy=True)  # before x.relu_() or x += y

    with isolated(module, guard=True), eagerly():
        handle = nn.modules.module.register_module_forward_hook(record)
        try:
            for make in chunks:
                chunk = make()
                seen.clear()
                with torch.enable_grad():  # a loss may take derivatives itself
                    loss_of(chunk.batch)
                for name, values in seen.items():
                    if values.dim() > 0 and values.shape[0] == chunk.examples:
                        found.setdefault(name, []).append(values)
        finally:
            handle.remove()
    return {name: padded_cat(parts) for name, parts in found.items() if len(parts) == len(chunks)}
