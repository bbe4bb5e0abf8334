"""What does the network's kernel prefer, does that fit the target, and which block still has descent to give?"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any, Literal, final

import torch

from lightning_cx.functional import block_shares, kernels
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments.base import Instrument, Needs, Observation, Reading
from lightning_cx.instruments.kernel_reading import (
    MIN_EXAMPLES,
    SPECTRUM,
    TARGET,
    of_blocks,
    of_kernel,
    unknown_blocks,
)
from lightning_cx.instruments.parameter_blocks import Blocks, checked_blocks, parameter_blocks
from lightning_cx.probe import ProbePasses
from lightning_cx.tensorboard import tags

POOLED_SAMPLES = 16
"""Batches whose descent by block is pooled, as many as the noise scale takes: one rarely tells descent from noise."""

PASSES = 6.0
"""First guess of what a reading of 128 examples costs: ten outputs of each go forward and backward, and their loss."""


@final
class Kernel(Instrument):
    """Spectrum and decay of the tangent kernel, how well it fits the target, and the descent that each block gives.

    On the batch (default) the kernel is the Gram matrix of the per-example gradients of the loss, read off the
    training's own backward. That is the tangent kernel weighted by the residuals, so it holds something of the targets
    already: its alignment is above chance even where labels are random. On the probe it is the tangent kernel itself,
    summed over the outputs, of fixed examples in eval mode, compared with what is left to learn (the residuals), at the
    price of a backward for each output.

    The descent by block says which residual block's parameters still lower the loss: its unbiased share of the squared
    norm of the expected gradient, on batches pooled over the last 16 sampled ones.

    Args:
        on: `"batch"` or `"probe"`.
        blocks: `"auto"` finds the repeated blocks of the network by the names of its parameters; a number takes so
            many parts of each name; a mapping says for each block how its parameters' names begin; `"off"` leaves the
            shares out, and saves the Gram matrices of the single parameters.
        examples: How many probe examples take part; with C outputs their number times C is limited to 2048.
        every_n_steps: Period of the readings on the probe; None takes that of the monitor.

    Raises:
        ValueError: If `on` or `blocks` is not known, `examples` is below 16, or `every_n_steps` below 1.

    Example:
        >>> Kernel().needs.gram, Kernel(on="probe").needs.gram
        (True, False)
    """

    def __init__(
        self,
        on: Literal["batch", "probe"] = "batch",
        blocks: Blocks = "auto",
        examples: int = 128,
        every_n_steps: int | None = None,
    ) -> None:
        if on not in ("batch", "probe"):
            raise ValueError(f'Kernel is measured on "batch" or "probe", got {on!r}.')
        if examples < MIN_EXAMPLES:
            raise ValueError(f"{MIN_EXAMPLES} examples are needed to read a kernel, got examples={examples}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is a period of 1 or more steps, got {every_n_steps}.")
        self.on, self.examples, self.every_n_steps = on, examples, every_n_steps
        self.blocks: Blocks = checked_blocks(blocks)
        self._recent: deque[kernels.BlockShares] = deque(maxlen=POOLED_SAMPLES)

    def reset(self) -> None:
        self._recent.clear()

    @property
    def needs(self) -> Needs:
        if self.on == "probe":
            return Needs(passes=PASSES * self.examples / 128, every_n_steps=self.every_n_steps)
        return Needs(gram=True, per_layer=self.blocks != "off", targets=True)

    def measure(self, observation: Observation) -> Reading:
        if self.on == "probe":
            return Reading() if observation.model is None else self._on_probe(observation.model)
        sample = observation.gradients
        if sample is None or sample.gram is None:
            return Reading()
        reading = of_kernel(sample.gram.cpu(), observation.targets, "targets of this batch")
        return self._with_blocks(reading, sample)

    def _on_probe(self, view: ProbePasses) -> Reading:
        try:
            jacobian = view.jacobian(self.examples)
        except (UnsupportedGradientError, ValueError) as error:
            reading = Reading.refused((*SPECTRUM, *TARGET), f"the outputs' derivatives could not be read: {error}")
        else:
            n, outputs = jacobian.residuals.shape
            traced = jacobian.gram.reshape(n, outputs, n, outputs).diagonal(dim1=1, dim2=3).sum(-1)
            reading = of_kernel(traced, jacobian.residuals, "residuals of the probe", whole=jacobian.gram)
        if self.blocks != "off":
            try:
                reading = self._with_blocks(reading, view.gradients(self.examples, per_layer=True))
            except (UnsupportedGradientError, ValueError) as error:
                why = f"the gradients of the probe could not be read: {error}"
                reading = reading.joined(Reading.refused((tags.KERNEL_BLOCK_SHARE,), why))
        return reading.renamed(tags.on_probe)

    def _with_blocks(self, reading: Reading, sample: GradientSample) -> Reading:
        """Add the descent by block, unless it is switched off."""
        if self.blocks == "off":
            return reading
        grams = {name: layer.gram.cpu() for name, layer in sample.layers.items() if layer.gram is not None}
        try:
            members = parameter_blocks(grams, self.blocks)
        except ValueError as error:
            return reading.joined(Reading.refused((tags.KERNEL_BLOCK_SHARE,), str(error)))
        found = block_shares({block: torch.stack([grams[n] for n in names]).sum(0) for block, names in members.items()})
        if not bool(found.covariance.isfinite().all()):
            why = "the gradients are not finite, or of fewer than 3 examples"
            return reading.joined(unknown_blocks(found.blocks, why))
        if self.on == "batch":
            if self._recent and self._recent[-1].blocks != found.blocks:  # a block was frozen or set free
                self._recent.clear()
            self._recent.append(found)
            found = kernels.pool_block_shares(list(self._recent))
        return reading.joined(of_blocks(found))

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [asdict(shares) for shares in self._recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(
            kernels.BlockShares(**{**shares, "blocks": tuple(shares["blocks"])}) for shares in state["recent"]
        )
