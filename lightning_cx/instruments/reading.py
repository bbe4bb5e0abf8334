"""What an instrument says of one step: named numbers, and the data of its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from torch import Tensor


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


@dataclass(frozen=True)
class DwellTimeline:
    """How far training was from where it began, and when it dwelt in one place.

    Attributes:
        steps: Step of each point of the path, length S, ascending.
        distances: Distance from where the path began, [S]; non-finite ones are left out.
        dwells: First and last step of each dwell, distance of its centre from the beginning, and whether it was left by
            a jump.
        title: One line for the picture.
        reading: One sentence that says how to read it.
    """

    steps: Sequence[int]
    distances: Tensor
    dwells: Sequence[tuple[int, int, float, bool]]
    title: str
    reading: str


Picture: TypeAlias = Spectrogram | ModeScatter | BandDecay | QuantilePlot | SurvivalPlot | StoppingCurve | DwellTimeline
