"""Examples of a training set, fetched as its loader fetches them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from lightning_cx.probe.isolation import isolated_rng, isolated_streams

MOST_KEYS = 100_000  # of a sampler that is asked for its keys; a probe needs a few hundred of them

# These give row numbers of the whole data set.
ROW_NUMBERS = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)


class Keyed:
    """A data set whose examples go by the keys of a sampler, such as names or pairs of a number and a size.

    Args:
        dataset: What is read.
        keys: In place of row numbers.
    """

    def __init__(self, dataset: Any, keys: Sequence[Any]) -> None:
        self.dataset, self.keys = dataset, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Any:
        return self.dataset[self.keys[number]]

    @property
    def __getitems__(self) -> Any:
        # An AttributeError of a data set without it means the same here.
        many = self.dataset.__getitems__
        return lambda numbers: many([self.keys[number] for number in numbers])


def keyed(loader: DataLoader, sampler: Any) -> Any:
    """Return the data set of a loader, by row number or by the keys of its own sampler.

    A sampler of the user's that gives other keys than row numbers is run through once, and put back: its own random
    streams and attributes.

    Args:
        loader: The training loader.
        sampler: What chooses its examples one by one.

    Raises:
        ValueError: If the keys cannot be listed without using them up.
    """
    plain = type(loader.batch_sampler) is BatchSampler
    if plain and isinstance(sampler, ROW_NUMBERS):
        return loader.dataset
    source: Any = sampler if plain else loader.batch_sampler
    if isinstance(source, Iterator) or not isinstance(source, Iterable):
        raise ValueError(f"its sampler ({type(source).__name__}) can be run through only once")

    def keys(count: int) -> list[Any]:
        with isolated_streams(source), isolated_rng():
            return list(islice(source if plain else (key for keys in source for key in keys), count))

    rows = len(loader.dataset)  # type: ignore[arg-type]
    # One that goes on where a checkpoint left off gives the rest of an epoch, so nothing follows from row numbers.
    if all(isinstance(key, int) and not isinstance(key, bool) and 0 <= key < rows for key in keys(1)):
        return loader.dataset
    return Keyed(loader.dataset, keys(MOST_KEYS))
