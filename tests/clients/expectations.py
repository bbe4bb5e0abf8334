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
        inputs: Shapes of the inputs by name, as the line about the anatomy of a batch should list them; "" where the
            batch has no name for them, and a word where the size differs from batch to batch.
        targets: The same for the targets.
        residual: Whether the loss has a residual, so that numbers about it should be there.
        why: The reason for that, and for anything else that is not plain.
        stops: Whether the stopping rule should act.
        status: What rows of the Gram matrix are: `exact`, `contribution` or `off`.
        never: Names that the line must not list: constants, empty ones, masks, weights, positions, the target.
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
    never: tuple[str, ...] = ()
    tolerance: float = 1e-5
    pending: tuple[str, ...] = field(default=ANATOMY)

    def missing(self, line: str) -> list[str]:
        """Return what the line about the anatomy of a batch should list and does not, and what it should not."""
        inputs, _, targets = line.partition("; targets ")
        wanted = [(inputs, named) for named in self.inputs.items()] + [(targets, n) for n in self.targets.items()]
        left = [f"{self.examples} examples"] * (f"{self.examples} examples" not in line)
        left += [said for part, named in wanted if (said := _said(*named)) not in part]
        return left + [f"not {name}" for name in self.never if f"{name} [" in line]


def _said(name: str, shape: tuple[int | str, ...]) -> str:
    """Return the beginning of a shape as it should be said, up to the first size that is not known."""
    known = next((i for i, size in enumerate(shape) if isinstance(size, str)), len(shape))
    sizes = ", ".join(map(str, shape[:known]))
    return f"{name} [{sizes}".strip() + ("]" if known == len(shape) else "")


EXPECTED: dict[str, Expected] = {
    "transformers:causal-lm": Expected(
        16,
        {"input_ids": (16, 12)},
        {"labels": (16, 12)},
        residual=True,
        why="cross entropy of the next token, at 11 positions of each example; labels are padded by one -100",
        pending=("status_is_as_expected", "anatomy_is_said"),
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
        never=("ptr", "batch", "edge_index"),
        residual=True,
        why="cross entropy of 3 classes; num_graphs says 16, nodes lie along the first axis of x",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "torch_geometric:gcn-features": Expected(
        16,
        {"x": ("nodes", 8)},
        {"y": (16,)},
        never=("ptr", "batch", "edge_index"),
        residual=True,
        why="the same with ProbeSet(features=...), as our message tells the user to do",
        pending=("examples_are_examples", "status_is_as_expected", "anatomy_is_said"),
    ),
    "torch_geometric:gine-regression": Expected(
        16,
        {"x": ("nodes", 8), "edge_attr": ("edges", 2)},
        {"y": (16,)},
        residual=True,
        why="squared error, one number for each graph",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "torch_geometric:gin-batchnorm": Expected(
        16,
        {"x": ("nodes", 8)},
        {"y": (16,)},
        never=("ptr", "batch", "edge_index"),
        residual=True,
        status="contribution",
        why="cross entropy of 3 classes; BatchNorm over the nodes of all graphs, so rows are shares",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "torch_geometric:nodes": Expected(
        1,
        {"x": ("nodes", 8)},
        {"y": ("nodes",)},
        residual=False,
        stops=False,
        status="off",
        why="one graph, all of it in each step: one example, nothing to compare with; to be refused in these words",
    ),
    "pytorch-forecasting:tft": Expected(
        16,
        {"encoder_cont": (16, 12, 3), "decoder_cont": (16, 4, 3)},
        {"": (16, 4)},
        never=("encoder_lengths", "decoder_lengths", "decoder_target", "decoder_time_idx"),
        residual=False,
        stops=False,
        why="quantile loss: its slope is a share and a sign, not a residual; encoder_cat is the id of the series",
    ),
    "pytorch-forecasting:deepar": Expected(
        16,
        {"encoder_cont": (16, 12, 3), "decoder_cont": (16, 4, 3)},
        {"": (16, 4)},
        never=("encoder_lengths", "decoder_lengths", "decoder_target", "decoder_time_idx"),
        residual=True,
        why="normal likelihood with a learned scale: (y - m) / s^2 is the residual of the mean",
        pending=("stopping_rule_acts", "anatomy_is_said"),
    ),
    "pytorch-forecasting:nhits": Expected(
        16,
        {"encoder_cont": (16, 12, 1)},  # decoder_cont holds the target
        {"": (16, 4)},
        never=("encoder_cat", "decoder_cat", "decoder_cont", "decoder_target", "decoder_time_idx"),
        residual=True,
        status="contribution",
        why="root of the mean squared error of the batch: slopes are residuals over one common root, rows are shares",
        pending=("residual_numbers_are_there", "stopping_rule_acts", "five_lines_at_most", "anatomy_is_said"),
    ),
    "x-transformers:language": Expected(
        16,
        {"": (16, 12)},
        {},
        residual=True,
        why="cross entropy of the next token; the batch is the tokens, which are inputs and targets at once",
    ),
    "x-transformers:padded": Expected(
        16,
        {"": (16, 12)},
        {},
        residual=True,
        status="contribution",
        why="cross entropy over all tokens of the batch: longer texts count more, so a row is a share",
    ),
    "x-transformers:continuous": Expected(
        16,
        {"": (16, 10, 4)},
        {"": (16, 10)},
        residual=True,
        why="squared error at ten places",
    ),
    "chemprop:regression": Expected(
        16,
        {"V": ("atoms", 72), "E": ("bonds", 14)},
        {"Y": (16, 1)},
        never=("w", "lt_mask", "gt_mask", "rev_edge_index", "edge_index"),
        residual=True,
        why="squared error; len(bmg) says 16, atoms lie along the first axis of V",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "chemprop:batch-norm": Expected(
        16,
        {"V": ("atoms", 72), "E": ("bonds", 14)},
        {"Y": (16, 1)},
        never=("w", "lt_mask", "gt_mask", "rev_edge_index", "edge_index"),
        residual=True,
        status="contribution",
        why="squared error; BatchNorm over the molecules",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "chemprop:classification": Expected(
        16,
        {"V": ("atoms", 72), "E": ("bonds", 14)},
        {"Y": (16, 1)},
        never=("w", "lt_mask", "gt_mask", "rev_edge_index", "edge_index"),
        residual=True,
        why="binary cross entropy",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "chemprop:mve": Expected(
        16,
        {"V": ("atoms", 72), "E": ("bonds", 14)},
        {"Y": (16, 1)},
        never=("w", "lt_mask", "gt_mask", "rev_edge_index", "edge_index"),
        residual=True,
        why="normal likelihood with a learned variance",
        pending=(
            "examples_are_examples",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "scvi-tools:scvi": Expected(
        16,
        {"X": (16, 30)},
        {},
        residual=True,
        status="contribution",
        why="evidence bound with a negative binomial likelihood, dispersion learned for each gene; BatchNorm",
        pending=("residual_numbers_are_there", "stopping_rule_acts", "five_lines_at_most", "anatomy_is_said"),
    ),
    "scvi-tools:scvi-layernorm": Expected(
        16,
        {"X": (16, 30)},
        {},
        residual=True,
        tolerance=1e-4,
        why="the same with LayerNorm: examples do not meet; the loop gets each cell the noise it had in the batch",
        pending=("residual_numbers_are_there", "stopping_rule_acts", "anatomy_is_said"),
    ),
    "scvi-tools:scanvi": Expected(
        16,
        {"X": (16, 30)},
        {},
        residual=True,
        status="contribution",
        why="half supervised; BatchNorm",
        pending=("residual_numbers_are_there", "stopping_rule_acts", "five_lines_at_most", "anatomy_is_said"),
    ),
    "scvi-tools:scanvi-layernorm": Expected(
        16,
        {"X": (16, 30)},
        {},
        residual=True,
        tolerance=1e-4,
        why="the same with LayerNorm: two loaders side by side, a pair of cells is an example and meets no other",
        pending=(
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "five_lines_at_most",
            "anatomy_is_said",
        ),
    ),
    "pytorch_tabular:classification": Expected(
        16,
        {"continuous": (16, 4), "categorical": (16, 1)},
        {"target": (16, 1)},
        residual=True,
        status="contribution",
        why="cross entropy of 3 classes; the library's default, BatchNorm over the continuous columns",
        pending=("stopping_rule_acts", "anatomy_is_said"),
    ),
    "pytorch_tabular:regression": Expected(
        16,
        {"continuous": (16, 4), "categorical": (16, 1)},
        {"target": (16, 1)},
        residual=True,
        why="squared error; no BatchNorm",
    ),
    "pytorch_tabular:ft-transformer": Expected(
        16,
        {"continuous": (16, 4), "categorical": (16, 1)},
        {"target": (16, 1)},
        residual=True,
        why="squared error; attention over the columns",
    ),
    "gluonts:deepar": Expected(
        16,
        {"past_target": (16, "T"), "past_time_feat": (16, "T", 4), "future_time_feat": (16, 4, 4)},
        {"future_target": (16, 4)},
        never=("feat_static_cat", "feat_static_real", "past_observed_values", "future_observed_values"),
        residual=True,
        why="normal likelihood with a learned scale, over context and horizon; a stream of windows",
        pending=("residual_numbers_are_there", "stopping_rule_acts", "anatomy_is_said"),
    ),
    "gluonts:deepar-empty-past": Expected(
        16,
        {"past_target": (16, "T"), "past_time_feat": (16, "T", 4), "future_time_feat": (16, 4, 4)},
        {"future_target": (16, 4)},
        never=("feat_static_cat", "feat_static_real", "past_observed_values", "future_observed_values"),
        residual=True,
        status="contribution",
        why="the same with the library's sampler: a window without a past takes the mean scale of its batch, so its "
        "loss is another one alone",
        pending=(
            "exact_is_exact",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "gluonts:feed-forward": Expected(
        16,
        {"past_target": (16, 12)},
        {"future_target": (16, 4)},
        residual=True,
        why="Student's t with learned scale and degrees of freedom: its slope is a weighted residual of the location",
    ),
    "darts:nbeats": Expected(
        16,
        {"past_target": (16, 12, 1)},
        {"future_target": (16, 4, 1)},
        residual=True,
        why="squared error over four steps",
    ),
    "darts:tide": Expected(
        16,
        {
            "past_target": (16, 12, 1),
            "historic_future_covariates": (16, 12, 1),
            "future_covariates": (16, 4, 1),
        },
        {"future_target": (16, 4, 1)},
        residual=True,
        why="squared error over four steps, with what is known of the future",
    ),
    "darts:tide-gaussian": Expected(
        16,
        {
            "past_target": (16, 12, 1),
            "historic_future_covariates": (16, 12, 1),
            "future_covariates": (16, 4, 1),
        },
        {"future_target": (16, 4, 1)},
        residual=True,
        why="normal likelihood with a learned scale",
    ),
    "neuralforecast:sampled-windows": Expected(
        16,
        {"temporal": (16, 2, "T")},
        {},
        residual=True,
        status="contribution",
        why="squared error of 100 windows drawn in training_step out of 16 series: not the mean of the series' losses",
        pending=(
            "exact_is_exact",
            "status_is_as_expected",
            "residual_numbers_are_there",
            "stopping_rule_acts",
            "anatomy_is_said",
        ),
    ),
    "neuralforecast:all-windows": Expected(
        16,
        {"temporal": (16, 2, "T")},
        {},
        residual=True,
        why="squared error of all windows, as many of each series: a series has a loss of its own",
        pending=("status_is_as_expected", "residual_numbers_are_there", "stopping_rule_acts", "anatomy_is_said"),
    ),
    "neuralforecast:mae": Expected(
        16,
        {"temporal": (16, 2, "T")},
        {},
        residual=False,
        stops=False,
        status="contribution",
        why="absolute error, the library's default: signs, not residuals",
        pending=("exact_is_exact", "status_is_as_expected", "anatomy_is_said"),
    ),
    "neuralforecast:normal": Expected(
        16,
        {"temporal": (16, 2, "T")},
        {},
        residual=True,
        why="normal likelihood with a learned scale, of all windows",
        pending=("status_is_as_expected", "residual_numbers_are_there", "stopping_rule_acts", "anatomy_is_said"),
    ),
}
