"""What an instrument is: it is shown one sampled step and turns it into named numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from torch import Tensor

from lightning_cx.gradients import GradientSample
from lightning_cx.instruments.dwelling_picture import DwellTimeline
from lightning_cx.probe import ProbePasses, ProbeReading


@dataclass(frozen=True)
class Needs:
    """What an instrument has to be shown; the callback takes the union over its instruments.

    Attributes:
        gram: The Gram matrix of the batch's per-example gradients; their norms come with it.
        norms: Their norms: where no instrument needs more, a sampled step costs less.
        features: Features of the batch, for a graph over its examples.
        probe: A pass over the fixed probe.
        per_layer: The Gram matrices of the single parameters as well, of whatever gradients are shown.
        probe_gradients: Number of probe examples whose gradients are needed; these cost passes of their own.
        projections: Number of fixed random directions on which the batch's per-example gradients are projected.
        coordinates: About how many fixed entries of the batch's per-example gradients are needed.
        trajectory: A sketch of the parameters after an optimizer step, and how the step changed it.
        targets: Targets of the batch, beside its gradients.
        passes: About how many times 256 probe examples go forward and backward in passes of the instrument's own; more
            than 0 asks for a view of the model. Each such instrument has a share of the overhead budget of its own.
        every_n_steps: A fixed period of these passes, whatever the schedule of all else; None follows the schedule.
        parameters: The parameters after optimizer steps, as many of them as the budget allows.
    """

    gram: bool = False
    features: bool = False
    probe: bool = False
    norms: bool = False
    per_layer: bool = False
    probe_gradients: int = 0
    projections: int = 0
    coordinates: int = 0
    trajectory: bool = False
    targets: bool = False
    passes: float = 0.0
    every_n_steps: int | None = None
    parameters: bool = False

    @property
    def gradients(self) -> bool:
        """Whether anything of per-example gradients is needed."""
        return self.gram or self.norms or self.projections > 0 or self.coordinates > 0


@dataclass(frozen=True)
class ParameterStep:
    """What one optimizer step did to a fixed linear sketch of the parameters.

    Attributes:
        sketch: Inner products of the parameters, after the step, with fixed random directions, [k] float64.
        increment: By how much the step changed them, [k] float64.
    """

    sketch: Tensor
    increment: Tensor


@dataclass(frozen=True)
class Observation:
    """One sampled step.

    Attributes:
        step: Step number under which the reading is logged.
        gradients: Per-example gradients of the batch, or None if nothing needs them or they could not be read.
        features: Features of the same examples, [N, d], or None.
        probe: A pass over the fixed probe, or None if none is due at this step.
        trajectory: What the optimizer step of this observation did, or None if nothing needs it.
        targets: Targets of the same batch, [N, C] float64, classes one-hot; None where they cannot be told.
        model: The model after the step, for passes over the probe; good until the measurement ends.
        parameters: Trainable parameters after an optimizer step, live and detached: clone what is to be kept.
    """

    step: int
    gradients: GradientSample | None = None
    features: Tensor | None = None
    probe: ProbeReading | None = None
    trajectory: ParameterStep | None = None
    targets: Tensor | None = None
    model: ProbePasses | None = None
    parameters: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Spectrogram:
    """How energy per band changes over steps.

    Attributes:
        steps: Step numbers, length S, ascending.
        values: Energy of each band at each step, [S, B], non-negative.
        bands: A short label for each band, from simple to complex, length B.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    steps: Sequence[int]
    values: Tensor
    bands: Sequence[str]
    title: str
    reading: str


@dataclass(frozen=True)
class ModeScatter:
    """Each singular function of the batch's gradients: how strong it is, and how complex.

    Attributes:
        step: Step number.
        singular_values: sqrt of the Gram matrix's eigenvalues, [r], descending.
        medians: Median complexity of each singular function as a fraction of the index range, [r], 0 to 1.
        whole_median: Median complexity of the whole gradient, 0 to 1.
        title: One line for the picture.
        reading: One sentence that says how to read it.
        earlier: Step, singular values and medians of earlier steps, oldest first, to be seen behind this one.
    """

    step: int
    singular_values: Tensor
    medians: Tensor
    whole_median: float
    title: str
    reading: str
    earlier: Sequence[tuple[int, Tensor, Tensor]] = ()


@dataclass(frozen=True)
class BandDecay:
    """How fast each band of the residual falls.

    Attributes:
        steps: Step numbers, length S, ascending.
        values: Energy of each band at each step, [S, B], non-negative.
        bands: A short label for each band, from simple to complex, length B.
        half_lives: Steps in which each band loses half of its energy at present, length B; inf where no fall is
            certain, nan where too little is known.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    steps: Sequence[int]
    values: Tensor
    bands: Sequence[str]
    half_lives: Sequence[float]
    title: str
    reading: str


@dataclass(frozen=True)
class QuantilePlot:
    """How far out the values of a distribution lie, compared with a normal one.

    Attributes:
        step: Step number.
        samples: Values for each label, [n] each, in any order, unit and location; non-finite ones are left out.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    step: int
    samples: Mapping[str, Tensor]
    title: str
    reading: str


@dataclass(frozen=True)
class SurvivalPlot:
    """Which share of some magnitudes exceeds each value, and the power law that their tail would follow.

    Attributes:
        step: Step number.
        magnitudes: Non-negative values, [n], in any order.
        index: Tail index of the fitted power law, P(X > x) ~ x^-index beyond the threshold; nan if none was fitted.
        tail: How many of the largest values the fit used; the threshold is the next one.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    step: int
    magnitudes: Tensor
    index: float
    tail: int
    title: str
    reading: str


@dataclass(frozen=True)
class StoppingCurve:
    """What a stopping rule watched, the step whose weights are kept, and where it stopped.

    Attributes:
        steps: Step numbers of the checks, length S, ascending.
        values: What the rule watches, [S]; nan where it could not be read.
        low: Lower end of its error band, [S]; nan where there is none.
        high: Upper end of its error band, [S]; nan where there is none.
        kept: Step whose weights are kept at present; None if none is.
        stopped: Step at which the rule fired; None if it has not.
        label: What the values are, for the axis.
        title: One line for the picture.
        reading: One sentence that says how to read it.
        is_share: Whether values are shares or probabilities, whose axis is linear however small they become.
    """

    steps: Sequence[int]
    values: Tensor
    low: Tensor
    high: Tensor
    kept: int | None
    stopped: int | None
    label: str
    title: str
    reading: str
    is_share: bool = False


Picture: TypeAlias = Spectrogram | ModeScatter | BandDecay | QuantilePlot | SurvivalPlot | StoppingCurve | DwellTimeline


@dataclass(frozen=True)
class Reading:
    """Named numbers of one instrument at one step.

    Attributes:
        scalars: Value for each tag; nan where nothing can be said.
        histograms: Values for each tag.
        pictures: Data of pictures for each tag; drawn only when somebody looks.
        refusals: For each tag that is nan because it could not be measured, the reason in words.
        texts: Markdown for each tag, shown where a logger has room for words; written again only where it changes.
        warnings: For each tag, what the user should know at once, in words; told once.
    """

    scalars: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def refused(cls, names: Sequence[str], why: str, texts: Mapping[str, str] | None = None) -> Reading:
        """No numbers under these tags, and the reason."""
        return cls(dict.fromkeys(names, math.nan), refusals=dict.fromkeys(names, why), texts=texts or {})

    def joined(self, other: Reading) -> Reading:
        """What both hold; of one tag what the other holds."""
        kinds = (kind.name for kind in fields(self))
        return Reading(**{kind: {**getattr(self, kind), **getattr(other, kind)} for kind in kinds})

    def renamed(self, name: Callable[[str], str]) -> Reading:
        """The same under other tags."""
        kinds = {kind.name: getattr(self, kind.name) for kind in fields(self)}
        return Reading(**{kind: {name(tag): value for tag, value in held.items()} for kind, held in kinds.items()})


class Instrument(ABC):
    """Turns observations into readings; knows nothing of a Trainer, so any loop can use it.

    Derive from this class, name what you need, implement `measure` and `reset`, and give `state_dict` what a resumed
    run needs.
    """

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What has to be in an observation."""

    @abstractmethod
    def measure(self, observation: Observation) -> Reading:
        """Turn one observation into named numbers."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything seen so far: another model comes."""

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        del state
