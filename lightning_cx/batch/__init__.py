"""What a batch of the user's is: its examples, cut out and joined, its inputs and its targets."""

from lightning_cx.batch.anatomy import Anatomies, Anatomy, anatomy_of, structure_of
from lightning_cx.batch.features import as_features, join_inputs, raw_inputs
from lightning_cx.batch.padding import lengths_of
from lightning_cx.batch.parts import map_batch, parts_of, replaced
from lightning_cx.batch.spec import BatchSpec, BatchSpecError
from lightning_cx.batch.take import alike, choose, join, leaves, padded_cat, spread_out, take, to_cpu
from lightning_cx.batch.targets import targets_of

__all__ = [
    "Anatomies",
    "Anatomy",
    "BatchSpec",
    "BatchSpecError",
    "alike",
    "anatomy_of",
    "as_features",
    "choose",
    "join",
    "join_inputs",
    "leaves",
    "lengths_of",
    "map_batch",
    "padded_cat",
    "parts_of",
    "raw_inputs",
    "replaced",
    "spread_out",
    "structure_of",
    "take",
    "targets_of",
    "to_cpu",
]
