"""How large the gradient is, how much its examples disagree, and what batch size that asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import NoiseScale, noise, noise_scale, pool_noise_scales
from lightning_cx.gradients import GradientSample, LayerGradients
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import UNKNOWN_BATCH, BatchView, Instrument, Reading

NOT_FINITE = "the gradients of this batch are not finite (NaN or inf in its data, or an overflow)"
POOLED_SAMPLES = 16  # one batch rarely tells signal from noise; 16 narrow the interval fourfold and stay local in time

SCALE = quantities.interval(quantities.NOISE_SCALE)
QUANTILES = (quantities.EXAMPLE_NORM_P05, quantities.EXAMPLE_NORM_P50, quantities.EXAMPLE_NORM_P95)
TAGS = (quantities.GRADIENT_NORM, *SCALE, quantities.GRADIENT_SNR, *QUANTILES)


@final
class GradientNoise(Instrument):
    """Gradient norm, noise scale with its interval, signal-to-noise ratio, and norms of single examples.

    The noise scale is pooled over the last 16 sampled batches: the mean noise over the mean signal. Batches far
    below it are mostly noise; beyond its upper end larger batches buy little. Where processes share a batch, all of
    it is that of the whole batch: signal, noise and norms are exact, the interval is a little wide.

    Args:
        name: Tells it from others of its class: its tags end in `-<name>`.
    """

    tags = TAGS

    def __init__(self, *, name: str = "") -> None:
        super().__init__(name)
        self._recent: deque[NoiseScale] = deque(maxlen=POOLED_SAMPLES)

    def reset(self) -> None:
        self._recent.clear()

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView = UNKNOWN_BATCH) -> Reading:
        if gradients.gram is None:
            return Reading()
        batch_noise, norms = whole_batch(gradients)
        if not bool(norms.isfinite().all() & gradients.gram.isfinite().all()):
            return Reading.refused(TAGS, NOT_FINITE)
        refusals: dict[str, str] = {}
        if len(norms) > 1 and bool(batch_noise.noise.isfinite()):
            self._recent.append(batch_noise)
        else:
            why = "a batch of one example shows no spread: use batches of two or more"
            refusals = dict.fromkeys((*SCALE, quantities.GRADIENT_SNR), why)
        quantiles = torch.quantile(norms, norms.new_tensor([0.05, 0.5, 0.95])).tolist()
        squared = batch_noise.squared_mean(len(norms)) if len(norms) > 1 else gradients.gram.mean()
        scalars = {
            quantities.GRADIENT_NORM: gradients.multiple * float(squared.clamp_min(0).sqrt()),
            quantities.GRADIENT_SNR: float(batch_noise.snr),
            **dict(zip(QUANTILES, quantiles, strict=True)),
            **dict.fromkeys(SCALE, torch.nan),
        }
        if self._recent:
            scale = pool_noise_scales(list(self._recent))
            scalars |= dict(zip(SCALE, map(float, (scale.value, scale.low, scale.high)), strict=True))
            if scale.value.isnan():
                why = "the signal is not distinguishable from zero in these batches"
                refusals = {quantities.NOISE_SCALE: f"{why}; the lower end of the interval is valid"}
        return Reading(scalars, histograms={quantities.EXAMPLE_NORMS: norms.cpu()}, refusals=refusals)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [asdict(scale) for scale in self._recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(NoiseScale(**scale) for scale in state["recent"])


def whole_batch(sample: GradientSample) -> tuple[NoiseScale, Tensor]:
    """Return noise scale and norms [N] of a batch, over all processes if several share it."""
    assert sample.gram is not None
    if not sample.blocks:
        return noise_scale(sample.gram), sample.gram.diagonal().clamp_min(0).sqrt()
    squares = [block.squared_norms for block in sample.blocks if block.squared_norms is not None]
    scales = [block.noise for block in sample.blocks if block.noise is not None]
    return noise.noise_scale_of_blocks(scales, squares, sample.squared_sum), torch.cat(squares).clamp_min(0).sqrt()


def sum_by_layer(sample: GradientSample, part: Callable[[LayerGradients], Tensor | None]) -> dict[str, Tensor]:
    """Return what `part` reads off each parameter, on the host, added up over the parameters of a layer."""
    layers: dict[str, Tensor] = {}
    for name, parameter in sample.layers.items():
        own = part(parameter)
        if own is not None:
            layer = name.rpartition(".")[0] or name
            layers[layer] = layers[layer] + own.cpu() if layer in layers else own.cpu()
    return layers
