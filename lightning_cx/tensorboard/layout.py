"""The custom-scalars tab: which curves belong into one chart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lightning_cx.tensorboard import tags

Chart: TypeAlias = tuple[str, list[str]]

_PER_BAND = {
    "residual energy by band, simple (low) to complex (high)": tags.residual_band,
    "fitted fraction by band": tags.fitted_fraction,
    "decay rate by band (per step)": tags.decay_rate,
    "half-life by band (steps)": tags.half_life,
}
_PER_BLOCK = {tags.KERNEL_BLOCK_SHARE, tags.KERNEL_BLOCK_SHARE_LOW}  # followed by the name of a block
MAX_BANDS = 64  # octaves: more levels than atoms


def _everywhere(*of_batch: str) -> list[str]:
    """Tags of the batch, and the same on the probe."""
    return [*of_batch, *map(tags.on_probe, of_batch)]


# Category -> chart -> its kind and tags; a margin chart takes a value with its lower and upper end.
_CHARTS: dict[str, dict[str, Chart]] = {
    "What is being learned": {
        "complexity of residual and gradient (.5 is noise)": (
            "Multiline",
            [tags.RESIDUAL_MEDIAN, tags.GRADIENT_MEDIAN, tags.GRADIENT_MEDIAN_CHANCE_LOW],
        ),
        "residual energy": ("Multiline", [tags.RESIDUAL_ENERGY]),
        "spectral bias index": ("Multiline", [tags.SPECTRAL_BIAS_INDEX]),
        "share of what is learned now that is complex (over .5: mostly noise)": (
            "Multiline",
            [tags.HIGH_COMPLEXITY_DOMINANCE],
        ),
        "whiteness distance of the residual (up to 1: like noise)": ("Multiline", [tags.WHITENESS]),
    },
    "Do simple functions get the strong gradients": {
        "interference and rank correlation (1: they do, 0: no relation)": (
            "Multiline",
            [tags.INTERFERENCE, tags.RANK_CORRELATION, tags.PROBE_INTERFERENCE, tags.PROBE_RANK_CORRELATION],
        ),
        "how often chance would look like that": ("Multiline", [tags.INTERFERENCE_P, tags.PROBE_INTERFERENCE_P]),
    },
    "How the examples agree": {
        "noise scale with 95% interval (examples)": (
            "Margin",
            [tags.NOISE_SCALE, tags.NOISE_SCALE_LOW, tags.NOISE_SCALE_HIGH],
        ),
        "gradient norms of examples: 5%, 50%, 95%": (
            "Multiline",
            [tags.EXAMPLE_NORM_P05, tags.EXAMPLE_NORM_P50, tags.EXAMPLE_NORM_P95],
        ),
        "gradient norm of the batch": ("Multiline", [tags.GRADIENT_NORM]),
        "signal to noise of one example": ("Multiline", [tags.GRADIENT_SNR]),
        "modes that share the gradient": ("Multiline", [tags.PARTICIPATION_RATIO]),
    },
    "Is the noise heavy-tailed": {
        "tail index of single examples with 95% interval (2: Gaussian)": (
            "Margin",
            [tags.TAIL_INDEX, tags.TAIL_INDEX_LOW, tags.TAIL_INDEX_HIGH],
        ),
        "tail index of whole batches with 95% interval (2: Gaussian)": (
            "Margin",
            [tags.TAIL_BATCH_INDEX, tags.TAIL_BATCH_INDEX_LOW, tags.TAIL_BATCH_INDEX_HIGH],
        ),
        "verdict (-1 indeterminate, 0 gaussian, 1 heavy but averages away, 2 stable)": (
            "Multiline",
            [tags.TAIL_VERDICT],
        ),
        "xi of example norms with 95% interval (over 0: power law)": (
            "Margin",
            [tags.TAIL_NORM_XI, tags.TAIL_NORM_XI_LOW, tags.TAIL_NORM_XI_HIGH],
        ),
        "xi of parameter steps with 95% interval (over 0: power law)": (
            "Margin",
            [tags.TAIL_TRAJECTORY_XI, tags.TAIL_TRAJECTORY_XI_LOW, tags.TAIL_TRAJECTORY_XI_HIGH],
        ),
        "power law of the largest, if it is one": ("Multiline", [tags.TAIL_NORM_HILL, tags.TAIL_TRAJECTORY_HILL]),
        "pooled coordinates beside normal ones of the same scales (for comparison with papers)": (
            "Multiline",
            [tags.TAIL_COORDINATE_INDEX, tags.TAIL_COORDINATE_INDEX_CONTROL],
        ),
    },
    "When to stop": {
        "estimated error against the noise-free target, with its error band (lowest: the best weights)": (
            "Margin",
            [tags.STOPPING_RISK, tags.STOPPING_RISK_LOW, tags.STOPPING_RISK_HIGH],
        ),
        "noise in the targets, as estimated at the start": ("Multiline", [tags.STOPPING_NOISE_FLOOR]),
        "share of the complex part that is already fitted (where the noise is)": (
            "Multiline",
            [tags.STOPPING_FITTED_HIGH],
        ),
        "share of the latest learning that went into the complex part (over .5: mostly noise)": (
            "Multiline",
            [tags.STOPPING_DOMINANCE],
        ),
        "p-value of 'only noise is left to learn' (under .05: there is more)": (
            "Multiline",
            [tags.STOPPING_WHITE_P],
        ),
    },
    "Which neurons do work of their own": {
        "shares of neurons: copies, dead, silent": (
            "Multiline",
            [tags.NEURONS_DUPLICATES, tags.NEURONS_DEAD, tags.NEURONS_SILENT],
        ),
        "features that are offered, as a share of what the layer could": (
            "Multiline",
            [tags.NEURONS_RANK, tags.NEURONS_EFFECTIVE_RANK],
        ),
        "alignment with the teacher's neurons, and that of random ones (1: recovered)": (
            "Multiline",
            [tags.NEURONS_ALIGNMENT, tags.NEURONS_ALIGNMENT_CHANCE],
        ),
        "distance from the teacher, relative (0: the same network)": ("Multiline", [tags.NEURONS_TEACHER_DISTANCE]),
    },
    "Is the end in sight": {
        "fall of the loss per step with 95% interval": (
            "Margin",
            [tags.RECOVERY_RATE, tags.RECOVERY_RATE_LOW, tags.RECOVERY_RATE_HIGH],
        ),
        "fall per step, fitted and predicted from the Jacobian": (
            "Multiline",
            [tags.RECOVERY_RATE, tags.RECOVERY_PREDICTED_RATE],
        ),
        "law of the loss (-1 rising, 0 flat, 1 power, 2 exponential with floor, 3 exponential)": (
            "Multiline",
            [tags.RECOVERY_LAW],
        ),
        "share of the parameters that the examples determine (1: the minimum is isolated)": (
            "Multiline",
            [tags.RECOVERY_RANK_SHARE],
        ),
        "share of the loss that a linear step could take away (1: a zero is near, 0: none)": (
            "Multiline",
            [tags.RECOVERY_REMOVABLE],
        ),
    },
    "What the kernel prefers": {
        "decay exponent of its eigenvalues (a trend) and its spread": (
            "Multiline",
            _everywhere(tags.KERNEL_DECAY, tags.KERNEL_DECAY_SPREAD),
        ),
        "directions that the examples pull in, and how sure": (
            "Multiline",
            _everywhere(
                tags.KERNEL_PARTICIPATION_RATIO,
                tags.KERNEL_PARTICIPATION_RATIO_ERROR,
                tags.KERNEL_EFFECTIVE_RANK,
                tags.KERNEL_EFFECTIVE_RANK_ERROR,
            ),
        ),
        "alignment with the target (below the chance line: none; on a batch random labels align too)": (
            "Multiline",
            _everywhere(tags.KERNEL_ALIGNMENT, tags.KERNEL_ALIGNMENT_CHANCE_HIGH),
        ),
        "how early the kernel's modes hold the target (.5: by chance)": (
            "Multiline",
            _everywhere(tags.KERNEL_POWER_AREA, tags.KERNEL_POWER_AREA_CHANCE_HIGH),
        ),
        "share of the descent by block": ("Multiline", _everywhere(tags.KERNEL_BLOCK_SHARE)),
        "what each block surely gives of it (0: nothing is certain)": (
            "Multiline",
            _everywhere(tags.KERNEL_BLOCK_SHARE_LOW),
        ),
    },
    "Is the step size at its limit": {
        "ratio to the edge of stability with 95% interval (1: steps no longer settle)": (
            "Margin",
            [tags.EDGE, tags.EDGE_LOW, tags.EDGE_HIGH],
        ),
        "sharpness: largest curvature of the loss, with 95% interval": (
            "Margin",
            [tags.SHARPNESS, tags.SHARPNESS_LOW, tags.SHARPNESS_HIGH],
        ),
        "largest Gauss-Newton curvature with 95% interval": (
            "Margin",
            [tags.GAUSS_NEWTON, tags.GAUSS_NEWTON_LOW, tags.GAUSS_NEWTON_HIGH],
        ),
        "the same ratio from the Gauss-Newton curvature": ("Multiline", [tags.GAUSS_NEWTON_EDGE]),
    },
    "Would averages, batches or snapshots help against the noise": {
        "loss of the last weights less that of their average, with 95% interval (over 0: average them)": (
            "Margin",
            [tags.AVERAGING_GAIN, tags.AVERAGING_GAIN_LOW, tags.AVERAGING_GAIN_HIGH],
        ),
        "loss of the probe: last weights, and their average": (
            "Multiline",
            [tags.AVERAGING_LOSS_LAST, tags.AVERAGING_LOSS_AVERAGE],
        ),
        "steps that the average covers, and age of the snapshot": (
            "Multiline",
            [tags.AVERAGING_WINDOW, tags.SNAPSHOT_AGE],
        ),
        "speed-up by twice the batch, with 95% interval (2: half the steps, 1: nothing)": (
            "Margin",
            [tags.BATCH_SPEEDUP, tags.BATCH_SPEEDUP_LOW, tags.BATCH_SPEEDUP_HIGH],
        ),
        "gradient noise that SVRG would leave, with 95% interval (over 1: it adds noise)": (
            "Margin",
            [tags.SVRG_RATIO, tags.SVRG_RATIO_LOW, tags.SVRG_RATIO_HIGH],
        ),
        "the same with the best coefficient": ("Multiline", [tags.SVRG_BEST]),
    },
    "How far the parameters have come": {
        "training loss (compare runs at the same one only)": ("Multiline", [tags.TRAJECTORY_LOSS]),
        "distance from the start": ("Multiline", [tags.TRAJECTORY_DISTANCE]),
        "exponent of the distance's growth, of halves and whole (1: straight ahead, .5: random walk)": (
            "Margin",
            [tags.TRAJECTORY_GROWTH, tags.TRAJECTORY_GROWTH_LOW, tags.TRAJECTORY_GROWTH_HIGH],
        ),
        "length of the spanning tree of 64 points of the path": ("Multiline", [tags.TRAJECTORY_TREE]),
        "positive magnitude (1: all points together, 64: none near another)": (
            "Multiline",
            [tags.TRAJECTORY_MAGNITUDE],
        ),
    },
    "Where does training stay": {
        "dwells and escapes so far": ("Multiline", [tags.DWELL_COUNT, tags.DWELL_ESCAPES]),
        "length of the present dwell (steps; 0: none)": ("Multiline", [tags.DWELL_LENGTH]),
        "distance of the present dwell from the beginning": ("Multiline", [tags.DWELL_DISTANCE]),
        "diffusion exponent (0: stays, 1: wanders, 2: drifts)": ("Multiline", [tags.DIFFUSION_EXPONENT]),
        "one-point convexity and its standard error (over 0: the place pulls back)": (
            "Multiline",
            [tags.ONE_POINT_CONVEXITY, tags.ONE_POINT_CONVEXITY_ERROR],
        ),
    },
    "What it costs": {"share of the wall time": ("Multiline", [tags.OVERHEAD])},
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
    for title, (kind, wanted) in charts["What the kernel prefers"].items():
        blocks = [tag for tag in sorted(logged) if tag.startswith(_of_blocks(wanted)) and "/optimizer_" not in tag]
        charts["What the kernel prefers"][title] = (kind, [*wanted, *blocks])
    for title, tag_of in _PER_BAND.items():
        bands = [tag_of(number) for number in range(MAX_BANDS)]
        charts["What is being learned"][title] = ("Multiline", bands)
    series = sorted({tag.rpartition("/")[2] for tag in logged if "/optimizer_" in tag})
    for of_category in charts.values():
        for title, (kind, wanted) in list(of_category.items()):
            if kind == "Multiline":  # the control belongs beside what it controls, one optimizer beside the other
                beside = [*map(tags.shuffled, wanted), *(f"{tag}/{name}" for name in series for tag in wanted)]
                of_category[title] = (kind, [*wanted, *beside])
            else:
                of_category |= {f"{title}, {name}": (kind, [f"{tag}/{name}" for tag in wanted]) for name in series}
    layout: dict[str, dict[str, list]] = {}
    for category, of_category in charts.items():
        for title, (kind, wanted) in of_category.items():
            kept = [tag for tag in wanted if tag in logged]
            if kept and (kind != "Margin" or len(kept) == len(wanted)):
                layout.setdefault(category, {})[title] = [kind, kept]
    return layout


def _of_blocks(wanted: list[str]) -> tuple[str, ...]:
    """Beginnings of the tags of single blocks that belong into a chart."""
    return tuple(f"{tag}/" for tag in wanted if tag in _everywhere(*_PER_BLOCK))
