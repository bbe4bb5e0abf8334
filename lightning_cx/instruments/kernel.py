"""What does the network's kernel prefer, does that fit the target, and which block still has descent to give?"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from lightning_cx.functional import (
    block_shares,
    chance_alignment,
    complexity,
    cumulative_power,
    eigenvalue_decay,
    kernel_dimension,
    kernel_target_alignment,
    kernels,
)
from lightning_cx.gradients import GradientSample, UnsupportedGradientError
from lightning_cx.instruments import quantities
from lightning_cx.instruments.base import UNKNOWN_BATCH, BatchView, Instrument, Method, Needs, ProbePasses, Reading

POOLED_SAMPLES = 16
"""Batches whose descent by block is pooled, as many as the noise scale takes: one rarely tells descent from noise."""

PASSES = 6.0
"""First guess of what a reading of 128 examples costs: ten outputs of each go forward and backward, and their loss."""


@final
class Kernel(Instrument):
    """Spectrum and decay of the tangent kernel, how well it fits the target, and the descent that each block gives.

    On the batch (default) the kernel is the Gram matrix of the per-example gradients of the loss, read off the
    training's own backward. That is the tangent kernel weighted by the residuals, so it holds something of the targets
    already: its alignment is above chance even where labels are random. On the probe it is the tangent kernel itself,
    summed over the outputs, of fixed examples in eval mode, compared with what is left to learn (the residuals), at the
    price of a backward for each output.

    The descent by block says which residual block's parameters still lower the loss: its unbiased share of the squared
    norm of the expected gradient, on batches pooled over the last 16 sampled ones.

    Args:
        on: `"batch"` or `"probe"`.
        blocks: `"auto"` finds the repeated blocks of the network by the names of its parameters; a number takes so
            many parts of each name; a mapping says for each block how its parameters' names begin; `"off"` leaves the
            shares out, and saves the Gram matrices of the single parameters.
        examples: How many probe examples take part; with C outputs their number times C is limited to 2048.
        every_n_steps: Period of the readings on the probe; None takes that of the monitor.
        name: Tells it from others of its class: its tags end in `-<name>`.

    Raises:
        ValueError: If `on` or `blocks` is not known, `examples` is below 16, or `every_n_steps` below 1.

    Example:
        >>> Kernel().shown, Kernel(on="probe").shown
        (frozenset({'on_gradients'}), frozenset({'on_model'}))
    """

    def __init__(
        self,
        on: Literal["batch", "probe"] = "batch",
        blocks: Blocks = "auto",
        examples: int = 128,
        every_n_steps: int | None = None,
        *,
        name: str = "",
    ) -> None:
        super().__init__(name)
        if on not in ("batch", "probe"):
            raise ValueError(f'Kernel is measured on "batch" or "probe", got {on!r}.')
        if examples < MIN_EXAMPLES:
            raise ValueError(f"{MIN_EXAMPLES} examples are needed to read a kernel, got examples={examples}.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is a period of 1 or more steps, got {every_n_steps}.")
        self.on, self.examples, self.every_n_steps = on, examples, every_n_steps
        every = (*SPECTRUM, *TARGET, quantities.KERNEL_BLOCK_SHARE)
        self.tags = every if on == "batch" else tuple(map(quantities.on_probe, every))
        self.blocks: Blocks = checked_blocks(blocks)
        self._recent: deque[kernels.BlockShares] = deque(maxlen=POOLED_SAMPLES)

    def reset(self) -> None:
        self._recent.clear()

    @property
    def needs(self) -> Needs:
        passes = PASSES * self.examples / 128
        return Needs(per_layer=self.blocks != "off", targets=True, passes=passes, every_n_steps=self.every_n_steps)

    @property
    def shown(self) -> frozenset[Method]:
        return frozenset({"on_gradients" if self.on == "batch" else "on_model"})

    def on_gradients(self, step: int, gradients: GradientSample, batch: BatchView = UNKNOWN_BATCH) -> Reading:
        if gradients.gram is None or self.on != "batch":
            return Reading()
        reading = of_kernel(gradients.gram.cpu(), batch.targets, "targets of this batch")
        return self._with_blocks(reading, gradients)

    def on_model(self, step: int, passes: ProbePasses) -> Reading:
        if self.on != "probe":
            return Reading()
        try:
            jacobian = passes.jacobian(self.examples)
        except (UnsupportedGradientError, ValueError) as error:
            reading = Reading.refused((*SPECTRUM, *TARGET), f"the outputs' derivatives could not be read: {error}")
        else:
            n, outputs = jacobian.residuals.shape
            traced = jacobian.gram.reshape(n, outputs, n, outputs).diagonal(dim1=1, dim2=3).sum(-1)
            reading = of_kernel(traced, jacobian.residuals, "residuals of the probe", whole=jacobian.gram)
        try:
            if self.blocks != "off":
                reading = self._with_blocks(reading, passes.gradients(self.examples, per_layer=True))
        except (UnsupportedGradientError, ValueError) as error:
            why = f"the gradients of the probe could not be read: {error}"
            reading = reading.joined(Reading.refused((quantities.KERNEL_BLOCK_SHARE,), why))
        return reading.renamed(quantities.on_probe)

    def _with_blocks(self, reading: Reading, sample: GradientSample) -> Reading:
        """Add the descent by block to a reading, unless it is disabled."""
        if self.blocks == "off":
            return reading
        grams = {name: layer.gram.cpu() for name, layer in sample.layers.items() if layer.gram is not None}
        try:
            members = parameter_blocks(grams, self.blocks)
        except ValueError as error:
            return reading.joined(Reading.refused((quantities.KERNEL_BLOCK_SHARE,), str(error)))
        found = block_shares({block: torch.stack([grams[n] for n in names]).sum(0) for block, names in members.items()})
        if not bool(found.covariance.isfinite().all()):
            why = "the gradients are not finite, or of fewer than 3 examples"
            return reading.joined(unknown_blocks(found.blocks, why))
        if self.on == "batch":
            if self._recent and self._recent[-1].blocks != found.blocks:  # a block was frozen or set free
                self._recent.clear()
            self._recent.append(found)
            found = kernels.pool_block_shares(list(self._recent))
        return reading.joined(of_blocks(found))

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [asdict(shares) for shares in self._recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(
            kernels.BlockShares(**{**shares, "blocks": tuple(shares["blocks"])}) for shares in state["recent"]
        )


MIN_EXAMPLES = 16
"""Errors come from leaving out tenths of the examples; with fewer, each would be a single one."""

SPECTRUM = (
    quantities.KERNEL_DECAY,
    quantities.KERNEL_DECAY_SPREAD,
    quantities.KERNEL_PARTICIPATION_RATIO,
    quantities.KERNEL_PARTICIPATION_RATIO_ERROR,
    quantities.KERNEL_EFFECTIVE_RANK,
    quantities.KERNEL_EFFECTIVE_RANK_ERROR,
)
TARGET = (
    quantities.KERNEL_ALIGNMENT,
    quantities.KERNEL_ALIGNMENT_CHANCE_HIGH,
    quantities.KERNEL_POWER_AREA,
    quantities.KERNEL_POWER_AREA_CHANCE_HIGH,
)


def of_kernel(gram: Tensor, targets: Tensor | None, called: str, whole: Tensor | None = None) -> Reading:
    """Return the reading of a kernel [n, n]; `whole`, with outputs apart, is the one whose eigenvalues are shown."""
    every, n = (*SPECTRUM, *TARGET), len(gram)
    if not bool(gram.isfinite().all()):
        return Reading.refused(every, "the gradients are not finite (NaN or inf in the data, or an overflow)")
    if n < MIN_EXAMPLES:
        return Reading.refused(every, f"{n} examples are too few to read a kernel: {MIN_EXAMPLES} are needed")
    decay, size = eigenvalue_decay(gram), kernel_dimension(gram)
    values = (decay.exponent, decay.spread, size.participation_ratio, size.participation_error)
    scalars = dict(zip(SPECTRUM, map(float, (*values, size.effective_rank, size.effective_error)), strict=True))
    why = "the gradients do not differ between examples"
    refusals = {tag: why for tag in SPECTRUM[2:] if scalars[tag] != scalars[tag]}
    if not decay.last_rank:
        why = f"these {n} examples leave too few eigenvalues: 56 examples and 7 eigenvalues above rounding are needed"
        refusals |= dict.fromkeys(SPECTRUM[:2], why)
    elif scalars[quantities.KERNEL_DECAY_SPREAD] != scalars[quantities.KERNEL_DECAY_SPREAD]:
        refusals[quantities.KERNEL_DECAY_SPREAD] = "a half of the examples leaves too few eigenvalues"
    eigenvalues = complexity.principal_eigenvalues(gram if whole is None else whole, n)
    histograms = {quantities.KERNEL_SPECTRUM: (eigenvalues / eigenvalues[:1]).log10()} if len(eigenvalues) else {}
    reading = Reading(scalars, histograms=histograms, refusals=refusals)
    return reading.joined(_of_target(gram, targets, called))


def _of_target(gram: Tensor, targets: Tensor | None, called: str) -> Reading:
    if targets is None:
        return Reading.refused(TARGET, "no targets were found in this batch")
    if len(targets) != len(gram):
        return Reading.refused(TARGET, f"there are {len(targets)} {called} for {len(gram)} gradients")
    targets = targets.cpu()
    alignment, chance = kernel_target_alignment(gram, targets), chance_alignment(gram, targets)
    power = cumulative_power(gram, targets)
    values = dict(zip(TARGET, map(float, (alignment, chance.high, power.area, power.chance_high)), strict=True))
    why = f"the {called} are all alike or not finite, or the gradients do not differ between examples"
    return Reading(values, refusals={tag: why for tag, value in values.items() if value != value})


def of_blocks(found: kernels.BlockShares) -> Reading:
    """Return which block gives the descent, with a card of all intervals."""
    if not found.is_known:
        why = "the descent that these batches have in common is not distinguishable from noise"
        return unknown_blocks(found.blocks, f"{why}, so it cannot be divided among the blocks")
    scalars, rows = {}, ["| block | share of the descent | 95% interval | share of the noise |", "|---|---|---|---|"]
    columns = (found.share, found.low, found.high, found.noise_share)
    for block, share, low, high, noise in zip(found.blocks, *(column.tolist() for column in columns), strict=True):
        scalars[quantities.of_block(quantities.KERNEL_BLOCK_SHARE, block)] = share
        scalars[quantities.of_block(quantities.KERNEL_BLOCK_SHARE_LOW, block)] = low
        rows.append(f"| {block} | {share:.1%} | {low:.1%} to {high:.1%} | {noise:.1%} |")
    return Reading(scalars, texts={quantities.KERNEL_BLOCK_SHARE: "\n".join(rows)})


def unknown_blocks(blocks: Sequence[str], why: str) -> Reading:
    """Return why no block has a share; ends of intervals are cleared too, or those of an earlier reading would stay."""
    kinds = (quantities.KERNEL_BLOCK_SHARE, quantities.KERNEL_BLOCK_SHARE_LOW)
    scalars = {quantities.of_block(kind, block): torch.nan for kind in kinds for block in blocks}
    card = {quantities.KERNEL_BLOCK_SHARE: f"**unknown**: {why}."}
    return Reading(scalars, refusals=dict.fromkeys(scalars, why), texts=card)


Blocks: TypeAlias = Literal["auto", "off"] | int | Mapping[str, str | Sequence[str]]

REST = "rest"
"""Block of the parameters that are in no other: stem, head, embeddings."""

ALIKE = 0.5
"""Share of their parameters that two blocks must have in common: the block that changes the width in a ResNet has 9
where the next has 6, the same 6."""

NO_BLOCKS = (
    "no residual blocks: this model has no two numbered submodules, built alike, that hold layers of their own; pass "
    "blocks=2 to divide by the first 2 parts of the parameters' names, a mapping from a name for each block to how "
    'its parameters\' names begin, or blocks="off"'
)


def checked_blocks(blocks: Blocks) -> Blocks:
    """Return the setting, or refuse one that names no blocks."""
    if isinstance(blocks, Mapping):
        good = bool(blocks) and all(_beginnings(value) and all(_beginnings(value)) for value in blocks.values())
    else:
        good = blocks in ("auto", "off") or (isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1)
    if not good:
        known = '"auto", "off", a depth of 1 or more, or a mapping such as {"early": "net.0", "late": "net.1"}'
        raise ValueError(f"blocks must be {known}, got {blocks!r}.")
    return blocks


def parameter_blocks(names: Iterable[str], blocks: Blocks = "auto") -> dict[str, tuple[str, ...]]:
    """Sort parameters into blocks by their names; those of no block are ``"rest"``, last.

    "auto" finds submodules that are numbered (``layers.3``, ``layer1.0``, ``encoder_layer_0``), hold layers of their
    own, and are built like another one of the same place: the outermost such, unless that does nothing but hold smaller
    ones. Whether they have a skip connection, names do not tell. Blocks and names are in alphabetical order with
    numbers as numbers; a mapping keeps its own order.

    Example:
        >>> names = ["stem.weight", "blocks.0.a.weight", "blocks.0.b.weight", "blocks.1.a.weight", "blocks.1.b.weight"]
        >>> {block: len(members) for block, members in parameter_blocks(names).items()}
        {'blocks.0': 2, 'blocks.1': 2, 'rest': 1}
    """
    names = sorted(names, key=_in_order)  # a tap meets them from the loss backwards
    found: dict[str, list[str]] = {}
    block_of = _finder(names, blocks)
    for name in names:
        found.setdefault(block_of(name) or REST, []).append(name)
    rest = found.pop(REST, [])
    if isinstance(blocks, Mapping):
        empty = [block for block in blocks if block not in found]
        if empty:
            raise ValueError(f"no parameter that is trained is named as those of the blocks {empty} should be")
        found = {block: found[block] for block in blocks}
    if len(found) < 2:
        raise ValueError(NO_BLOCKS if blocks == "auto" else f"blocks={blocks!r} makes fewer than two blocks")
    return {block: tuple(members) for block, members in found.items()} | ({REST: tuple(rest)} if rest else {})


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _finder(names: list[str], blocks: Blocks) -> Callable[[str], str | None]:
    if isinstance(blocks, Mapping):
        places = [(block, beginning) for block, given in blocks.items() for beginning in _beginnings(given)]
        return lambda name: next((b for b, start in places if name == start or name.startswith(f"{start}.")), None)
    if isinstance(blocks, int):
        return lambda name: ".".join(name.split(".")[:blocks])
    repeated = _repeated(names)
    stages = {prefix for prefix, inside in repeated.items() if _only_holds(prefix, inside, repeated)}
    return lambda name: next((p for p, _ in _numbered(name) if p in repeated and p not in stages), None)


def _beginnings(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _numbered(name: str) -> list[tuple[str, str]]:
    """Return the prefixes of a name that end in a numbered part, outermost first, each with its remainder."""
    parts = name.split(".")
    ends = [end for end in range(1, len(parts)) if re.search(r"(^|_)\d+$", parts[end - 1])]
    return [(".".join(parts[:end]), ".".join(parts[end:])) for end in ends]


def _repeated(names: list[str]) -> dict[str, set[str]]:
    """Return numbered submodules that have layers and resemble another one, with what they contain."""
    families: dict[str, dict[str, set[str]]] = {}
    for name in names:
        for prefix, inner in _numbered(name):
            families.setdefault(re.sub(r"\d+", "#", prefix), {}).setdefault(prefix, set()).add(inner)
    found = {}
    for family in families.values():
        members = {prefix: inside for prefix, inside in family.items() if any("." in inner for inner in inside)}
        for prefix, inside in members.items():
            others = (theirs for other, theirs in members.items() if other != prefix)
            if any(len(inside & theirs) >= ALIKE * len(inside | theirs) for theirs in others):
                found[prefix] = inside
    return found


def _only_holds(prefix: str, inside: set[str], repeated: Mapping[str, set[str]]) -> bool:
    """Return whether a submodule is a sequence of blocks, that is, a stage and not a block."""
    return all(f"{prefix}.{inner.split('.')[0]}" in repeated for inner in inside)
