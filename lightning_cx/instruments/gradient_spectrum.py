"""Which functions of the examples the batch's gradients change: simple ones or noise."""

from __future__ import annotations

from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from lightning_cx.functional import gradient_spectrum, laplacian_basis
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import BatchView, Instrument, ModeScatter, Needs, Reading
from lightning_cx.instruments.control import Control, ShuffledControl, shuffled_gradients
from lightning_cx.instruments.gradient_noise import NOT_FINITE
from lightning_cx.instruments.histories import Thinned

MIN_EXAMPLES = 16  # a graph of 10 neighbours each over fewer examples joins all with all and orders nothing
EARLIER_STEPS = 12  # more are hard to tell apart in one picture
MODES_KEPT = 64  # of each earlier step, the strongest; the others lie at the bottom of the picture

TAGS = (quantities.GRADIENT_MEDIAN, quantities.GRADIENT_MEDIAN_CHANCE_LOW, quantities.PARTICIPATION_RATIO)


@final
class GradientSpectrum(Instrument):
    """Median complexity of the batch gradient's singular functions, with its null, and how many of them share it.

    Examples of the batch that look alike are joined in a graph, whose eigenvectors run from smooth to rough. Where
    the gradients vary smoothly over it, neighbours want the same of the weights and help each other; at .5 each
    example pulls for itself, as it does when noise is being fitted.

    Args:
        control: `"shuffle"` logs every number that depends on the order of the examples again with the examples
            shuffled, under `<tag>_shuffled`.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `control` is not known.
    """

    tags = TAGS

    def __init__(self, control: Control = None, *, name: str = "") -> None:
        super().__init__(name)
        self.control = control
        self._modes: Thinned[Modes] = Thinned(EARLIER_STEPS)
        self._shuffled = ShuffledControl(control, GradientSpectrum, order_free=(quantities.PARTICIPATION_RATIO,))

    def reset(self) -> None:
        self._modes.reset()
        self._shuffled.reset()

    @property
    def needs(self) -> Needs:
        return Needs(features=True)

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        reading = self._measure(step, gradients, batch.features)
        if self.control is None:
            return reading
        return self._shuffled.beside(
            reading, lambda other: other.on_gradients(step, shuffled_gradients(gradients), batch)
        )

    def _measure(self, step: int, sample: GradientSample, features: Tensor | None) -> Reading:
        if sample.gram is None:
            return Reading()
        gram = sample.gram.cpu()
        if features is None:  # whoever looked for them has said why there are none
            return Reading(dict.fromkeys(TAGS, torch.nan))
        why = None
        if not bool(gram.isfinite().all()):
            why = NOT_FINITE
        elif sample.batch_size < MIN_EXAMPLES:
            why = f"a batch of {sample.batch_size} is too small to order its examples: {MIN_EXAMPLES} are needed"
        if why is not None:
            return Reading.refused(TAGS, why)
        basis = laplacian_basis(features.cpu()[: len(gram)])
        spectrum = gradient_spectrum(gram, basis)
        median, chance = float(spectrum.whole_median), float(spectrum.null_median)
        scalars = {
            quantities.GRADIENT_MEDIAN: median,
            quantities.GRADIENT_MEDIAN_CHANCE_LOW: chance - 1.96 * float(spectrum.null_sd),
            quantities.PARTICIPATION_RATIO: float(spectrum.participation_ratio),
        }
        strengths = spectrum.eigenvalues.clamp_min(0).sqrt()
        picture = mode_picture(self._modes, "Gradient modes of the batch", step, strengths, spectrum.medians, median)
        refusals = {}
        if basis.n_levels < 3:  # the constant, and one for all that differs
            why = "the graph of this batch gives no order: its examples are all alike, or all equally different"
            refusals = dict.fromkeys(TAGS[:2], why)
        return Reading(scalars, pictures={quantities.GRADIENT_SPECTRUM: picture}, refusals=refusals)

    def state_dict(self) -> dict[str, Any]:
        return {"modes": self._modes.state_dict(), **self._shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._modes.load_state_dict(state["modes"])
        self._shuffled.load_state_dict(state)


Modes: TypeAlias = tuple[int, Tensor, Tensor]  # step, singular values, positions


def mode_picture(
    earlier: Thinned[Modes], title: str, step: int, singular_values: Tensor, positions: Tensor, whole: float
) -> ModeScatter:
    """Return the picture of a step's modes before those of earlier steps, and add the step to them.

    Positions are median complexities as fractions of the index range, `whole` is that of the whole gradient.
    """
    singular_values, positions = singular_values.cpu(), positions.cpu()
    picture = ModeScatter(
        step=step,
        singular_values=singular_values,
        medians=positions,
        whole_median=whole,
        title=f"{title} at step {step}",
        reading="Each dot is a function of the examples that the gradient changes: strong ones are high up, simple "
        "ones to the left. Learning structure: the strong dots lie left of .5. Fitting noise: all dots gather "
        "around .5.",
        earlier=tuple(earlier),
    )
    earlier.add((step, singular_values[:MODES_KEPT].clone(), positions[:MODES_KEPT].clone()))
    return picture
