"""What the processes of one fit tell each other about a sampled step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning_cx.callbacks._trainer import LightningModule, Trainer
from lightning_cx.callbacks.backwards import Backwards
from lightning_cx.callbacks.collectives import any_process, first_process, from_process, numbers_of_all
from lightning_cx.callbacks.failures import Failures
from lightning_cx.callbacks.merging import merged
from lightning_cx.callbacks.processes import together
from lightning_cx.callbacks.publisher import Publisher
from lightning_cx.gradients import GradientSample
from lightning_cx.instruments import Series

NO_PAIRS = (
    "what the examples of all processes want together is not known (the module is sharded, the loss has a penalty on "
    "parameters alone, or one process replays its examples): noise scale and signal come from pairs of examples within "
    "a process, and gradient/norm is what both make likely"
)

Found = Sequence[tuple[Series, GradientSample]]


class Shared:
    """Keeps several processes in step: nobody waits for one that has failed, and all know the same numbers.

    Args:
        failures: Where failures are counted; those of the first process hold for all.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._held_back: Exception | None = None

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Keep the first exception until all can hear of it: raised at once, it would leave the others waiting."""
        try:
            yield
        except Exception as error:
            self._held_back = self._held_back or error

    def all_full(self, trainer: Trainer, full: bool, backwards: Backwards, examples: int) -> bool:
        """Whether the batch is whole in every process; every one has to call, before a sampled step."""
        short, calibrates = numbers_of_all(trainer, [not full, backwards.calibrates(examples)]).any(0)
        if bool(calibrates):  # user code may wait for the other processes: all run it, or none
            backwards.forget_calibration()
        return not bool(short)

    def merge(self, trainer: Trainer, module: LightningModule, backwards: Backwards, found: Found) -> Found:
        """What all processes saw in a step; every process has to call, once for each sampled step.

        Args:
            trainer: Of the fit.
            module: The model.
            backwards: Whose samplers read it.
            found: What this process saw.

        Raises:
            Exception: In all of them, if anything failed in one.
        """
        owed, backwards.owed = backwards.owed, set()  # where anything failed nobody owes: who did not see it would
        self._raise_in_all(trainer)
        self._agree(trainer, backwards, owed)
        names = [series for series, _ in found]
        if any_process(trainer, names != from_process(trainer, names)):
            return []  # a process that saw nothing, or another backward: the next step may be whole
        whole = [(series, merged(trainer, module, sample)) for series, sample in found]
        if any(sample.squared_sum is None for _, sample in whole):
            self._failures.tell(NO_PAIRS)
        return whole

    def _raise_in_all(self, trainer: Trainer) -> None:
        """What was held back in one process."""
        error, self._held_back = self._held_back, None

        def raised() -> None:
            if error is not None:
                raise error

        together(trainer, raised)

    def _agree(self, trainer: Trainer, backwards: Backwards, owed: set[int]) -> None:
        """What cannot be read in one process is read in none, and what one of them still owes is owed by all."""
        samplers = backwards.samplers
        off = [float(sampler.off) for sampler in samplers]
        everybody = numbers_of_all(trainer, [*off, *(float(n in owed) for n in range(len(samplers)))]).bool()
        refused, owing = everybody.split(len(samplers), 1)
        for sampler, somewhere, everywhere in zip(samplers, refused.any(0), refused.all(0), strict=True):
            if bool(somewhere) and not bool(everywhere):
                source = first_process(trainer, sampler.off)
                words = from_process(trainer, sampler.refusal, source)
                if not sampler.off:
                    sampler.refuse(f"process {source}: {words}")
        backwards.owed = {n for n, sampler in enumerate(samplers) if bool(owing[:, n].any()) and not sampler.off}

    def tell_all(self, trainer: Trainer, publisher: Publisher) -> None:
        """Let all processes know what the first one read, and what it has given up; every process has to call.

        Callbacks that look at these numbers in each process, as those that keep checkpoints do, decide alike.

        Raises:
            Exception: Under `strict` in all of them, if measuring failed in the first.
        """
        if self._failures.strict:
            self._raise_in_all(trainer)
        scalars, state = from_process(trainer, (publisher.take_untold(), self._failures.state_dict()))
        publisher.hear(trainer, scalars)
        self._failures.load_state_dict(state)
