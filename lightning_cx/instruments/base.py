"""What an instrument is: it is shown what happened at a step and turns it into named numbers."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from lightning_cx.gradients import GradientSample
from lightning_cx.instruments.reading import Reading
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
        del step, gradients, batch
        return Reading()

    def on_probe(self, step: int, probe: ProbeReading) -> Reading:
        """Read one pass over the fixed probe.

        Args:
            step: Step number under which the reading is logged.
            probe: Outputs and residuals of its examples.
        """
        del step, probe
        return Reading()

    def on_step(self, step: int, change: ParameterStep) -> Reading:
        """Read what an optimizer step did to a sketch of the parameters.

        Args:
            step: Step number under which the reading is logged.
            change: The sketch, and how the step changed it.
        """
        del step, change
        return Reading()

    def on_parameters(self, step: int, parameters: Mapping[str, Tensor]) -> Reading:
        """Read the parameters after an optimizer step; as many steps as the budget allows are shown.

        Args:
            step: Step number under which the reading is logged.
            parameters: Trainable parameters by name, live and detached: clone what is to be kept.
        """
        del step, parameters
        return Reading()

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        """Make passes over the probe.

        Args:
            step: Step number under which the reading is logged.
            passes: The model after the step; good until this method returns.
        """
        del step, passes
        return Reading()

    def reset(self) -> None:  # noqa: B027 (most instruments have nothing to forget)
        """Forget everything seen so far: another model follows."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        del state


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
