"""One record per type of autograd node, each beside its contraction rule, by family.

To teach the tap a new node of PyTorch's, write its rule and its record in the module of its kind; for a node of your
own, a custom `torch.autograd.Function`, call `lightning_cx.gradients.register_node`. Importing this package fills
the registry of `graph.nodes`.
"""

from lightning_cx.gradients.graph.nodes import NodeRecord, register_node
from lightning_cx.gradients.rules import (
    convolution,
    elementwise,
    embedding,
    linear,
    losses,
    normalisation,
    recurrent,
    reductions,
    views,
)

__all__ = [
    "convolution",
    "elementwise",
    "embedding",
    "linear",
    "losses",
    "normalisation",
    "recurrent",
    "reductions",
    "views",
]

# Nodes that stand for a whole piece of the model.
register_node(NodeRecord(hides="of activation checkpointing; replay_gradients reads it"), "CheckpointFunctionBackward")
register_node(
    NodeRecord(
        hides='of a compiled forward; run that forward inside torch.compiler.set_stance("force_eager")',
    ),
    "CompiledFunctionBackward",
)
