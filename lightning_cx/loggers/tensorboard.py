"""Put pictures, histograms and the layout into a TensorBoard event file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx.figures import draw, pixels
from lightning_cx.instruments import Picture, Reading, quantities

_LAID_OUT: WeakKeyDictionary[SummaryWriter, set[str]] = WeakKeyDictionary()


def write_reading(experiment: SummaryWriter, reading: Reading, step: int, pictures: bool = False) -> None:
    """Write all of a reading, in a loop of one's own; values that are nan are left out, `reading.refusals` says why.

    Args:
        experiment: The writer of a TensorBoard run.
        reading: What an instrument measured, or a `ResidualWatch` saw.
        step: Step number.
        pictures: Whether to draw the pictures as well: each takes a tenth of a second, so not at every step.
    """
    for tag, value in reading.scalars.items():
        if math.isfinite(value):
            experiment.add_scalar(tag, value, global_step=step)
    write_histograms(experiment, reading.histograms, step)
    write_texts(experiment, reading.texts, step)
    if not _LAID_OUT.setdefault(experiment, set()).issuperset(reading.scalars):
        write_layout(experiment, reading.scalars)
    if pictures:
        write_pictures(experiment, reading.pictures, step)


def write_pictures(experiment: SummaryWriter, pictures: Mapping[str, Picture], step: int) -> None:
    """Draw pictures and write them as images; pyplot and its state are left alone.

    Args:
        experiment: The writer of a TensorBoard run; other loggers' experiments are not taken.
        pictures: Data of the pictures by tag.
        step: Step number.
    """
    for tag, picture in pictures.items():
        experiment.add_image(tag, pixels(draw(picture)), global_step=step, dataformats="HWC")


def write_histograms(experiment: SummaryWriter, histograms: Mapping[str, Tensor], step: int) -> None:
    """Write histograms of the finite values; nothing where none is.

    Args:
        experiment: The writer of a TensorBoard run.
        histograms: Values by tag.
        step: Step number.
    """
    for tag, values in histograms.items():
        finite = values[torch.isfinite(values)]
        if finite.numel():
            experiment.add_histogram(tag, finite, global_step=step)


def write_texts(experiment: SummaryWriter, texts: Mapping[str, str], step: int) -> None:
    """Write markdown onto the text tab.

    Args:
        experiment: The writer of a TensorBoard run.
        texts: Markdown by tag.
        step: Step number.
    """
    for tag, text in texts.items():
        experiment.add_text(tag, text, global_step=step)


def write_layout(experiment: SummaryWriter, there: Iterable[str]) -> None:
    """Write the layout of the custom-scalars tab for the tags that are there, and those written to it before.

    TensorBoard shows the last layout only, and more than one callback may log.

    Args:
        experiment: The writer of a TensorBoard run.
        there: Tags that the run logs.
    """
    tags = _LAID_OUT.setdefault(experiment, set())
    tags.update(there)
    layout = custom_scalars_layout(sorted(tags))
    if layout:
        experiment.add_custom_scalars(layout)


Chart: TypeAlias = tuple[str, list[str]]

_PER_BAND = {
    "residual energy by band, simple (low) to complex (high)": quantities.residual_band,
    "fitted fraction by band": quantities.fitted_fraction,
    "decay rate by band (per step)": quantities.decay_rate,
    "half-life by band (steps)": quantities.half_life,
}
_PER_BLOCK = {quantities.KERNEL_BLOCK_SHARE, quantities.KERNEL_BLOCK_SHARE_LOW}  # followed by the name of a block
MAX_BANDS = 64  # octaves: more levels than atoms


def _everywhere(*of_batch: str) -> list[str]:
    """Tags of the batch, and the same on the probe."""
    return [*of_batch, *map(quantities.on_probe, of_batch)]


# Category -> chart -> its kind and tags; a margin chart takes a value with its lower and upper end.
_CHARTS: dict[str, dict[str, Chart]] = {
    "What is being learned": {
        "complexity of residual and gradient (.5 is noise)": (
            "Multiline",
            [quantities.RESIDUAL_MEDIAN, quantities.GRADIENT_MEDIAN, quantities.GRADIENT_MEDIAN_CHANCE_LOW],
        ),
        "residual energy": ("Multiline", [quantities.RESIDUAL_ENERGY]),
        "spectral bias index": ("Multiline", [quantities.SPECTRAL_BIAS_INDEX]),
        "share of what is learned now that is complex (over .5: mostly noise)": (
            "Multiline",
            [quantities.HIGH_COMPLEXITY_DOMINANCE],
        ),
        "whiteness distance of the residual (up to 1: like noise)": ("Multiline", [quantities.WHITENESS]),
    },
    "Do simple functions get the strong gradients": {
        "interference and rank correlation (1: they do, 0: no relation)": (
            "Multiline",
            [
                quantities.INTERFERENCE,
                quantities.RANK_CORRELATION,
                quantities.PROBE_INTERFERENCE,
                quantities.PROBE_RANK_CORRELATION,
            ],
        ),
        "how often chance would look like that": (
            "Multiline",
            [quantities.INTERFERENCE_P, quantities.PROBE_INTERFERENCE_P],
        ),
    },
    "How the examples agree": {
        "noise scale with 95% interval (examples)": (
            "Margin",
            [quantities.NOISE_SCALE, quantities.NOISE_SCALE_LOW, quantities.NOISE_SCALE_HIGH],
        ),
        "gradient norms of examples: 5%, 50%, 95%": (
            "Multiline",
            [quantities.EXAMPLE_NORM_P05, quantities.EXAMPLE_NORM_P50, quantities.EXAMPLE_NORM_P95],
        ),
        "gradient norm of the batch": ("Multiline", [quantities.GRADIENT_NORM]),
        "signal to noise of one example": ("Multiline", [quantities.GRADIENT_SNR]),
        "modes that share the gradient": ("Multiline", [quantities.PARTICIPATION_RATIO]),
    },
    "Is the noise heavy-tailed": {
        "tail index of single examples with 95% interval (2: Gaussian)": (
            "Margin",
            [quantities.TAIL_INDEX, quantities.TAIL_INDEX_LOW, quantities.TAIL_INDEX_HIGH],
        ),
        "tail index of whole batches with 95% interval (2: Gaussian)": (
            "Margin",
            [quantities.TAIL_BATCH_INDEX, quantities.TAIL_BATCH_INDEX_LOW, quantities.TAIL_BATCH_INDEX_HIGH],
        ),
        "verdict (-1 indeterminate, 0 gaussian, 1 heavy but averages away, 2 stable)": (
            "Multiline",
            [quantities.TAIL_VERDICT],
        ),
        "xi of example norms with 95% interval (over 0: power law)": (
            "Margin",
            [quantities.TAIL_NORM_XI, quantities.TAIL_NORM_XI_LOW, quantities.TAIL_NORM_XI_HIGH],
        ),
        "xi of parameter steps with 95% interval (over 0: power law)": (
            "Margin",
            [quantities.TAIL_TRAJECTORY_XI, quantities.TAIL_TRAJECTORY_XI_LOW, quantities.TAIL_TRAJECTORY_XI_HIGH],
        ),
        "power law of the largest, if it is one": (
            "Multiline",
            [quantities.TAIL_NORM_HILL, quantities.TAIL_TRAJECTORY_HILL],
        ),
        "pooled coordinates beside normal ones of the same scales (for comparison with papers)": (
            "Multiline",
            [quantities.TAIL_COORDINATE_INDEX, quantities.TAIL_COORDINATE_INDEX_CONTROL],
        ),
    },
    "When to stop": {
        "estimated error against the noise-free target, with its error band (lowest: the best weights)": (
            "Margin",
            [quantities.STOPPING_RISK, quantities.STOPPING_RISK_LOW, quantities.STOPPING_RISK_HIGH],
        ),
        "noise in the targets, as estimated at the start": ("Multiline", [quantities.STOPPING_NOISE_FLOOR]),
        "share of the complex part that is already fitted (where the noise is)": (
            "Multiline",
            [quantities.STOPPING_FITTED_HIGH],
        ),
        "share of the latest learning that went into the complex part (over .5: mostly noise)": (
            "Multiline",
            [quantities.STOPPING_DOMINANCE],
        ),
        "p-value of 'only noise is left to learn' (under .05: there is more)": (
            "Multiline",
            [quantities.STOPPING_WHITE_P],
        ),
    },
    "Which neurons do work of their own": {
        "shares of neurons: copies, dead, silent": (
            "Multiline",
            [quantities.NEURONS_DUPLICATES, quantities.NEURONS_DEAD, quantities.NEURONS_SILENT],
        ),
        "features that are offered, as a share of what the layer could": (
            "Multiline",
            [quantities.NEURONS_RANK, quantities.NEURONS_EFFECTIVE_RANK],
        ),
        "alignment with the teacher's neurons, and that of random ones (1: recovered)": (
            "Multiline",
            [quantities.NEURONS_ALIGNMENT, quantities.NEURONS_ALIGNMENT_CHANCE],
        ),
        "distance from the teacher, relative (0: the same network)": (
            "Multiline",
            [quantities.NEURONS_TEACHER_DISTANCE],
        ),
    },
    "Is the end in sight": {
        "fall of the loss per step with 95% interval": (
            "Margin",
            [quantities.RECOVERY_RATE, quantities.RECOVERY_RATE_LOW, quantities.RECOVERY_RATE_HIGH],
        ),
        "fall per step, fitted and predicted from the Jacobian": (
            "Multiline",
            [quantities.RECOVERY_RATE, quantities.RECOVERY_PREDICTED_RATE],
        ),
        "law of the loss (-1 rising, 0 flat, 1 power, 2 exponential with floor, 3 exponential)": (
            "Multiline",
            [quantities.RECOVERY_LAW],
        ),
        "share of the parameters that the examples determine (1: the minimum is isolated)": (
            "Multiline",
            [quantities.RECOVERY_RANK_SHARE],
        ),
        "share of the loss that a linear step could take away (1: a zero is near, 0: none)": (
            "Multiline",
            [quantities.RECOVERY_REMOVABLE],
        ),
    },
    "What the kernel prefers": {
        "decay exponent of its eigenvalues (a trend) and its spread": (
            "Multiline",
            _everywhere(quantities.KERNEL_DECAY, quantities.KERNEL_DECAY_SPREAD),
        ),
        "directions that the examples pull in, and how sure": (
            "Multiline",
            _everywhere(
                quantities.KERNEL_PARTICIPATION_RATIO,
                quantities.KERNEL_PARTICIPATION_RATIO_ERROR,
                quantities.KERNEL_EFFECTIVE_RANK,
                quantities.KERNEL_EFFECTIVE_RANK_ERROR,
            ),
        ),
        "alignment with the target (below the chance line: none; on a batch random labels align too)": (
            "Multiline",
            _everywhere(quantities.KERNEL_ALIGNMENT, quantities.KERNEL_ALIGNMENT_CHANCE_HIGH),
        ),
        "how early the kernel's modes hold the target (.5: by chance)": (
            "Multiline",
            _everywhere(quantities.KERNEL_POWER_AREA, quantities.KERNEL_POWER_AREA_CHANCE_HIGH),
        ),
        "share of the descent by block": ("Multiline", _everywhere(quantities.KERNEL_BLOCK_SHARE)),
        "what each block surely gives of it (0: nothing is certain)": (
            "Multiline",
            _everywhere(quantities.KERNEL_BLOCK_SHARE_LOW),
        ),
    },
    "Is the step size at its limit": {
        "ratio to the edge of stability with 95% interval (1: steps no longer settle)": (
            "Margin",
            [quantities.EDGE, quantities.EDGE_LOW, quantities.EDGE_HIGH],
        ),
        "sharpness: largest curvature of the loss, with 95% interval": (
            "Margin",
            [quantities.SHARPNESS, quantities.SHARPNESS_LOW, quantities.SHARPNESS_HIGH],
        ),
        "largest Gauss-Newton curvature with 95% interval": (
            "Margin",
            [quantities.GAUSS_NEWTON, quantities.GAUSS_NEWTON_LOW, quantities.GAUSS_NEWTON_HIGH],
        ),
        "the same ratio from the Gauss-Newton curvature": ("Multiline", [quantities.GAUSS_NEWTON_EDGE]),
    },
    "Would averages, batches or snapshots help against the noise": {
        "loss of the last weights less that of their average, with 95% interval (over 0: average them)": (
            "Margin",
            [quantities.AVERAGING_GAIN, quantities.AVERAGING_GAIN_LOW, quantities.AVERAGING_GAIN_HIGH],
        ),
        "loss of the probe: last weights, and their average": (
            "Multiline",
            [quantities.AVERAGING_LOSS_LAST, quantities.AVERAGING_LOSS_AVERAGE],
        ),
        "steps that the average covers, and age of the snapshot": (
            "Multiline",
            [quantities.AVERAGING_WINDOW, quantities.SNAPSHOT_AGE],
        ),
        "speed-up by twice the batch, with 95% interval (2: half the steps, 1: nothing)": (
            "Margin",
            [quantities.BATCH_SPEEDUP, quantities.BATCH_SPEEDUP_LOW, quantities.BATCH_SPEEDUP_HIGH],
        ),
        "gradient noise that SVRG would leave, with 95% interval (over 1: it adds noise)": (
            "Margin",
            [quantities.SVRG_RATIO, quantities.SVRG_RATIO_LOW, quantities.SVRG_RATIO_HIGH],
        ),
        "the same with the best coefficient": ("Multiline", [quantities.SVRG_BEST]),
    },
    "How far the parameters have come": {
        "training loss (compare runs at the same one only)": ("Multiline", [quantities.TRAJECTORY_LOSS]),
        "distance from the start": ("Multiline", [quantities.TRAJECTORY_DISTANCE]),
        "exponent of the distance's growth, of halves and whole (1: straight ahead, .5: random walk)": (
            "Margin",
            [quantities.TRAJECTORY_GROWTH, quantities.TRAJECTORY_GROWTH_LOW, quantities.TRAJECTORY_GROWTH_HIGH],
        ),
        "length of the spanning tree of 64 points of the path": ("Multiline", [quantities.TRAJECTORY_TREE]),
        "positive magnitude (1: all points together, 64: none near another)": (
            "Multiline",
            [quantities.TRAJECTORY_MAGNITUDE],
        ),
    },
    "Where does training stay": {
        "dwells and escapes so far": ("Multiline", [quantities.DWELL_COUNT, quantities.DWELL_ESCAPES]),
        "length of the present dwell (steps; 0: none)": ("Multiline", [quantities.DWELL_LENGTH]),
        "distance of the present dwell from the beginning": ("Multiline", [quantities.DWELL_DISTANCE]),
        "diffusion exponent (0: stays, 1: wanders, 2: drifts)": ("Multiline", [quantities.DIFFUSION_EXPONENT]),
        "one-point convexity and its standard error (over 0: the place pulls back)": (
            "Multiline",
            [quantities.ONE_POINT_CONVEXITY, quantities.ONE_POINT_CONVEXITY_ERROR],
        ),
    },
    "What it costs": {"share of the wall time": ("Multiline", [quantities.OVERHEAD])},
}


def custom_scalars_layout(there: Iterable[str]) -> dict[str, dict[str, list]]:
    """Lay out the custom-scalars tab for the tags that are there, as `SummaryWriter.add_custom_scalars` takes it.

    Args:
        there: Tags that the run logs.

    Returns:
        Charts by category; a chart lists only tags that are there, and is left out where none is. A margin chart
        needs all three of its tags.

    Example:
        >>> custom_scalars_layout(["complexity/overhead", "train_loss"])
        {'What it costs': {'share of the wall time': ['Multiline', ['complexity/overhead']]}}
    """
    logged = set(there)
    charts = {category: dict(of_category) for category, of_category in _CHARTS.items()}
    names = _names_of_others(logged, [tag for of in charts.values() for _, wanted in of.values() for tag in wanted])
    for title, (kind, wanted) in charts["What the kernel prefers"].items():
        begins, others = _of_blocks(wanted), tuple(f"-{name}" for name in names)
        blocks = [tag for tag in sorted(logged) if tag.startswith(begins) and not tag.endswith(others)]
        charts["What the kernel prefers"][title] = (kind, [*wanted, *blocks])
    for title, tag_of in _PER_BAND.items():
        bands = [tag_of(number) for number in range(MAX_BANDS)]
        charts["What is being learned"][title] = ("Multiline", bands)
    for of_category in charts.values():
        for title, (kind, wanted) in list(of_category.items()):
            of_others = {name: [quantities.suffixed(tag, name) for tag in wanted] for name in names}
            if kind == "Multiline":  # the control belongs beside what it controls, one optimizer beside the other
                beside = [*map(quantities.shuffled, wanted), *(tag for tags in of_others.values() for tag in tags)]
                of_category[title] = (kind, [*wanted, *beside])
            else:
                of_category |= {f"{title}, {name}": (kind, tags) for name, tags in of_others.items()}
    layout: dict[str, dict[str, list]] = {}
    for category, of_category in charts.items():
        for title, (kind, wanted) in of_category.items():
            kept = [tag for tag in wanted if tag in logged]
            if kept and (kind != "Margin" or len(kept) == len(wanted)):
                layout.setdefault(category, {})[title] = [kind, kept]
    return layout


def _names_of_others(logged: set[str], tags: list[str]) -> list[str]:
    """Return what tags end in that belong to another optimizer, backward, instrument or callback."""
    named = {tag.removeprefix(f"{one}-") for one in tags for tag in logged if tag.startswith(f"{one}-")}
    return sorted(named | {f"optimizer_{tag.partition('-optimizer_')[2]}" for tag in logged if "-optimizer_" in tag})


def _of_blocks(wanted: list[str]) -> tuple[str, ...]:
    """Beginnings of the tags of single blocks that belong into a chart."""
    return tuple(f"{tag}/" for tag in wanted if tag in _everywhere(*_PER_BLOCK))
