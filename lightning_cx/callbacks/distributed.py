"""Several processes: strategies that are refused, sharded parameters, and what processes tell each other of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_cx._torch import place_of_piece, sharded_pieces, unsharded
from lightning_cx.callbacks._trainer import Callback, Trainer, tensor_parallel_size
from lightning_cx.functional import NoiseScale, noise_scale, tails
from lightning_cx.gradients import Block, GradientSample
from lightning_cx.instruments import Series

if TYPE_CHECKING:
    from lightning_cx.callbacks.failures import Failures
    from lightning_cx.callbacks.fit import Fit
    from lightning_cx.callbacks.publishing import Publisher
    from lightning_cx.callbacks.sampling import Backwards

REFUSED_STRATEGIES = {
    "FSDPStrategy": "flattens the parameters of a module into one, in which layers cannot be told apart: use "
    "ModelParallelStrategy, whose fully_shard keeps them apart",
    "DeepSpeedStrategy": "runs the backward in its own engine, on partitioned parameters: use "
    "DDPStrategy, or ModelParallelStrategy with fully_shard",
    "XLAStrategy": "runs compiled graphs, whose nodes cannot be read: train on CPU or GPU",
    "SingleDeviceXLAStrategy": "runs compiled graphs, whose nodes cannot be read: train on CPU or GPU",
}


def check_strategy(trainer: Trainer, callback: Callback, keeps_weights: bool = False) -> None:
    """Refuse a strategy under which a callback cannot do what it promises.

    Args:
        trainer: About to fit.
        callback: Ours.
        keeps_weights: Whether it keeps a copy of the weights.

    Raises:
        ValueError: If it cannot; the message names the strategy and says what to do.
    """
    who = type(callback).__name__
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    for name in names:
        if name in REFUSED_STRATEGIES:
            raise ValueError(f"{who} does not work under {name}, which {REFUSED_STRATEGIES[name]}; or leave {who} out.")
    if tensor_parallel_size(trainer) > 1:
        raise ValueError(
            f"{who} does not work under tensor parallelism, where a process holds a part of every layer's examples and "
            f"none of them whole: use fully_shard alone (tensor_parallel_size=1), or leave {who} out."
        )
    if keeps_weights and "ModelParallelStrategy" in names:
        raise ValueError(
            f"{who}(restore_best=True) keeps a copy of the weights, which no process of a sharded module has whole: "
            "pass restore_best=False, and keep the best weights by ModelCheckpoint(monitor='stopping/risk')."
        )


def is_sharded(module: nn.Module) -> bool:
    """Return whether `fully_shard` has cut parameters of the module in pieces."""
    return any(sharded_pieces(part) for part in module.modules())


def held_parameters(module: nn.Module) -> dict[str, Parameter]:
    """Return the parameters of a module by name, as optimizers hold them, at any time.

    From a forward to its backward a module may show the whole parameters in place of the pieces: the outermost one
    does, and all with `reshard_after_forward=False`.
    """
    held = dict(module.named_parameters())
    return held | {name: piece.sharded_param for name, piece in _named_pieces(module) if name in held}


def whole_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that stand in the graph of a loss for the parameters of a module, by the same names.

    While a sharded module runs, each piece is put together with those of the other processes; what the forward used,
    and what a gradient arrives at, is the whole one. Others stand for themselves.

    Args:
        module: After a forward pass.
        parameters: Those to look for, as `module.named_parameters()` names them.
    """
    whole = {name: unsharded(piece) for name, piece in _named_pieces(module) if name in parameters}
    return {**parameters, **whole}


def _named_pieces(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, part in module.named_modules():
        for piece in sharded_pieces(part):
            # The group of a module holds what its children left to it.
            of = {id(child): name for name, child in part.named_modules(prefix=prefix)}
            module_of_piece, name = place_of_piece(piece)
            yield f"{of.get(id(module_of_piece), '')}.{name}".lstrip("."), piece


BUCKET = 1 << 22  # entries that are added up over processes in one go: what is copied at a time, against latency


def merged(fit: Fit, sample: GradientSample) -> GradientSample:
    """Return the sample with the shares of all processes beside it; every process has to call.

    Each sends norms, projections and the noise of its share, a few numbers for an example, and all of them add up their
    summed gradients, which costs what a synchronisation of gradients costs. Gradients as `.grad` has them would not do:
    they are local while batches accumulate, may have been compressed on the way, or hold more than this batch.

    Args:
        fit: Its module names the parameters, in the same order everywhere.
        sample: What this process saw.
    """
    noise = None if sample.gram is None else noise_scale(sample.gram)
    rows = [part for part in (sample.projections, sample.coordinates) if part is not None]
    widths = [part.shape[1] for part in rows]
    has_sums = sample.sums is not None
    own = [float(has_sums), float(noise is not None), *widths, *([0.0] * (2 - len(widths))), *_numbers(noise)]
    everybody = fit.numbers_of_all(own)
    if not bool((everybody[:, 1:4] == everybody[0, 1:4]).all()):
        return replace(sample, sums=None)  # one of them replays where the others tap: there is nothing in common
    norms = sample.squared_norms
    if norms is None:
        return replace(sample, sums=None)
    centred = torch.zeros_like(norms) if sample.gram is None else tails.centred_norms(sample.gram)
    gathered = fit.gathered_rows(torch.cat([norms[:, None], centred[:, None], *rows], 1))
    blocks = [
        _block(part, _noise_of(numbers) if noise is not None else None, sample)
        for part, numbers in zip(gathered, everybody[:, 4:], strict=True)
    ]
    total = None
    if bool(everybody[:, 0].all()):
        trained = {name: p for name, p in fit.module.named_parameters() if p.requires_grad}
        total = _squared_sum(fit, trained, sample.sums or {})
    return replace(sample, sums=None, blocks=tuple(blocks), squared_sum=total)


def _numbers(noise: NoiseScale | None) -> list[float]:
    if noise is None:
        return [0.0] * 7
    values = torch.cat([torch.stack([noise.signal, noise.noise]), noise.covariance.flatten()])
    return [*values.tolist(), float(noise.degrees_of_freedom)]


def _noise_of(numbers: Tensor) -> NoiseScale:
    unknown = torch.tensor(torch.nan, dtype=torch.float64)
    covariance = numbers[2:6].reshape(2, 2)
    return NoiseScale(unknown, unknown, unknown, numbers[0], numbers[1], covariance, int(numbers[6]))


def _block(part: Tensor, noise: NoiseScale | None, sample: GradientSample) -> Block:
    k = 0 if sample.projections is None else sample.projections.shape[1]
    return Block(
        len(part),
        part[:, 0],
        None if sample.gram is None else part[:, 1],
        noise,
        None if sample.projections is None else part[:, 2 : 2 + k],
        None if sample.coordinates is None else part[:, 2 + k :],
    )


def _squared_sum(fit: Fit, parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Tensor:
    """Return |sum_i g_i|^2 over the examples of all processes; a missing gradient of one process counts as zero."""
    total = torch.zeros((), dtype=torch.float64)
    for bucket in _buckets(parameters, sums):
        together = fit.summed(bucket)
        total += torch.linalg.vector_norm(together, dtype=torch.float64).square().cpu()
    return total


def _buckets(parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield all summed gradients in the order of the parameters, in pieces that are the same in every process."""
    waiting: list[Tensor] = []
    for name, parameter in parameters.items():
        # A process that got no gradient of a parameter sends zeros in the precision that the others have.
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        held = sums.get(name)
        flat = (
            parameter.new_zeros(parameter.numel(), dtype=wide) if held is None else held.to_dense().to(wide).flatten()
        )
        for piece in flat.split(BUCKET):
            if waiting and (sum(map(len, waiting)) + len(piece) > BUCKET or waiting[0].dtype != wide):
                yield _joined(waiting)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _joined(waiting)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(pieces))


NO_PAIRS = (
    "the batch gradient over all processes is not known (the module is sharded, the loss has a penalty on "
    "parameters alone, or one process replays its examples): noise scale and signal come from pairs of examples within "
    "a process, and gradient/norm is what both make likely"
)

Found = Sequence[tuple[Series, GradientSample]]


class Processes:
    """Keep several processes in step: none waits for one that has failed, and all know the same numbers.

    Every method but `holding_back` is collective.

    Args:
        fit: That they share.
        failures: Where failures are counted; those of the first process hold for all.
    """

    def __init__(self, fit: Fit, failures: Failures) -> None:
        self._fit, self._failures = fit, failures
        self._held_back: Exception | None = None

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Keep the first exception until all can hear of it: raised at once, it would leave the others waiting."""
        try:
            yield
        except Exception as error:
            self._held_back = self._held_back or error

    def all_full(self, full: bool, backwards: Backwards, examples: int) -> bool:
        """Return whether the batch is full in every process, before a sampled step."""
        short, calibrates = self._fit.numbers_of_all([not full, backwards.calibrates(examples)]).any(0)
        if bool(calibrates):  # user code may wait for the other processes: all run it, or none
            backwards.forget_calibration()
        return not bool(short)

    def merge(self, backwards: Backwards, found: Found) -> Found:
        """Put together what all processes saw in a sampled step.

        Args:
            backwards: Whose samplers read it.
            found: What this process saw.

        Raises:
            Exception: In all of them, if anything failed in one.
        """
        # Where anything failed no process owes a sample, or only those that did not see the failure would.
        owed, backwards.owed = backwards.owed, set()
        self._raise_in_all()
        self._agree(backwards, owed)
        names = [series for series, _ in found]
        if self._fit.any_process(names != self._fit.from_process(names)):
            return []  # a process that saw nothing, or another backward: the next step may be whole
        whole = [(series, merged(self._fit, sample)) for series, sample in found]
        if any(sample.squared_sum is None for _, sample in whole):
            self._failures.tell(NO_PAIRS)
        return whole

    def _raise_in_all(self) -> None:
        """Raise what was held back in one process."""
        error, self._held_back = self._held_back, None

        def raised() -> None:
            if error is not None:
                raise error

        self._fit.together(raised)

    def _agree(self, backwards: Backwards, owed: set[int]) -> None:
        """Read in no process what cannot be read in one, and have all owe what one of them still owes."""
        samplers = backwards.samplers
        off = [float(sampler.off) for sampler in samplers]
        everybody = self._fit.numbers_of_all([*off, *(float(n in owed) for n in range(len(samplers)))]).bool()
        refused, owing = everybody.split(len(samplers), 1)
        for sampler, somewhere, everywhere in zip(samplers, refused.any(0), refused.all(0), strict=True):
            if bool(somewhere) and not bool(everywhere):
                source = self._fit.first_process(sampler.off)
                words = self._fit.from_process(sampler.refusal, source)
                if not sampler.off:
                    sampler.refuse(f"process {source}: {words}")
        backwards.owed = {n for n, sampler in enumerate(samplers) if bool(owing[:, n].any()) and not sampler.off}

    def tell_all(self, publisher: Publisher) -> None:
        """Tell all processes what the first one read, and what it has given up.

        Callbacks that look at these numbers in each process, as those that keep checkpoints do, decide alike.

        Raises:
            Exception: Under `strict` in all of them, if measuring failed in the first.
        """
        if self._failures.strict:
            self._raise_in_all()
        scalars, state = self._fit.from_process((publisher.take_untold(), self._failures.state_dict()))
        publisher.hear(scalars)
        self._failures.load_state_dict(state)
