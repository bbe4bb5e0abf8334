"""Do the simple functions of the examples get the strong gradients, and could that be chance?"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal, final

import torch
from torch import Tensor

from lightning_cx.functional import Basis, interference_profile, laplacian_basis
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import BatchView, Instrument, Method, ModeScatter, Needs, Reading
from lightning_cx.instruments.control import Control, ShuffledControl, shuffled_gradients, shuffled_probe
from lightning_cx.instruments.gradient_noise import sum_by_layer
from lightning_cx.instruments.gradient_spectrum import EARLIER_STEPS, MIN_EXAMPLES, Modes, mode_picture
from lightning_cx.instruments.histories import Thinned
from lightning_cx.probe import ProbeReading

BATCH_TAGS = (quantities.INTERFERENCE, quantities.INTERFERENCE_P, quantities.RANK_CORRELATION)
PROBE_TAGS = tuple(map(quantities.on_probe, BATCH_TAGS))


@final
class Interference(Instrument):
    """The low-complexity interference principle, measured: CII with its p-value, and the rank correlation.

    CII lies near 1 while each strong mode of the gradients is simpler than all that remains, near 0 where strength and
    complexity have nothing to do with each other. The p-value says how often random pairing would reach it.

    On the training batch this costs nothing but arithmetic: the Gram matrix is that of the training's own backward,
    and each batch has its own graph over its examples. On the probe the same examples are compared from step to step,
    in eval mode, at the price of passes of their own.

    Args:
        on: `"batch"` or `"probe"`.
        per_layer: Measure each layer's own gradients as well, under `<tag>/<layer>`.
        control: `"shuffle"` logs every number again with the examples shuffled, under `<tag>_shuffled`: what this
            method finds where there is nothing to find.
        examples: How many probe examples take part; fewer where the batches of the probe are small (their number is
            limited to 8, since each two have to meet in one pass).
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `on` or `control` is not known, or `examples` is below 16.

    Example:
        >>> Interference(on="probe", control="shuffle").needs.probe_gradients
        256
    """

    def __init__(
        self,
        on: Literal["batch", "probe"] = "batch",
        per_layer: bool = False,
        control: Control = None,
        examples: int = 256,
        *,
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.control = control
        if on not in ("batch", "probe"):
            raise ValueError(f'Interference is measured on "batch" or "probe", got {on!r}.')
        if examples < MIN_EXAMPLES:
            raise ValueError(f"{MIN_EXAMPLES} examples are needed to order them, got examples={examples}.")
        self.on = on
        self.per_layer = per_layer
        self.examples = examples
        self.tags = BATCH_TAGS if on == "batch" else PROBE_TAGS
        self._modes: Thinned[Modes] = Thinned(EARLIER_STEPS)
        self._basis: tuple[Tensor, Basis] | None = None
        self._shuffled = ShuffledControl(control, lambda: Interference(on, per_layer, None, examples))

    def reset(self) -> None:
        self._modes.reset()
        self._basis = None
        self._shuffled.reset()

    @property
    def needs(self) -> Needs:
        return Needs(features=True, probe_gradients=self.examples, per_layer=self.per_layer)

    @property
    def shown(self) -> frozenset[Method]:
        return frozenset({"on_gradients" if self.on == "batch" else "on_probe"})

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        reading = self._measure(step, gradients, batch.features)
        if self.control is None:
            return reading
        return self._shuffled.beside(
            reading, lambda other: other.on_gradients(step, shuffled_gradients(gradients), batch)
        )

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        reading = self._measure(step, probe.gradients, probe.features)
        if self.control is None:
            return reading
        return self._shuffled.beside(reading, lambda other: other.on_probe(step, shuffled_probe(probe)))

    def _measure(self, step: int, sample: GradientSample | None, features: Tensor | None) -> Reading:
        if sample is None or sample.gram is None:
            return Reading()
        if features is None:  # whoever looked for them has said why there are none
            return Reading(dict.fromkeys(self.tags, torch.nan))
        gram = sample.gram.cpu()
        why = _unusable(gram)
        if why is not None:
            return Reading.refused(self.tags, why)
        basis = self._basis_on(features, len(gram))
        scalars, refusals, picture = self._profile(step, gram, basis)
        for layer, own in sum_by_layer(sample, attrgetter("gram")).items() if self.per_layer else ():
            values, _, _ = self._profile(step, own, basis, whole=False)
            scalars.update({quantities.of_layer(tag, layer): value for tag, value in values.items()})
        tag = quantities.GRADIENT_SPECTRUM if self.on == "batch" else quantities.PROBE_GRADIENT_SPECTRUM
        return Reading(scalars, pictures={} if picture is None else {tag: picture}, refusals=refusals)

    def _basis_on(self, features: Tensor, count: int) -> Basis:
        if self._basis is None or self._basis[0] is not features or len(self._basis[1].vectors) != count:
            self._basis = (features, laplacian_basis(features.cpu()[:count]))
        return self._basis[1]

    def _profile(
        self, step: int, gram: Tensor, basis: Basis, whole: bool = True
    ) -> tuple[dict[str, float], dict[str, str], ModeScatter | None]:
        profile = interference_profile(gram, basis, shuffles=0)
        values = (profile.cii, profile.p_value, profile.rank_correlation)
        scalars = {tag: float(value) for tag, value in zip(self.tags, values, strict=True)}
        if not whole:
            return scalars, {}, None
        title = f"Gradient modes of the {self.on}"
        picture = mode_picture(
            self._modes, title, step, profile.singular_values, profile.positions, float(profile.whole_position)
        )
        refusals = {}
        if not bool(profile.cii.isfinite()):
            r = profile.singular_values.numel()
            why = profile.unknown or f"the gradients of these examples have {r} modes: too few to compare"
            refusals = dict.fromkeys(self.tags, why)
        return scalars, refusals, picture

    def state_dict(self) -> dict[str, Any]:
        return {"modes": self._modes.state_dict(), **self._shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._modes.load_state_dict(state["modes"])
        self._shuffled.load_state_dict(state)


def _unusable(gram: Tensor) -> str | None:
    if not bool(gram.isfinite().all()):
        return "the gradients of these examples are not finite (NaN or inf in the data, or an overflow)"
    if len(gram) < MIN_EXAMPLES:
        return f"{len(gram)} examples are too few to order them: {MIN_EXAMPLES} are needed"
    return None
