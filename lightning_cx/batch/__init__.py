"""What a batch of the user's is: its examples, cut out and joined, its inputs and its targets."""

from lightning_cx.batch.anatomy import inputs_of, targets_of
from lightning_cx.batch.take import alike, join, leaves, padded_cat, spread_out, take, to_cpu

__all__ = ["alike", "inputs_of", "join", "leaves", "padded_cat", "spread_out", "take", "targets_of", "to_cpu"]
