"""Is the learning rate as large as the curvature of the loss allows?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from lightning_cx.functional import curvature, largest_eigenvalue, step_size
from lightning_cx.gradients import UnsupportedGradientError
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import Instrument, Needs, ProbePasses, Reading

PASSES_PER_PRODUCT = 2.0
"""First guess: passes forward and backward that a Hessian-vector product takes as long as; 1.2 to 3.5 were measured on
a busy machine (docs/step_size.md)."""

PASSES_OF_JACOBIAN = 6.0
"""The same for 256 rows of a Jacobian; 3 to 8 were measured for an MLP and a small convnet."""

SHARPNESS = quantities.interval(quantities.SHARPNESS)
EDGE = quantities.interval(quantities.EDGE)
GAUSS_NEWTON = quantities.interval(quantities.GAUSS_NEWTON)


@final
class StepSize(Instrument):
    """How close training is to the edge of stability: the curvature of the loss times the step size.

    `step_size/edge` is 1 where steps along the steepest direction no longer settle: for SGD
    ``eta lambda_max / (2 (1 + momentum))``, for Adam, AdamW and RMSprop the same with their preconditioner held as it
    stands, for groups of different learning rates all of them together. Others are refused by name. lambda_max is that
    of the Hessian of the mean loss over probe examples, in eval mode, by Lanczos on Hessian-vector products. Its
    interval (95%) holds what Lanczos may still miss and, where the probe is a part of the training set, how much
    examples differ. A run that comes within a tenth of 1 is warned once; a card on the text tab explains the rest.

    The Gauss-Newton curvature is the part of it that stays when residuals are gone. It comes from the Jacobian of a few
    probe examples.

    It keeps one vector of the size of the parameters (two for optimizers with a preconditioner, or with different
    groups), and up to `iterations` more while it measures.

    Args:
        every_n_steps: Measure at every n-th batch; None as often as the schedule of the monitor allows.
        examples: Probe examples whose mean loss is looked at.
        iterations: Hessian-vector products at most, for each of the two eigenvalues.
        rows: Rows of the Jacobian, examples times outputs, that the Gauss-Newton curvature is taken from; 0 leaves it
            out.
        seed: Of the first direction.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> StepSize(every_n_steps=100).needs.every_n_steps
        100
    """

    tags = (*SHARPNESS, *EDGE, *GAUSS_NEWTON, quantities.GAUSS_NEWTON_EDGE)

    def __init__(
        self,
        every_n_steps: int | None = None,
        examples: int = 256,
        iterations: int = 20,
        rows: int = 500,
        seed: int = 0,
        *,
        name: str = "",
    ) -> None:
        super().__init__(name)
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps is 1 at least, got {every_n_steps}: leave it out for as often as possible."
            )
        if examples < 1 or iterations < 1 or rows < 0:
            got = f"examples={examples}, iterations={iterations}, rows={rows}"
            raise ValueError(f"it takes at least one example and one iteration, got {got}.")
        self.every_n_steps, self.examples, self.iterations = every_n_steps, examples, iterations
        self.rows, self.seed = rows, seed
        self.reset()

    def reset(self) -> None:
        self._sharpness = Sharpness(self.iterations, self.seed)
        self._outputs: int | None = None

    @property
    def needs(self) -> Needs:
        products = 2 * self.iterations + PARTS
        passes = (PASSES_PER_PRODUCT * products * self.examples + PASSES_OF_JACOBIAN * self.rows) / 256
        return Needs(passes=passes, every_n_steps=self.every_n_steps)

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        scalars: dict[str, float] = dict.fromkeys((*SHARPNESS, *EDGE), math.nan)
        refusals: dict[str, str] = {}
        details: list[str] = []
        gains, why = _gains(passes)
        if gains is None:
            refusals |= dict.fromkeys(EDGE, why)
        try:
            found = self._sharpness(passes, min(self.examples, passes.examples), gains)
        except (UnsupportedGradientError, ValueError) as error:
            refusals |= dict.fromkeys((*SHARPNESS, *EDGE), str(error))
        else:
            for names, interval in zip((SHARPNESS, EDGE), found, strict=True):
                scalars |= dict(zip(names, interval, strict=True))
            refusals |= _why_nan(scalars, refusals, min(self.examples, passes.examples))
            details.append("sharpness {:.4g} ({:.4g} to {:.4g})".format(*found[0]))
        if self.rows:
            of_outputs = self._measure_outputs(passes, gains, scalars, refusals)
            details += [str(of_outputs)] if of_outputs else []
        ratio: Interval = (scalars[EDGE[0]], scalars[EDGE[1]], scalars[EDGE[2]])
        words, texts = warning(ratio, step), {quantities.EDGE: card(ratio, gains, details)}
        return Reading(scalars, refusals=refusals, texts=texts, warnings={quantities.EDGE: words} if words else {})

    def _measure_outputs(
        self, view: ProbePasses, gains: step_size.StepGains | None, scalars: dict[str, float], refusals: dict[str, str]
    ) -> curvature.GaussNewton | None:
        """Add the Gauss-Newton curvature of the probe to `scalars` and `refusals`."""
        wanted = (*GAUSS_NEWTON, quantities.GAUSS_NEWTON_EDGE)
        scalars |= dict.fromkeys(wanted, math.nan)
        try:
            found = self._gauss_newton(view)
        except (UnsupportedGradientError, ValueError) as error:
            refusals |= dict.fromkeys(wanted, str(error))
            return None
        interval = _of_sample(found, view.training_examples)
        scalars |= dict(zip(GAUSS_NEWTON, interval, strict=True))
        if not math.isfinite(interval[0]):
            refusals |= dict.fromkeys(wanted, "the derivatives of the outputs are not finite")
        elif gains is None:
            refusals[quantities.GAUSS_NEWTON_EDGE] = refusals[quantities.EDGE]
        elif gains.common is None:
            refusals[quantities.GAUSS_NEWTON_EDGE] = (
                "inner products of gradients know no single entries, so the ratio is that of one learning rate without "
                f"preconditioner only, here: {gains.preconditioner}"
            )
        else:
            gain, decay = gains.common
            scalars[quantities.GAUSS_NEWTON_EDGE] = gain * (interval[0] + decay)
        return found

    def _gauss_newton(self, view: ProbePasses) -> curvature.GaussNewton:
        if self._outputs is None:
            self._outputs = view.jacobian(1).outputs.shape[1]
        outputs = self._outputs
        examples = min(self.rows // outputs, view.examples)
        if examples < 2:
            raise ValueError(
                f"the Gauss-Newton curvature of {outputs} outputs takes as many rows an example, for two examples at "
                f"least: StepSize(rows={2 * outputs})"
            )
        jacobian = view.jacobian(examples)
        return curvature.gauss_newton(jacobian.gram, jacobian.hessian)


def _gains(view: ProbePasses) -> tuple[step_size.StepGains | None, str]:
    if view.optimizer is None:
        return None, "no single optimizer trains the model: none is known, or several share it"
    if view.sums:
        return None, view.sums
    own = {name: p for name, p in view.module.named_parameters() if p.requires_grad}
    try:
        gains = step_size.step_gains(view.optimizer, own)
    except step_size.UnsupportedOptimizerError as error:
        return None, str(error)
    return (None, gains.forming) if gains.forming else (gains, "")


def _of_sample(found: curvature.GaussNewton, of: int | None) -> Interval:
    value, error = float(found.value), float(found.standard_error)
    if math.isnan(value):
        return UNKNOWN
    width = curvature.half_width(error, found.examples - 1, found.examples / of if of else 0.0)
    return value, value - width if value - width > 0 or math.isnan(width) else 0.0, value + width


def _why_nan(scalars: dict[str, float], known: dict[str, str], examples: int) -> dict[str, str]:
    """Return the reasons of what is still nan."""
    few = f"{examples} examples are too few to tell how much examples differ: {2 * PARTS} are needed"
    why = "the curvature is not finite (NaN or inf in the probe's loss, or an overflow)"
    nothing = math.isnan(scalars[quantities.SHARPNESS])
    return {
        tag: why if nothing else few for tag in (*SHARPNESS, *EDGE) if math.isnan(scalars[tag]) and tag not in known
    }


AT_EDGE = (0.9, 1.1)
"""Ratios that count as the edge. Of the full-batch runs in docs/step_size.md that had come to it, SGD then read .98 to
1.11, RMSprop 1.01 to 1.10, Adam .90 to .96; with Nesterov momentum one fell back to .78 first."""

OF = {
    "unknown": "distance to the edge of stability",
    "below": "the edge of stability",
    "at the edge": "of stability",
    "beyond": "the edge of stability",
}

MEANING = {
    "unknown": "The reason is in the log.",
    "below": "Steps settle in every direction. As far as the curvature goes, the learning rate could be {room:.3g} "
    "times as large; the noise of small batches may ask for less.",
    "at the edge": "The step size is as large as the steepest direction lets it be. Training often goes on well here, "
    "with a loss that swings while it falls: the swings keep the curvature from growing further. A larger learning "
    "rate brings spikes or divergence. Where the loss no longer falls, lower it or let it decay.",
    "beyond": "Along the steepest direction each step overshoots by more than the last. For a few steps that is how a "
    "run finds flatter ground; if the loss rises and stays up, divide the learning rate by {excess:.3g} or more, warm "
    "it up, or clip gradients.",
}


def verdict(value: float, low: float) -> str:
    """Return a word for a ratio and the lower end of its interval, if it has one.

    Example:
        >>> [verdict(*ratio) for ratio in ((0.3, 0.2), (0.97, 0.9), (1.4, 1.0), (1.4, 1.3), (1.4, math.nan))]
        ['below', 'at the edge', 'at the edge', 'beyond', 'beyond']
    """
    if math.isnan(value):
        return "unknown"
    if value < AT_EDGE[0]:
        return "below"
    return "beyond" if (value if math.isnan(low) else low) > AT_EDGE[1] else "at the edge"


def card(ratio: Interval, gains: step_size.StepGains | None, details: list[str]) -> str:
    """Explain a ratio, with its interval, in markdown; nan where it is unknown.

    Example:
        >>> print(card((0.25, 0.2, 0.3), None, []).splitlines()[0])
        **below** the edge of stability: ratio 0.25 (95% 0.2 to 0.3), 1 is the edge
        >>> print(card((0.25, -0.5, 1.0), None, []).splitlines()[0])
        **below** the edge of stability: ratio 0.25 (95% -0.5 to 1), 1 is the edge and not ruled out
    """
    value, low, high = ratio
    word = verdict(value, low)
    number = "" if word == "unknown" else f": {_words(ratio)}, 1 is the edge"
    doubt = " and not ruled out" if word == "below" and high >= 1 else ""
    room = 1 / value if value > 0 else math.inf
    lines = [f"**{word}** {OF[word]}{number}{doubt}", "", MEANING[word].format(room=room, excess=value)]
    if gains is not None:
        details = [str(gains), *details]
    return "\n".join([*lines, "", *(f"    {line}" for line in details)])


def warning(ratio: Interval, step: int) -> str | None:
    """Return what to tell the user once, or None."""
    word = verdict(*ratio[:2])
    if word not in ("at the edge", "beyond"):
        return None
    return (
        f"step {step}: training runs {word} {OF[word]}, {_words(ratio)}, 1 is the edge. A larger learning rate will "
        "not settle; if the loss rises, or swings without falling, lower it, let it decay or warm it up."
    )


def _words(ratio: Interval) -> str:
    value, low, high = ratio
    return f"ratio {value:.3g}" + ("" if math.isnan(low) else f" (95% {low:.3g} to {high:.3g})")


PARTS = 8
"""Stretches of the probe whose curvatures along the leading direction are compared: 7 degrees of freedom for the price
of 3.5 products."""

NOISE = 0.1
"""Length of the random part of a start at the last leading direction, see `functional.curvature.MIN_PRODUCTS`."""

Interval: TypeAlias = tuple[float, float, float]  # value, lower and upper end
UNKNOWN: Interval = (math.nan, math.nan, math.nan)


class Sharpness:
    """Finds lambda_max of the Hessian, and of the Hessian between the square roots of an optimizer's gains.

    It remembers both leading directions, one vector of the size of the parameters each, and goes on from there: they
    turn slowly. An interval reaches down by what examples differ, and up by that and what Lanczos may still miss.
    """

    def __init__(self, iterations: int, seed: int) -> None:
        self.iterations, self.seed = iterations, seed
        self._directions: dict[str, Tensor] = {}

    def __call__(
        self, view: ProbePasses, examples: int, gains: step_size.StepGains | None
    ) -> tuple[Interval, Interval]:
        """Return sharpness and ratio to the edge of stability; the ratio is nan if gains are unknown."""
        flat = None if gains is None or gains.common is not None else gains.flat(view.parameters())
        with view.hessian(examples) as products:
            size = products.size
            plain = self._keep("sharpness", largest_eigenvalue(products, size, **self._how("sharpness", size)))
            felt = None
            if flat is not None:
                scale, decay = flat

                def penalised(vector: Tensor) -> Tensor:
                    image = products(vector)
                    return image + decay.to(image) * vector.to(image)

                how = self._how("edge", size)
                felt = self._keep("edge", largest_eigenvalue(penalised, size, scale=scale, **how))
        directions, tops = [plain.vector], [float(plain.value)]
        if felt is not None and flat is not None:
            scale, decay = (part.to(felt.vector) for part in flat)
            directions.append(scale.sqrt() * felt.vector)
            tops.append(float(felt.value - decay @ directions[1].square()))
        widths = _half_widths(view, directions, tops, examples)
        sharpness = _interval(plain, widths[0])
        if felt is not None:
            return sharpness, _interval(felt, widths[1])
        if gains is None or gains.common is None:
            return sharpness, UNKNOWN
        gain, penalty = gains.common
        value, low, high = sharpness
        return sharpness, (gain * (value + penalty), gain * (low + penalty), gain * (high + penalty))

    def _how(self, name: str, size: int) -> dict[str, Any]:
        """Return where to start the search for an eigenvalue: at the last direction, with some noise."""
        start = self._directions.get(name)
        if start is None or len(start) != size:  # a layer was frozen, or set free
            return {"iterations": self.iterations, "seed": self.seed}
        noise = torch.randn(size, generator=torch.Generator().manual_seed(self.seed)).to(start)
        return {"iterations": self.iterations, "start": start + NOISE * noise / noise.norm()}

    def _keep(self, name: str, found: curvature.LeadingEigenvalue) -> curvature.LeadingEigenvalue:
        if bool(found.value.isfinite()):
            self._directions[name] = found.vector.float()
        return found


def _half_widths(view: ProbePasses, directions: Sequence[Tensor], tops: Sequence[float], examples: int) -> list[float]:
    """Return half of the 95% interval of each curvature as a mean over examples, with the direction held fixed."""
    share = examples / view.training_examples if view.training_examples else 0.0
    if share >= 1:
        return [0.0 for _ in tops]
    if examples < 2 * PARTS or not all(map(math.isfinite, tops)):
        return [math.nan for _ in tops]
    counts = [examples * part // PARTS for part in range(1, PARTS + 1)]
    means = []
    for count in counts[:-1]:
        with view.hessian(count) as products:
            means.append([float(v.double() @ products(v).double()) for v in directions])
    of_parts = torch.tensor([*means, list(tops)], dtype=torch.float64)
    errors = [curvature.nested_mean_error(column, torch.tensor(counts)) for column in of_parts.unbind(1)]
    return [curvature.half_width(float(error), PARTS - 1, share) for error in errors]


def _interval(found: curvature.LeadingEigenvalue, width: float) -> Interval:
    value = float(found.value)
    return value, value - width, value + float(found.residual) + width
