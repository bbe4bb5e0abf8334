"""Which functions of the examples the batch's gradients change: simple ones or noise."""

from __future__ import annotations

from typing import final

import torch

from lightning_cx.functional import gradient_spectrum, laplacian_basis
from lightning_cx.instruments.base import Instrument, ModeScatter, Needs, Observation, Reading
from lightning_cx.tensorboard import tags

MIN_EXAMPLES = 16  # a graph of 10 neighbours each over fewer examples joins all with all and orders nothing

TAGS: tuple[str, ...] = (tags.GRADIENT_MEDIAN, tags.GRADIENT_MEDIAN_CHANCE_LOW, tags.PARTICIPATION_RATIO)


@final
class GradientSpectrum(Instrument):
    """Median complexity of the batch gradient's singular functions, with its null, and how many of them share it.

    Examples of the batch that look alike are joined in a graph, whose eigenvectors run from smooth to rough. Where
    the gradients vary smoothly over it, neighbours want the same of the weights and help each other; at .5 each
    example pulls for itself, as it does when noise is being fitted.
    """

    def reset(self) -> None:
        """Every batch stands for itself: there is nothing to forget."""

    @property
    def needs(self) -> Needs:
        return Needs(gram=True, features=True)

    def measure(self, observation: Observation) -> Reading:
        sample, features = observation.gradients, observation.features
        if sample is None or sample.gram is None:
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
        spectrum = gradient_spectrum(gram, laplacian_basis(features.cpu()[: len(gram)]))
        median, chance = float(spectrum.whole_median), float(spectrum.null_median)
        scalars = {
            tags.GRADIENT_MEDIAN: median,
            tags.GRADIENT_MEDIAN_CHANCE_LOW: chance - 1.96 * float(spectrum.null_sd),
            tags.PARTICIPATION_RATIO: float(spectrum.participation_ratio),
        }
        picture = ModeScatter(
            step=observation.step,
            singular_values=spectrum.eigenvalues.clamp_min(0).sqrt(),
            medians=spectrum.medians,
            whole_median=median,
            title=f"Gradient modes of the batch at step {observation.step}",
            reading="Each dot is a function of the examples that this batch's gradient changes: strong ones are high "
            "up, simple ones to the left. Learning structure: the strong dots lie left of .5. Fitting noise: all "
            "dots gather around .5.",
        )
        return Reading(scalars, pictures={tags.GRADIENT_SPECTRUM: picture})
