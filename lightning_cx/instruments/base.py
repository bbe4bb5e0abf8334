"""What an instrument is: it is shown what happened at a step and returns named numbers and the data of pictures."""

from __future__ import annotations

import math
import re
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor

from lightning_cx.gradients import GradientSample
from lightning_cx.probe import ProbePasses, ProbeReading

Method: TypeAlias = Literal["on_gradients", "on_probe", "on_step", "on_parameters", "on_model"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Needs:
    """What an instrument needs beyond what its methods tell; a loop takes the union over its instruments.

    Attributes:
        gram: `on_gradients`: the Gram matrix; their norms come with it. An instrument that names nothing of the
            gradients is shown it.
        norms: `on_gradients`: norms; where no instrument needs more, a sampled step costs less.
        projections: `on_gradients`: number of fixed random directions on which the gradients are projected.
        coordinates: `on_gradients`: about how many fixed entries of the gradients to show.
        per_layer: The Gram matrices of the single parameters as well, of whatever gradients are shown.
        features: `on_gradients`: features of the batch, for a graph over its examples.
        targets: `on_gradients`: targets of the batch.
        probe_gradients: `on_probe`: number of probe examples whose gradients to show; these cost passes of their own.
        passes: `on_model`: about how many times 256 probe examples go forward and backward. Each instrument that makes
            passes has a share of the overhead budget of its own.
        every_n_steps: `on_model`: a fixed period, whatever the schedule of all else; None follows the schedule.
    """

    gram: bool = False
    norms: bool = False
    projections: int = 0
    coordinates: int = 0
    per_layer: bool = False
    features: bool = False
    targets: bool = False
    probe_gradients: int = 0
    passes: float = 1.0
    every_n_steps: int | None = None


@dataclass(frozen=True)
class BatchView:
    """What is known of the examples of a batch, besides their gradients.

    Attributes:
        features: Features of the examples, [N, d]; None where no instrument needs them or they cannot be had.
        targets: Targets of the examples, [N, C] float64, classes one-hot; None likewise.
    """

    features: Tensor | None = None
    targets: Tensor | None = None


UNKNOWN_BATCH = BatchView()


@dataclass(frozen=True)
class ParameterStep:
    """What one optimizer step did to a fixed linear sketch of the parameters.

    Attributes:
        sketch: Inner products of the parameters, after the step, with fixed random directions, [k] float64.
        increment: By how much the step changed them, [k] float64.
        training_examples: Size of the training set, where it is known.
    """

    sketch: Tensor
    increment: Tensor
    training_examples: int | None = None


class Series(NamedTuple):
    """Which backward of a batch a number belongs to.

    Attributes:
        optimizer: Number of the optimizer whose step it feeds.
        backward: Number of the backward, of those that feed the same step.

    Example:
        >>> Series().of("gradient/norm"), Series(1).of("gradient/norm"), Series(0, 1).of("gradient/norm")
        ('gradient/norm', 'gradient/norm-optimizer_1', 'gradient/norm-optimizer_0-backward_1')
    """

    optimizer: int = 0
    backward: int = 0

    @property
    def name(self) -> str:
        """Short name; empty for the first."""
        if not any(self):
            return ""
        return f"optimizer_{self.optimizer}" + (f"-backward_{self.backward}" if self.backward else "")

    def of(self, tag: str) -> str:
        """Tag of a quantity in this series."""
        return f"{tag}-{self.name}" if any(self) else tag


class Instrument(ABC):  # noqa: B024 (no method has to be overridden, but one of five)
    """Turns what happens at a step into readings; knows nothing of a Trainer, so any loop can use it.

    Derive from this class and override the methods that show what you want to see. Which ones you override says what
    has to be measured for you; `needs` adds a few numbers. An instrument that remembers something overrides `reset`,
    and gives `state_dict` what a resumed run needs.

    Args:
        name: Tells it from others of its class: its tags end in `-<name>`, and its state has a key of its own. Letters,
            digits, `-` and `_`.

    Attributes:
        tags: Tags of its scalars, as far as they are the same for all models; two instruments of a monitor that have
            one in common are refused.

    Raises:
        ValueError: If the name holds other characters.
    """

    name: str = ""
    tags: Sequence[str] = ()

    def __init__(self, name: str = "") -> None:
        if not re.fullmatch(r"[\w-]*", name, re.ASCII):
            raise ValueError(f"the name of an instrument may hold letters, digits, - and _, got name={name!r}.")
        self.name = name

    @property
    def key(self) -> str:
        """Return the name of its failures, work, costs and state; `keyed` adds an ordinal if others share it."""
        return type(self).__name__ + (f"-{self.name}" if self.name else "")

    def tag(self, tag: str) -> str:
        """Return the tag under which a number of this instrument is logged: `reading.renamed(instrument.tag)`."""
        return f"{tag}-{self.name}" if self.name else tag

    @property
    def needs(self) -> Needs:
        """Return what the overridden methods do not tell."""
        return Needs()

    @property
    def shown(self) -> frozenset[Method]:
        """Return the methods that a loop has to call: the overridden ones, unless a setting makes one pointless."""
        return frozenset(name for name in METHODS if overrides(self, name))

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView) -> Reading:
        """Read the per-example gradients of a sampled batch.

        Args:
            step: Step number under which the reading is logged.
            gradients: Of the batch.
            batch: What else is known of its examples.
        """
        return Reading()

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        """Read one pass over the fixed probe.

        Args:
            step: Step number under which the reading is logged.
            probe: Outputs and residuals of its examples.
        """
        return Reading()

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        """Read what an optimizer step did to a sketch of the parameters.

        Args:
            step: Step number under which the reading is logged.
            change: The sketch, and how the step changed it.
        """
        return Reading()

    def on_parameters(self, step: int, parameters: Mapping[str, Tensor]) -> Reading:
        """Read the parameters after an optimizer step; as many steps as the budget allows are shown.

        Args:
            step: Step number under which the reading is logged.
            parameters: Trainable parameters by name, live and detached: clone what is to be kept.
        """
        return Reading()

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        """Make passes over the probe.

        Args:
            step: Step number under which the reading is logged.
            passes: The model after the step; good until this method returns.
        """
        return Reading()

    def reset(self) -> None:  # noqa: B027 (most instruments have nothing to forget)
        """Forget everything seen so far: another model follows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (nor to restore)
        """Restore what `state_dict` returned."""


def overrides(instrument: Instrument, method: Method) -> bool:
    """Return whether an instrument overrides a method of the base class."""
    return getattr(type(instrument), method) is not getattr(Instrument, method)


def needs_of(instruments: Iterable[Instrument], method: Method) -> list[Needs]:
    """Return the needs of the instruments that have a method called.

    Example:
        >>> class LargestNorm(Instrument):
        ...     def on_gradients(self, step, gradients, batch):
        ...         return Reading({"gradient/largest_norm": float(gradients.squared_norms.max().sqrt())})
        >>> needs_of([LargestNorm()], "on_gradients")[0].gram, needs_of([LargestNorm()], "on_probe")
        (True, [])
    """
    needs = [instrument.needs for instrument in instruments if method in instrument.shown]
    if method != "on_gradients":
        return needs
    return [n if n.gram or n.norms or n.projections or n.coordinates else replace(n, gram=True) for n in needs]


def keyed(instruments: Iterable[Any]) -> dict[str, Instrument]:
    """Check the instruments of a monitor and give each a key that no other has.

    Two of a class need no names as long as they log under different tags: the second is `Kernel#2`.

    Raises:
        TypeError: If something is no instrument, overrides no method, or there is nothing.
        ValueError: If two instruments would log under the same tag, or one is given twice.

    Example:
        >>> class Mine(Instrument):
        ...     def on_probe(self, step, probe): ...
        >>> list(keyed([Mine(), Mine(), Mine(name="late")]))
        ['Mine', 'Mine#2', 'Mine-late']
    """
    given = list(instruments)
    strangers = [type(one).__name__ for one in given if not isinstance(one, Instrument)]
    if strangers or not given:
        raise TypeError(f"instruments must be a list of Instrument objects, got {strangers or 'an empty list'}.")
    found: dict[str, Instrument] = {}
    taken: dict[str, str] = {}
    for instrument in given:
        if not instrument.shown:
            raise TypeError(f"{instrument.key} has nothing to measure: it has to override one of {', '.join(METHODS)}.")
        if any(instrument is other for other in found.values()):
            raise ValueError(f"{instrument.key} is given twice: make another one.")
        key, ordinal = instrument.key, 1
        while key in found:
            ordinal += 1
            key = f"{instrument.key}#{ordinal}"
        found[key] = instrument
        for tag in map(instrument.tag, instrument.tags):
            if tag in taken:
                raise ValueError(
                    f"{taken[tag]} and {key} both log {tag}: give one of them a name, "
                    f'as {type(instrument).__name__}(name="second").'
                )
            taken[tag] = key
    return found


@dataclass(frozen=True)
class Reading:
    """Named numbers of one instrument at one step.

    Attributes:
        scalars: Value for each tag; nan where nothing can be said.
        histograms: Values for each tag.
        pictures: Data of pictures for each tag; drawn only when pictures are due.
        refusals: For each tag that is nan because it could not be measured, the reason in words.
        texts: Markdown for each tag, for loggers that show text; logged again only if it changes.
        warnings: For each tag, what the user should know at once, in words; shown once.
    """

    scalars: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def refused(cls, names: Sequence[str], why: str, texts: Mapping[str, str] | None = None) -> Reading:
        """Return nan under these tags, and the reason."""
        return cls(dict.fromkeys(names, math.nan), refusals=dict.fromkeys(names, why), texts=texts or {})

    def joined(self, other: Reading) -> Reading:
        """Return what both hold; the other one's value where they share a tag."""
        kinds = (kind.name for kind in fields(self))
        return Reading(**{kind: {**getattr(self, kind), **getattr(other, kind)} for kind in kinds})

    def renamed(self, name: Callable[[str], str]) -> Reading:
        """Return the same under other tags."""
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
    """Distance of the parameters from where they began, and the dwells in one place.

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
