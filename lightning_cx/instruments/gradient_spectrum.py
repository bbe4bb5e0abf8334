"""Which functions of the examples the batch's gradients change: simple ones or noise."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_cx.functional import gradient_spectrum, laplacian_basis
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments.base import BatchView, Instrument, Needs
from lightning_cx.instruments.control import Control, ShuffledTwin, shuffled_gradients
from lightning_cx.instruments.modes import ModeHistory
from lightning_cx.instruments.reading import Reading
from lightning_cx.tensorboard import tags

MIN_EXAMPLES = 16  # a graph of 10 neighbours each over fewer examples joins all with all and orders nothing

TAGS: tuple[str, ...] = (tags.GRADIENT_MEDIAN, tags.GRADIENT_MEDIAN_CHANCE_LOW, tags.PARTICIPATION_RATIO)


@final
class GradientSpectrum(Instrument):
    """Median complexity of the batch gradient's singular functions, with its null, and how many of them share it.

    Examples of the batch that look alike are joined in a graph, whose eigenvectors run from smooth to rough. Where
    the gradients vary smoothly over it, neighbours want the same of the weights and help each other; at .5 each
    example pulls for itself, as it does when noise is being fitted.

    Args:
        control: `"shuffle"` logs every number that depends on the order of the examples again with the examples
            shuffled, under `<tag>_shuffled`.

    Raises:
        ValueError: If `control` is not known.
    """

    def __init__(self, control: Control = None) -> None:
        self._history = ModeHistory("Gradient modes of the batch")
        self._twin = ShuffledTwin(control, GradientSpectrum, order_free=(tags.PARTICIPATION_RATIO,))

    def reset(self) -> None:
        self._history.reset()
        self._twin.reset()

    @property
    def needs(self) -> Needs:
        return Needs(features=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        reading = self._measure(step, gradients, batch.features)
        return self._twin.beside(reading, lambda twin: twin.on_gradients(step, shuffled_gradients(gradients), batch))

    def _measure(self, step: int, sample: GradientSample, features: Tensor | None) -> Reading:
        if sample.gram is None:
            return Reading()
        gram = sample.gram.cpu()
        nothing = dict.fromkeys(TAGS, torch.nan)
        if features is None:  # whoever looked for them has said why there are none
            return Reading(nothing)
        why = None
        if not bool(gram.isfinite().all()):
            why = "the gradients of this batch are not finite (NaN or inf in its data, or an overflow)"
        elif sample.batch_size < MIN_EXAMPLES:
            why = f"a batch of {sample.batch_size} is too small to order its examples: {MIN_EXAMPLES} are needed"
        if why is not None:
            return Reading(nothing, refusals=dict.fromkeys(TAGS, why))
        basis = laplacian_basis(features.cpu()[: len(gram)])
        spectrum = gradient_spectrum(gram, basis)
        median, chance = float(spectrum.whole_median), float(spectrum.null_median)
        scalars = {
            tags.GRADIENT_MEDIAN: median,
            tags.GRADIENT_MEDIAN_CHANCE_LOW: chance - 1.96 * float(spectrum.null_sd),
            tags.PARTICIPATION_RATIO: float(spectrum.participation_ratio),
        }
        picture = self._history.picture(step, spectrum.eigenvalues.clamp_min(0).sqrt(), spectrum.medians, median)
        refusals = {}
        if basis.n_levels < 3:  # the constant, and one for all that differs
            why = "the graph of this batch orders nothing: its examples are all alike, or all equally unlike"
            refusals = dict.fromkeys(TAGS[:2], why)
        return Reading(scalars, pictures={tags.GRADIENT_SPECTRUM: picture}, refusals=refusals)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history.state_dict(), **self._twin.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history.load_state_dict(state["history"])
        self._twin.load_state_dict(state)
