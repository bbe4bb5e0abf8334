"""The fixed examples on which spectra are compared from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cx.gradients import GradientSample
from lightning_cx.probe.batches import alike, padded_cat, take, to_cpu
from lightning_cx.probe.feature_rule import measurable, raw_features
from lightning_cx.probe.gradients import passes_of, probe_gradients, some_chunks
from lightning_cx.probe.isolation import isolated_rng, isolated_streams
from lightning_cx.probe.passes import Chunk, LossOf, Reduction, find_reduction_of, read_chunks
from lightning_cx.probe.reading import ProbeReading
from lightning_cx.probe.view import ModelView

ALONE = 3  # examples that are also run alone, to learn how the loss adds up
MIN_EXAMPLES = 128  # fewer leave the upper octaves too short to tell noise from target (THEORY section 5)


class ProbeSet:
    """A few hundred fixed training examples: the yardstick for what the network fits, and what not yet.

    Spectra are comparable in time only on the same examples, so a probe is drawn once, by index, with a generator of
    its own; the indices go into the checkpoint. From a stream, the first examples that come by are kept.

    Args:
        size: Number of examples; all of a smaller data set.
        seed: Seed of the draw, and of random augmentations of the drawn examples.
        features: A function from a batch to a tensor [n, d] in which neighbours are alike; by default z-scored
            pixels or columns, bag-of-words counts for token ids. Pass embeddings where raw inputs do not order
            the target.
        loss_fn: A function (module, batch) -> losses [n] for models whose `training_step` cannot be replayed
            (manual optimisation, losses over the batch); by default `training_step` is replayed in isolation.

    Raises:
        ValueError: If `size` is under 128.

    Attributes:
        indices: Chosen rows of the data set; None before, and on a stream.
        latest: The last reading, and the moment of it: callbacks that share a probe pass it once.
        augmented: Whether the data set gives an example differently each time.

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
        self.forget()

    def forget(self) -> None:
        """Let go of the examples, so that they are drawn anew; chosen indices stay."""
        self._chunks: list[tuple[Any, int]] = []  # batches in host memory
        self._alone: list[Any] = []  # the first examples, of a chunk, each as a batch of its own
        self._company = 0  # the number of that chunk
        self._wanted = self.size
        self._feature_matrix: Tensor | None = None
        self._reduction: Reduction | None = None
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
            self._chunks.append((collate(items), len(items)))
            if len(self._alone) < min(ALONE, len(items)):
                self._alone = [collate(items[i : i + 1]) for i in range(min(ALONE, len(items)))]
                self._company = len(self._chunks) - 1

    def _fetch(self, dataset: Any, index: int, other: int = 0) -> Any:
        with isolated_rng(self.seed + index + other):  # so an example is augmented alike whatever the batch size
            return dataset[index]

    def keep(self, batch: Any, examples: int) -> None:
        """Keep a batch of a stream that comes by, cut to what is still missing."""
        missing = self._wanted - self.examples
        if missing <= 0 or examples < 1:
            return
        count, self.lost = min(missing, examples), False
        self._chunks.append((to_cpu(take(batch, 0, count, examples) if count < examples else batch), count))
        if len(self._alone) < min(ALONE, count):
            self._alone = [to_cpu(take(batch, i, i + 1, examples)) for i in range(min(ALONE, count))]
            self._company = len(self._chunks) - 1

    def close(self) -> None:
        """Take what a stream has shown for all there is: from here on its examples come by again.

        Raises:
            ValueError: If these are fewer than 128.
        """
        if self.examples < MIN_EXAMPLES:
            raise ValueError(
                f"ProbeSet needs at least {MIN_EXAMPLES} examples to tell noise from target, and one epoch of the "
                f"stream showed {self.examples}: what is measured on the probe is left out."
            )
        self._wanted = min(self._wanted, self.examples)

    def features_of(self, batch: Any, examples: int) -> Tensor:
        """Features of any batch by the probe's rule, [examples, d] float64.

        Raises:
            ValueError: If the batch shows no inputs, only one id each, or `features` returned another shape.
        """
        return measurable(self.features, raw_features(self.features, batch, examples, self.seed))

    def feature_matrix(self) -> Tensor:
        """Features of the probe, [n, d] float64, computed once."""
        if self._feature_matrix is None:
            parts = [raw_features(self.features, batch, count, self.seed) for batch, count in self._chunks]
            integers = not parts[0].is_floating_point()
            self._feature_matrix = measurable(self.features, padded_cat(parts, -1 if integers else 0))
        return self._feature_matrix

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
        loss_of = self._loss_of(module, replay)

        def chunk(held: tuple[Any, int]) -> Callable[[], Chunk]:
            return lambda: Chunk(place(held[0]), held[1])

        features = self.feature_matrix()
        kind, own = self._adds_up(module, loss_of, place), self._chunks[share[0] :: share[1]]
        # A forward pass may wait for other processes, so each makes as many: one that has run out passes the first.
        spare = [self._chunks[0]] * (-(-len(self._chunks) // share[1]) - len(own))
        passed = [read_chunks(module, list(map(chunk, some)), loss_of, kind) for some in (own, spare) if some]
        outputs, residuals, source, loss = passed[0]
        rows = sum(count for _, count in own)
        where = f"output of {source}" + ", at one draw of its random numbers" * kind.drawn
        shown = outputs[:rows], residuals[:rows], features
        return ProbeReading(*shown, kind.coupled, where, mixed=kind.mixed, loss=loss, drawn=kind.drawn)

    def _adds_up(self, module: nn.Module, loss_of: LossOf, place: Callable[[Any], Any]) -> Reduction:
        if self._reduction is None:
            company, count = self._chunks[self._company]
            alone = self._alone if count > 1 else [batch for batch, _ in self._chunks[:ALONE]]
            self._reduction = find_reduction_of(module, (company, count), alone, place, loss_of)
        return self._reduction

    def view(
        self,
        module: nn.Module,
        replay: LossOf | None = None,
        place: Callable[[Any], Any] = lambda b: b,
        optimizer: Optimizer | None = None,
        training_examples: int | None = None,
    ) -> ModelView:
        """The model as it is now, for passes over these examples other than `read`; other arguments as there."""
        loss_of = self._loss_of(module, replay)
        how = place, loss_of, self._adds_up(module, loss_of, place)
        return ModelView(module, self._chunks, *how, optimizer, training_examples)

    def positions(self, share: tuple[int, int]) -> Tensor:
        """Rows of the whole probe that one process of several passes, [rows]."""
        counts = [count for _, count in self._chunks]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        own = list(zip(starts, counts, strict=True))[share[0] :: share[1]]
        return torch.cat([torch.arange(start, start + count) for start, count in own] or [torch.arange(0)])

    def gradients(
        self,
        module: nn.Module,
        replay: LossOf | None = None,
        place: Callable[[Any], Any] = lambda b: b,
        examples: int = 256,
        per_layer: bool = False,
    ) -> GradientSample:
        """Per-example gradients of the first examples, in eval mode and in isolation; `read` comes first.

        Args:
            module: The model.
            replay: As in `read`.
            place: As in `read`.
            examples: How many, at most; fewer where 8 chunks hold fewer.
            per_layer: Keep the Gram matrices of the single parameters as well.

        Raises:
            UnsupportedGradientError: If the tap cannot read the model, by name.
            ValueError: If chunks cannot be joined into one batch, or `read` was not called.
        """
        if self._reduction is None:
            raise ValueError("how the loss adds up is not known yet: call read() first")
        chunks = some_chunks(self._chunks, examples)
        return probe_gradients(module, chunks, place, self._loss_of(module, replay), self._reduction, per_layer)

    def passes_for_gradients(self, examples: int) -> int:
        """How many examples pass through the module for `gradients`: every two chunks meet once."""
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
