"""What each client should give, in one table: examples, inputs, targets, whether there is a residual, and why.

`report.py` prints what is found beside it. A check named in `pending` waits for issue 19: it is expected to fail, and
fails the run once it passes, so that its name is taken out here. `pending=()` switches everything on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ANATOMY = ("anatomy_is_said",)


@dataclass(frozen=True)
class Expected:
    """What a case should give.

    Attributes:
        examples: Number of examples in a full batch.
        inputs: Shapes of the inputs by name, as the line about the anatomy of a batch should list them.
        targets: The same for the targets.
        residual: Whether the loss has a residual, so that numbers about it should be there.
        why: The reason for that, and for anything else that is not plain.
        stops: Whether the stopping rule should act.
        status: What rows of the Gram matrix are: `exact`, `contribution` or `off`.
        draws: Whether the loss draws random numbers, so that a loop sees other ones.
        tolerance: Relative error of the Gram matrix that is still rounding.
        pending: Names of checks that wait for issue 19.
    """

    examples: int
    inputs: Mapping[str, tuple[int | str, ...]]
    targets: Mapping[str, tuple[int | str, ...]]
    residual: bool
    why: str
    stops: bool = True
    status: str = "exact"
    draws: bool = False
    tolerance: float = 1e-5
    pending: tuple[str, ...] = field(default=ANATOMY)

    @property
    def anatomy(self) -> str:
        """The line that is expected at the first sample."""
        parts = [f"{self.examples} examples"]
        for kind, named in (("inputs", self.inputs), ("targets", self.targets)):
            if named:
                shapes = (f"{name} [{', '.join(map(str, shape))}]" for name, shape in named.items())
                parts.append(f"{kind} {', '.join(shapes)}")
        return "; ".join(parts)


EXPECTED: dict[str, Expected] = {
    "transformers:causal-lm": Expected(
        16,
        {"input_ids": (16, 12)},
        {"labels": (16, 12)},
        residual=True,
        why="cross entropy of the next token, at 11 positions of each example; labels are padded by one -100",
    ),
    "transformers:bert-padded": Expected(
        16,
        {"input_ids": (16, "T")},
        {"labels": (16,)},
        residual=True,
        why="cross entropy of 3 classes; each batch is padded to its own longest text, so T differs",
    ),
    "transformers:vit": Expected(
        16,
        {"pixel_values": (16, 3, 16, 16)},
        {"labels": (16,)},
        residual=True,
        why="cross entropy of 3 classes",
    ),
    "transformers:peft-lora": Expected(
        16,
        {"input_ids": (16, "T")},
        {"labels": (16, "T")},
        residual=True,
        status="contribution",
        why="cross entropy over all tokens of the batch: longer texts count more, so a row is a share",
    ),
    "torch_geometric:gcn": Expected(
        16,
        {"x": ("nodes", 8)},
        {"y": (16,)},
        residual=True,
        why="cross entropy of 3 classes; num_graphs says 16, nodes lie along the first axis of x",
    ),
    "torch_geometric:gcn-features": Expected(
        16,
        {"x": ("nodes", 8)},
        {"y": (16,)},
        residual=True,
        why="the same with ProbeSet(features=...), as our message tells the user to do",
    ),
    "torch_geometric:gine-regression": Expected(
        16,
        {"x": ("nodes", 8), "edge_attr": ("edges", 2)},
        {"y": (16,)},
        residual=True,
        why="squared error, one number for each graph",
    ),
    "torch_geometric:gin-batchnorm": Expected(
        16,
        {"x": ("nodes", 8)},
        {"y": (16,)},
        residual=True,
        status="contribution",
        why="cross entropy of 3 classes; BatchNorm over the nodes of all graphs, so rows are shares",
    ),
    "torch_geometric:nodes": Expected(
        1,
        {"x": ("nodes", 8)},
        {"y": ("nodes",)},
        residual=False,
        stops=False,
        why="one graph, all of it in each step: one example, nothing to compare with; to be refused in these words",
    ),
    "pytorch-forecasting:tft": Expected(
        16,
        {"encoder_cont": (16, 12, 3), "decoder_cont": (16, 4, 3)},
        {"target": (16, 4)},
        residual=False,
        stops=False,
        why="quantile loss: its slope is a share and a sign, not a residual; encoder_cat is the id of the series",
    ),
    "pytorch-forecasting:deepar": Expected(
        16,
        {"encoder_cont": (16, 12, 3), "decoder_cont": (16, 4, 3)},
        {"target": (16, 4)},
        residual=True,
        why="normal likelihood with a learned scale: (y - m) / s^2 is the residual of the mean",
    ),
    "pytorch-forecasting:nhits": Expected(
        16,
        {"encoder_cont": (16, 12, 1), "decoder_cont": (16, 4, 1)},
        {"target": (16, 4)},
        residual=True,
        status="contribution",
        why="root of the mean squared error of the batch: slopes are residuals over one common root, rows are shares",
    ),
}
