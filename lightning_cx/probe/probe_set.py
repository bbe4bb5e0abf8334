"""The fixed examples on which spectra are compared from step to step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import default_collate

from lightning_cx.batch import (
    Anatomies,
    Anatomy,
    alike,
    as_features,
    join_inputs,
    parts_of,
    raw_inputs,
    take,
    to_cpu,
)
from lightning_cx.functional import complexity
from lightning_cx.gradients import Calibration
from lightning_cx.probe.asking import ask
from lightning_cx.probe.derivatives import passes_of, some_chunks
from lightning_cx.probe.isolation import isolated_rng, isolated_streams
from lightning_cx.probe.outputs import LossOf, ResidualLaw
from lightning_cx.probe.passes import ProbePasses, calibrate_probe
from lightning_cx.probe.reading import ProbeReading
from lightning_cx.probe.residual_law import residual_law

READ_AT_ONCE = 1.0  # seconds; what takes no longer is not timed again
ALONE = 3  # examples that are also run alone, to learn how the loss adds up
MIN_EXAMPLES = 128  # fewer leave the upper octaves too short to tell noise from target (THEORY section 5)


class ProbeSet:
    """A few hundred fixed training examples: the yardstick for what the network fits, and what not yet.

    Spectra are comparable in time only on the same examples, so a probe is drawn once, by index, with a generator of
    its own; the indices go into the checkpoint. From a stream, the first examples that come by are kept.

    Args:
        size: Number of examples; all of a smaller data set.
        seed: Seed of the draw, and of random augmentations of the drawn examples.
        features: A function from a batch to a tensor [n, d] in which neighbours are alike; by default all that the
            model's output depends on: standardised pixels and columns, counts of ids. Pass embeddings where raw inputs
            do not order the target.
        loss_fn: A function (module, batch) -> losses [n] for models whose `training_step` cannot be replayed
            (manual optimisation, losses over the batch); by default `training_step` is replayed in isolation.

    Raises:
        ValueError: If `size` is under 128.

    Attributes:
        indices: Chosen rows of the data set; None before, and on a stream.
        latest: The last reading, and the moment of it: callbacks that share a probe pass it once.
        augmented: Whether the data set gives an example differently each time.
        anatomies: What the batches of the probe are; a callback's `batch=` is known there.

    Example:
        >>> ProbeSet(size=60)
        Traceback (most recent call last):
            ...
        ValueError: ProbeSet needs at least 128 examples to tell noise from target, got 60: pass a larger size.
    """

    def __init__(
        self,
        size: int = 512,
        seed: int = 0,
        features: Callable[[Any], Tensor] | None = None,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        if size < MIN_EXAMPLES:
            raise ValueError(
                f"ProbeSet needs at least {MIN_EXAMPLES} examples to tell noise from target, got {size}: "
                "pass a larger size."
            )
        self.size = size
        self.seed = seed
        self.features = features
        self.loss_fn = loss_fn
        self.indices: list[int] | None = None
        self.lost = False  # whether a checkpoint was of examples of a stream, which it does not hold
        self._out_of: int | None = None  # examples in the data set that these were chosen from
        self.anatomies = Anatomies()
        self.forget()

    def forget(self) -> None:
        """Let go of the examples, so that they are drawn anew; chosen indices stay."""
        self._chunks: list[tuple[Any, int]] = []  # batches in host memory
        self._alone: list[Any] = []  # the first examples, of a chunk, each as a batch of its own
        self._company = 0  # the number of that chunk
        self._wanted = self.size
        self._feature_matrix: Tensor | None = None
        self._calibration: Calibration | None = None
        self._law = ResidualLaw()
        self.latest: tuple[Any, ProbeReading] | None = None
        self.augmented = False

    @property
    def examples(self) -> int:
        """Number of examples held so far."""
        return sum(count for _, count in self._chunks)

    @property
    def chunk_size(self) -> int:
        """Number of examples in the largest chunk held so far; 1 if there is none."""
        return max((count for _, count in self._chunks), default=1)

    @property
    def complete(self) -> bool:
        """Whether all examples are there."""
        return self.examples >= self._wanted

    def choose(self, examples: int) -> list[int]:
        """Choose the indices out of a data set of `examples`, or keep those of a checkpoint that still fit.

        Raises:
            ValueError: If the data set has fewer than 128 examples.
        """
        if examples < MIN_EXAMPLES:
            raise ValueError(
                f"ProbeSet needs at least {MIN_EXAMPLES} examples to tell noise from target, got a training set of "
                f"{examples}: train on more, or do without the probe (by instruments that need none, or early stopping "
                "by a validation set)."
            )
        if not self.indices or self._out_of not in (None, examples) or max(self.indices) >= examples:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(examples, generator=generator)[: self.size]
            self.indices = sorted(chosen.tolist())
        self._wanted, self._out_of = len(self.indices), examples
        return self.indices

    def draw(self, dataset: Any, collate: Callable[[list[Any]], Any], count: int) -> None:
        """Fetch the next `count` chosen examples as one chunk; call until `complete`.

        Random augmentations inside the data set run on random streams of the probe's own, one for each example, and
        generators that the data set holds are put back.
        """
        assert self.indices is not None, "choose() comes first"
        start = self.examples
        some = self.indices[start : start + count]
        many = getattr(dataset, "__getitems__", None)  # the loader's own way to fetch several at once
        with isolated_streams(dataset), isolated_rng(self.seed + start):
            items = [self._fetch(dataset, index) for index in some] if not many else many(some)
            if not self._chunks:
                again = self._fetch(dataset, some[0], other=1) if not many else many(some[:1])[0]
                self.augmented = not alike(collate(items[:1]), collate([again]))
            batch = collate(items)
            self._chunks.append((batch, self._count(batch, len(items))))
            if len(self._alone) < min(ALONE, len(items)):
                self._alone = [collate(items[i : i + 1]) for i in range(min(ALONE, len(items)))]
                self._company = len(self._chunks) - 1

    def reading_seconds(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> float:
        """Guess how long it takes to read all chosen examples, by reading one some times and leaving no trace."""
        assert self.indices is not None, "choose() comes first"
        many = getattr(dataset, "__getitems__", None)
        with isolated_streams(dataset), isolated_rng(self.seed):
            seconds = math.inf
            for attempt in range(4):  # the first opens files, and others may be held up
                start = perf_counter()
                collate(many(self.indices[:1]) if many else [dataset[self.indices[0]]])
                seconds = min(seconds, perf_counter() - start)
                if attempt and seconds * len(self.indices) < READ_AT_ONCE:
                    break
        return seconds * len(self.indices)

    @property
    def fingerprint(self) -> int:
        """A number that tells examples apart: of the tensors of the first batch; 0 before there is one."""
        if not self._chunks:
            return 0
        digest = hashlib.sha256()
        for part in parts_of(self._chunks[0][0]):
            digest.update(part.tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return int.from_bytes(digest.digest()[:7], "little")

    def _count(self, batch: Any, items: int) -> int:
        """How many examples a batch has that was made of so many items; a collate function may leave some out."""
        return min(items, self.anatomies.of(batch, items).examples)

    def _fetch(self, dataset: Any, index: int, other: int = 0) -> Any:
        with isolated_rng(self.seed + index + other):  # so an example is augmented alike whatever the batch size
            return dataset[index]

    def keep(self, batch: Any, examples: int) -> None:
        """Keep a batch of a stream that comes by, cut to what is still missing."""
        missing = self._wanted - self.examples
        if missing <= 0 or examples < 1:
            return
        count, self.lost = min(missing, examples), False
        self._chunks.append((to_cpu(take(batch, 0, count, examples, trim=True) if count < examples else batch), count))
        if len(self._alone) < min(ALONE, count):
            self._alone = [to_cpu(take(batch, i, i + 1, examples, trim=True)) for i in range(min(ALONE, count))]
            self._company = len(self._chunks) - 1

    def close(self) -> None:
        """Take what a stream has shown for all there is: from here on its examples come by again.

        Raises:
            ValueError: If these are fewer than 128.
        """
        if self.examples < MIN_EXAMPLES:
            raise ValueError(
                f"ProbeSet needs at least {MIN_EXAMPLES} examples to tell noise from target, and one epoch of the "
                f"stream showed {self.examples}: nothing is measured on the probe."
            )
        self._wanted = min(self._wanted, self.examples)

    def features_of(self, batch: Any, examples: int) -> Tensor:
        """Features of any batch by the probe's rule, [examples, d] float64.

        Args:
            batch: As it is handed to the model.
            examples: Number of its examples.

        Raises:
            ValueError: If the batch shows no inputs, only one id each, or `features` returned another shape.
        """
        chosen = self._chosen_features(batch, examples)
        if chosen is not None:
            return complexity.as_matrix(chosen)
        return as_features(raw_inputs(batch, self.anatomies.of(batch, examples)))

    def feature_matrix(self) -> Tensor:
        """Features of the probe, [n, d] float64, computed once."""
        if self._feature_matrix is None:
            chosen = [self._chosen_features(batch, count) for batch, count in self._chunks]
            given = [values for values in chosen if values is not None]
            if given:
                self._feature_matrix = complexity.as_matrix(torch.cat(given))
            else:
                inputs = [raw_inputs(batch, self.anatomies.of(batch, count)) for batch, count in self._chunks]
                self._feature_matrix = as_features(join_inputs(inputs))
        return self._feature_matrix

    def _chosen_features(self, batch: Any, examples: int) -> Tensor | None:
        """What the user's own function makes of a batch; None without one."""
        inputs = self.anatomies.spec.inputs
        function = self.features if self.features is not None or not callable(inputs) else inputs
        if function is None:
            return None
        with isolated_rng(self.seed), torch.no_grad():
            values = function(batch)
        if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != examples:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"features must return a tensor [{examples}, d], got {shape}")
        return values.detach()

    @property
    def anatomy(self) -> Anatomy | None:
        """What the batches of the probe are, as far as it is known; None before there are any."""
        return self.anatomies.of(*self._chunks[self._company]) if self._chunks else None

    def read(
        self,
        module: nn.Module,
        replay: LossOf | None = None,
        place: Callable[[Any], Any] = lambda b: b,
        share: tuple[int, int] = (0, 1),
    ) -> ProbeReading:
        """Pass the probe through the module in isolation and return outputs and residuals.

        Args:
            module: The model.
            replay: The training loss of a batch; used where the probe has no `loss_fn`.
            place: Puts a batch on the model's device.
            share: Which of how many processes this is: process i of w passes every w-th chunk, from the i-th on, and
                returns their rows alone. `positions` says where they belong.

        Raises:
            ValueError: If neither `replay` nor `loss_fn` is there, or residuals cannot be found.
        """
        passes = self.passes(module, replay, place)
        features = self.feature_matrix()  # first: where there are no inputs, that is the reason to give
        own = self._chunks[share[0] :: share[1]]
        # A forward pass may wait for other processes, so each makes as many: one that has run out passes the first.
        spare = [self._chunks[0]] * (-(-len(self._chunks) // share[1]) - len(own))
        shown, *_ = [replace(passes, chunks=some).outputs() for some in (own, spare) if some]
        rows, found = sum(count for _, count in own), passes.calibration
        source = f"output of {shown.source}" + ", at one draw of its random numbers" * found.drawn
        return ProbeReading(
            shown.outputs[:rows],
            shown.residuals[:rows],
            features,
            coupled=found.coupled,
            source=source,
            mixed=found.mixed,
            loss=shown.loss,
            drawn=found.drawn,
            no_residual=passes.law.why_not,
            flat=passes.law.flat,
        )

    def passes(
        self,
        module: nn.Module,
        replay: LossOf | None = None,
        place: Callable[[Any], Any] = lambda b: b,
        optimizer: Optimizer | None = None,
        training_examples: int | None = None,
    ) -> ProbePasses:
        """Return passes over these examples through the model as it is now.

        Args:
            module: The model.
            replay: As in `read`.
            place: As in `read`.
            optimizer: What trains the model, if it is one alone.
            training_examples: Size of the training set, where it is known.

        Raises:
            ValueError: As `read`.
        """
        passes = ProbePasses(
            module,
            self._chunks,
            self._loss_of(module, replay),
            place,
            optimizer=optimizer,
            training_examples=training_examples,
        )
        if self._calibration is None:
            company, count = self._chunks[self._company]
            alone = self._alone if count > 1 else [batch for batch, _ in self._chunks[:ALONE]]
            self._calibration = calibrate_probe(passes, (company, count), alone)
            passes = replace(passes, calibration=self._calibration)
            known = ask(passes, company, count, self.anatomies)
            if not self._calibration.coupled:
                with suppress(ValueError):  # no output carries the loss, which is said where residuals are asked for
                    self._law = residual_law(passes, company, count, known)
        return replace(passes, calibration=self._calibration, law=self._law)

    def positions(self, share: tuple[int, int]) -> Tensor:
        """Rows of the whole probe that one process of several passes, [rows]."""
        counts = [count for _, count in self._chunks]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        own = list(zip(starts, counts, strict=True))[share[0] :: share[1]]
        return torch.cat([torch.arange(start, start + count) for start, count in own] or [torch.arange(0)])

    def passes_for_gradients(self, examples: int) -> int:
        """How many examples pass through the module for `ProbePasses.gradients`: every two chunks meet once."""
        return passes_of([count for _, count in some_chunks(self._chunks, examples)])

    def _loss_of(self, module: nn.Module, replay: LossOf | None) -> LossOf:
        loss_fn = self.loss_fn
        loss_of = replay if loss_fn is None else lambda batch: loss_fn(module, batch)
        if loss_of is None:
            raise ValueError(
                "training_step cannot be replayed under manual optimisation or with dataloader_iter: pass "
                "ProbeSet(loss_fn=...), a function (module, batch) -> losses [n]"
            )
        return loss_of

    def state_dict(self) -> dict[str, Any]:
        """The chosen indices, so that a resumed run measures on the same examples."""
        streamed = self.indices is None and self.examples > 0
        chosen = {"indices": self.indices, "out_of": self._out_of, "streamed": streamed}
        return {**chosen, "seed": self.seed, "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the indices of a checkpoint; they stand above `size` and `seed`, to be comparable."""
        indices: Sequence[int] | None = state.get("indices")
        self.indices, self._out_of = None if indices is None else list(indices), state.get("out_of")
        self.lost = bool(state.get("streamed")) and not self._chunks


def fill(
    probe: ProbeSet, dataset: Any, batch_size: int = 64, collate: Callable[[list[Any]], Any] = default_collate
) -> ProbeSet:
    """Choose the examples of a probe from the training data and fetch them, for a custom loop.

    The callbacks do it bit by bit, to keep to their budget.

    Args:
        probe: To be filled; what it held before is let go, indices of a checkpoint stay.
        dataset: With `__len__` and `__getitem__`; from a stream let `ProbeSet.keep` see its batches instead.
        batch_size: Examples that are passed through the model at a time.
        collate: Makes a batch of a list of examples, as that of the `DataLoader`.

    Returns:
        The same probe.

    Raises:
        ValueError: If `batch_size` is not positive, or the data set has fewer than 128 examples.

    Example:
        >>> import torch
        >>> from lightning_cx.probe import ProbeSet, fill
        >>> data = torch.utils.data.TensorDataset(torch.randn(1000, 3), torch.randn(1000, 1))
        >>> fill(ProbeSet(size=200), data).examples
        200
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")
    probe.forget()
    probe.choose(len(dataset))
    while not probe.complete:
        probe.draw(dataset, collate, batch_size)
    return probe
