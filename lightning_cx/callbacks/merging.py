"""Put together what several processes saw of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_cx.callbacks._trainer import LightningModule, Trainer
from lightning_cx.callbacks.collectives import gathered_rows, numbers_of_all, summed
from lightning_cx.functional import NoiseScale, noise_scale, tails
from lightning_cx.gradients import Block, GradientSample

BUCKET = 1 << 22  # entries that are added up over processes in one go: what is copied at a time, against latency


def merged(trainer: Trainer, module: LightningModule, sample: GradientSample) -> GradientSample:
    """The sample with the shares of all processes beside it; every process has to call.

    Each sends norms, projections and the noise of its share, a few numbers for an example, and all of them add up their
    summed gradients, which costs what a synchronisation of gradients costs. Gradients as `.grad` has them would not do:
    they are local while batches accumulate, may have been compressed on the way, or hold more than this batch.

    Args:
        trainer: Of the fit.
        module: Names the parameters, in the same order everywhere.
        sample: What this process saw.
    """
    noise = None if sample.gram is None else noise_scale(sample.gram)
    rows = [part for part in (sample.projections, sample.coordinates) if part is not None]
    widths = [part.shape[1] for part in rows]
    has_sums = sample.sums is not None
    own = [float(has_sums), float(noise is not None), *widths, *([0.0] * (2 - len(widths))), *_numbers(noise)]
    everybody = numbers_of_all(trainer, own)
    if not bool((everybody[:, 1:4] == everybody[0, 1:4]).all()):
        return replace(sample, sums=None)  # one of them replays where the others tap: there is nothing in common
    norms = sample.squared_norms
    if norms is None:
        return replace(sample, sums=None)
    centred = torch.zeros_like(norms) if sample.gram is None else tails.centred_norms(sample.gram)
    gathered = gathered_rows(trainer, torch.cat([norms[:, None], centred[:, None], *rows], 1))
    blocks = [
        _block(part, _noise_of(numbers) if noise is not None else None, sample)
        for part, numbers in zip(gathered, everybody[:, 4:], strict=True)
    ]
    total = None
    if bool(everybody[:, 0].all()):
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        total = _squared_sum(trainer, trained, sample.sums or {})
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


def _squared_sum(trainer: Trainer, parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Tensor:
    """|sum_i g_i|^2 over the examples of all processes; what got no gradient in one of them counts as zero there."""
    total = torch.zeros((), dtype=torch.float64)
    for bucket in _buckets(parameters, sums):
        together = summed(trainer, bucket)
        total += torch.linalg.vector_norm(together, dtype=torch.float64).square().cpu()
    return total


def _buckets(parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """All summed gradients in the order of the parameters, in pieces that are the same in every process."""
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
