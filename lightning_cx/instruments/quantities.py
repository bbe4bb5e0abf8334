"""Every curve that lightning_cx logs: its tag, its chart, and what the documentation says of it.

Tags are constants; `CHARTS` arranges them in TensorBoard's custom-scalars tab; `CURVES` holds the sentences of the
tables in README.md, which `make tables` makes from it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

OVERHEAD = "complexity/overhead"

GRADIENT_NORM = "gradient/norm"
NOISE_SCALE = "gradient/noise_scale"
NOISE_SCALE_LOW = "gradient/noise_scale_low"
NOISE_SCALE_HIGH = "gradient/noise_scale_high"
GRADIENT_SNR = "gradient/snr"
EXAMPLE_NORM_P05 = "gradient/example_norm_p05"
EXAMPLE_NORM_P50 = "gradient/example_norm_p50"
EXAMPLE_NORM_P95 = "gradient/example_norm_p95"
EXAMPLE_NORMS = "gradient/example_norms"
PARTICIPATION_RATIO = "gradient/participation_ratio"
GRADIENT_SPECTRUM = "gradient/spectrum"
INTERFERENCE = "gradient/interference"
INTERFERENCE_P = "gradient/interference_p"
RANK_CORRELATION = "gradient/rank_correlation"
PROBE_INTERFERENCE = "gradient/probe_interference"
PROBE_INTERFERENCE_P = "gradient/probe_interference_p"
PROBE_RANK_CORRELATION = "gradient/probe_rank_correlation"
PROBE_GRADIENT_SPECTRUM = "gradient/probe_spectrum"

GRADIENT_MEDIAN = "complexity/gradient_median"
GRADIENT_MEDIAN_CHANCE_LOW = "complexity/gradient_median_chance_low"
RESIDUAL_ENERGY = "complexity/residual_energy"
RESIDUAL_MEDIAN = "complexity/residual_median"
SPECTRAL_BIAS_INDEX = "complexity/spectral_bias_index"
HIGH_COMPLEXITY_DOMINANCE = "complexity/high_dominance"
WHITENESS = "complexity/whiteness_distance"
RESIDUAL_SPECTROGRAM = "complexity/residual_spectrogram"
BAND_DECAY = "complexity/band_decay"

TAIL_INDEX = "tail/index"
TAIL_INDEX_LOW = "tail/index_low"
TAIL_INDEX_HIGH = "tail/index_high"
TAIL_BATCH_INDEX = "tail/batch_index"
TAIL_BATCH_INDEX_LOW = "tail/batch_index_low"
TAIL_BATCH_INDEX_HIGH = "tail/batch_index_high"
TAIL_VERDICT = "tail/verdict"
TAIL_NORM_XI = "tail/norm_xi"
TAIL_NORM_XI_LOW = "tail/norm_xi_low"
TAIL_NORM_XI_HIGH = "tail/norm_xi_high"
TAIL_NORM_HILL = "tail/norm_hill"
TAIL_COORDINATE_INDEX = "tail/coordinate_index"
TAIL_COORDINATE_INDEX_CONTROL = "tail/coordinate_index_control"
TAIL_TRAJECTORY_XI = "tail/trajectory_xi"
TAIL_TRAJECTORY_XI_LOW = "tail/trajectory_xi_low"
TAIL_TRAJECTORY_XI_HIGH = "tail/trajectory_xi_high"
TAIL_TRAJECTORY_HILL = "tail/trajectory_hill"
TAIL_QUANTILES = "tail/quantiles"
TAIL_SURVIVAL = "tail/survival"

STOPPING_RISK = "stopping/risk"
STOPPING_RISK_LOW = "stopping/risk_low"
STOPPING_RISK_HIGH = "stopping/risk_high"
STOPPING_NOISE_FLOOR = "stopping/noise_floor"
STOPPING_FITTED_HIGH = "stopping/fitted_high"
STOPPING_DOMINANCE = "stopping/high_dominance"
STOPPING_WHITE_P = "stopping/white_p"
STOPPING_CURVE = "stopping/curve"

RECOVERY_LAW = "recovery/law"
RECOVERY_RATE = "recovery/loss_rate"
RECOVERY_RATE_LOW = "recovery/loss_rate_low"
RECOVERY_RATE_HIGH = "recovery/loss_rate_high"
RECOVERY_PREDICTED_RATE = "recovery/predicted_rate"
RECOVERY_RANK_SHARE = "recovery/rank_share"
RECOVERY_REMOVABLE = "recovery/removable_share"
RECOVERY_VERDICT = "recovery/verdict"

NEURONS_DUPLICATES = "neurons/duplicates"
NEURONS_DEAD = "neurons/dead"
NEURONS_SILENT = "neurons/silent"
NEURONS_RANK = "neurons/rank_share"
NEURONS_EFFECTIVE_RANK = "neurons/effective_rank_share"
NEURONS_ALIGNMENT = "neurons/alignment"
NEURONS_ALIGNMENT_CHANCE = "neurons/alignment_chance"
NEURONS_TEACHER_DISTANCE = "neurons/teacher_distance"
NEURONS_CARD = "neurons/layers"
KERNEL_DECAY = "kernel/decay"
KERNEL_DECAY_SPREAD = "kernel/decay_spread"
KERNEL_PARTICIPATION_RATIO = "kernel/participation_ratio"
KERNEL_PARTICIPATION_RATIO_ERROR = "kernel/participation_ratio_error"
KERNEL_EFFECTIVE_RANK = "kernel/effective_rank"
KERNEL_EFFECTIVE_RANK_ERROR = "kernel/effective_rank_error"
KERNEL_ALIGNMENT = "kernel/alignment"
KERNEL_ALIGNMENT_CHANCE_HIGH = "kernel/alignment_chance_high"
KERNEL_POWER_AREA = "kernel/power_area"
KERNEL_POWER_AREA_CHANCE_HIGH = "kernel/power_area_chance_high"
KERNEL_BLOCK_SHARE = "kernel/block_share"
KERNEL_BLOCK_SHARE_LOW = "kernel/block_share_low"
KERNEL_SPECTRUM = "kernel/spectrum"

SHARPNESS = "step_size/sharpness"
SHARPNESS_LOW = "step_size/sharpness_low"
SHARPNESS_HIGH = "step_size/sharpness_high"
EDGE = "step_size/edge"
EDGE_LOW = "step_size/edge_low"
EDGE_HIGH = "step_size/edge_high"
GAUSS_NEWTON = "step_size/gauss_newton"
GAUSS_NEWTON_LOW = "step_size/gauss_newton_low"
GAUSS_NEWTON_HIGH = "step_size/gauss_newton_high"
GAUSS_NEWTON_EDGE = "step_size/gauss_newton_edge"

AVERAGING_GAIN = "averaging/gain"
AVERAGING_GAIN_LOW = "averaging/gain_low"
AVERAGING_GAIN_HIGH = "averaging/gain_high"
AVERAGING_LOSS_LAST = "averaging/loss_last"
AVERAGING_LOSS_AVERAGE = "averaging/loss_average"
AVERAGING_WINDOW = "averaging/window"
BATCH_SPEEDUP = "averaging/batch_speedup"
BATCH_SPEEDUP_LOW = "averaging/batch_speedup_low"
BATCH_SPEEDUP_HIGH = "averaging/batch_speedup_high"
SVRG_RATIO = "averaging/svrg_ratio"
SVRG_RATIO_LOW = "averaging/svrg_ratio_low"
SVRG_RATIO_HIGH = "averaging/svrg_ratio_high"
SVRG_BEST = "averaging/svrg_best"
SNAPSHOT_AGE = "averaging/snapshot_age"

TRAJECTORY_LOSS = "trajectory/training_loss"
TRAJECTORY_DISTANCE = "trajectory/distance_from_start"
TRAJECTORY_GROWTH = "trajectory/distance_growth"
TRAJECTORY_GROWTH_LOW = "trajectory/distance_growth_low"
TRAJECTORY_GROWTH_HIGH = "trajectory/distance_growth_high"
TRAJECTORY_TREE = "trajectory/spanning_tree_length"
TRAJECTORY_MAGNITUDE = "trajectory/positive_magnitude"

DWELL_COUNT = "trajectory/dwell_count"
DWELL_ESCAPES = "trajectory/dwell_escapes"
DWELL_LENGTH = "trajectory/dwell_length"
DWELL_DISTANCE = "trajectory/dwell_distance"
DIFFUSION_EXPONENT = "trajectory/diffusion_exponent"
ONE_POINT_CONVEXITY = "trajectory/one_point_convexity"
ONE_POINT_CONVEXITY_ERROR = "trajectory/one_point_convexity_error"
DWELLS = "trajectory/dwells"


def residual_band(number: int) -> str:
    """Tag of the residual energy in octave band `number`; band 0 is the mean."""
    return f"complexity/residual_band_{number:02d}"


def fitted_fraction(number: int) -> str:
    """Tag of the fitted fraction of octave band `number`."""
    return f"complexity/fitted_fraction_{number:02d}"


def decay_rate(number: int) -> str:
    """Tag of the decay rate of octave band `number`."""
    return f"complexity/decay_rate_{number:02d}"


def half_life(number: int) -> str:
    """Tag of the half-life of octave band `number`."""
    return f"complexity/half_life_{number:02d}"


def of_layer(tag: str, layer: str) -> str:
    """Tag of the same quantity for one layer alone.

    No tag may be a folder that holds another: MLflow's file store and others that write a file for each tag lose all of
    a batch of values then. So layers lie in a folder beside the quantity, and everything else is a suffix.
    """
    return f"{tag}_layers/{layer}"


def of_block(tag: str, block: str) -> str:
    """Tag of a share of one block of the network; the quantity has no value of its own."""
    return f"{tag}/{block}"


def suffixed(tag: str, name: str) -> str:
    """Tag of the same quantity of another instrument, callback, optimizer or backward of that name."""
    return f"{tag}-{name}" if name else tag


def on_probe(tag: str) -> str:
    """Tag of the same quantity of the kernel, measured on the probe."""
    return tag.replace("/", "/probe_", 1)


def shuffled(tag: str) -> str:
    """Tag of the same quantity with the examples shuffled: the control."""
    return f"{tag}_shuffled"


class Series(NamedTuple):
    """Which backward of a batch a number belongs to.

    Attributes:
        optimizer: Number of the optimizer whose step it feeds.
        backward: Number of the backward, of those that feed the same step.

    Example:
        >>> Series().of("gradient/norm"), Series(1).of("gradient/norm"), Series(0, 1).of("gradient/norm")
        ('gradient/norm', 'gradient/norm-optimizer_1', 'gradient/norm-optimizer_0-backward_1')
    """

    optimizer: int = 0
    backward: int = 0

    @property
    def name(self) -> str:
        """Short name; empty for the first."""
        if not any(self):
            return ""
        return f"optimizer_{self.optimizer}" + (f"-backward_{self.backward}" if self.backward else "")

    def of(self, tag: str) -> str:
        """Tag of a quantity in this series."""
        return suffixed(tag, self.name)


Chart: TypeAlias = tuple[str, list[str]]


def everywhere(*of_batch: str) -> list[str]:
    """Tags of the batch, and the same on the probe."""
    return [*of_batch, *map(on_probe, of_batch)]


PER_BAND = {
    "residual energy by band, simple (low) to complex (high)": residual_band,
    "fitted fraction by band": fitted_fraction,
    "decay rate by band (per step)": decay_rate,
    "half-life by band (steps)": half_life,
}
PER_BLOCK = {KERNEL_BLOCK_SHARE, KERNEL_BLOCK_SHARE_LOW}  # followed by the name of a block
MAX_BANDS = 64  # octaves: more levels than atoms


# Category -> chart -> its kind and tags; a margin chart takes a value with its lower and upper end.
CHARTS: dict[str, dict[str, Chart]] = {
    "What is being learned": {
        "complexity of residual and gradient (.5 is noise)": (
            "Multiline",
            [RESIDUAL_MEDIAN, GRADIENT_MEDIAN, GRADIENT_MEDIAN_CHANCE_LOW],
        ),
        "residual energy": ("Multiline", [RESIDUAL_ENERGY]),
        "spectral bias index": ("Multiline", [SPECTRAL_BIAS_INDEX]),
        "share of what is learned now that is complex (over .5: mostly noise)": (
            "Multiline",
            [HIGH_COMPLEXITY_DOMINANCE],
        ),
        "whiteness distance of the residual (up to 1: like noise)": ("Multiline", [WHITENESS]),
    },
    "Do simple functions get the strong gradients": {
        "interference and rank correlation (1: they do, 0: no relation)": (
            "Multiline",
            [
                INTERFERENCE,
                RANK_CORRELATION,
                PROBE_INTERFERENCE,
                PROBE_RANK_CORRELATION,
            ],
        ),
        "how often chance would look like that": (
            "Multiline",
            [INTERFERENCE_P, PROBE_INTERFERENCE_P],
        ),
    },
    "How the examples agree": {
        "noise scale with 95% interval (examples)": (
            "Margin",
            [NOISE_SCALE, NOISE_SCALE_LOW, NOISE_SCALE_HIGH],
        ),
        "gradient norms of examples: 5%, 50%, 95%": (
            "Multiline",
            [EXAMPLE_NORM_P05, EXAMPLE_NORM_P50, EXAMPLE_NORM_P95],
        ),
        "gradient norm of the batch": ("Multiline", [GRADIENT_NORM]),
        "signal to noise of one example": ("Multiline", [GRADIENT_SNR]),
        "modes that share the gradient": ("Multiline", [PARTICIPATION_RATIO]),
    },
    "Is the noise heavy-tailed": {
        "tail index of single examples with 95% interval (2: Gaussian)": (
            "Margin",
            [TAIL_INDEX, TAIL_INDEX_LOW, TAIL_INDEX_HIGH],
        ),
        "tail index of whole batches with 95% interval (2: Gaussian)": (
            "Margin",
            [TAIL_BATCH_INDEX, TAIL_BATCH_INDEX_LOW, TAIL_BATCH_INDEX_HIGH],
        ),
        "verdict (-1 indeterminate, 0 gaussian, 1 heavy but averages away, 2 stable)": (
            "Multiline",
            [TAIL_VERDICT],
        ),
        "xi of example norms with 95% interval (over 0: power law)": (
            "Margin",
            [TAIL_NORM_XI, TAIL_NORM_XI_LOW, TAIL_NORM_XI_HIGH],
        ),
        "xi of parameter steps with 95% interval (over 0: power law)": (
            "Margin",
            [TAIL_TRAJECTORY_XI, TAIL_TRAJECTORY_XI_LOW, TAIL_TRAJECTORY_XI_HIGH],
        ),
        "power law of the largest, if it is one": (
            "Multiline",
            [TAIL_NORM_HILL, TAIL_TRAJECTORY_HILL],
        ),
        "pooled coordinates beside normal ones of the same scales (for comparison with papers)": (
            "Multiline",
            [TAIL_COORDINATE_INDEX, TAIL_COORDINATE_INDEX_CONTROL],
        ),
    },
    "When to stop": {
        "estimated error against the noise-free target, with its error band (lowest: the best weights)": (
            "Margin",
            [STOPPING_RISK, STOPPING_RISK_LOW, STOPPING_RISK_HIGH],
        ),
        "noise in the targets, as estimated at the start": ("Multiline", [STOPPING_NOISE_FLOOR]),
        "share of the complex part that is already fitted (where the noise is)": (
            "Multiline",
            [STOPPING_FITTED_HIGH],
        ),
        "share of the latest learning that went into the complex part (over .5: mostly noise)": (
            "Multiline",
            [STOPPING_DOMINANCE],
        ),
        "p-value of 'only noise is left to learn' (under .05: there is more)": (
            "Multiline",
            [STOPPING_WHITE_P],
        ),
    },
    "Which neurons do work of their own": {
        "shares of neurons: copies, dead, silent": (
            "Multiline",
            [NEURONS_DUPLICATES, NEURONS_DEAD, NEURONS_SILENT],
        ),
        "features that are offered, as a share of what the layer could": (
            "Multiline",
            [NEURONS_RANK, NEURONS_EFFECTIVE_RANK],
        ),
        "alignment with the teacher's neurons, and that of random ones (1: recovered)": (
            "Multiline",
            [NEURONS_ALIGNMENT, NEURONS_ALIGNMENT_CHANCE],
        ),
        "distance from the teacher, relative (0: the same network)": (
            "Multiline",
            [NEURONS_TEACHER_DISTANCE],
        ),
    },
    "Is the end in sight": {
        "fall of the loss per step with 95% interval": (
            "Margin",
            [RECOVERY_RATE, RECOVERY_RATE_LOW, RECOVERY_RATE_HIGH],
        ),
        "fall per step, fitted and predicted from the Jacobian": (
            "Multiline",
            [RECOVERY_RATE, RECOVERY_PREDICTED_RATE],
        ),
        "law of the loss (-1 rising, 0 flat, 1 power, 2 exponential with floor, 3 exponential)": (
            "Multiline",
            [RECOVERY_LAW],
        ),
        "share of the parameters that the examples determine (1: the minimum is isolated)": (
            "Multiline",
            [RECOVERY_RANK_SHARE],
        ),
        "share of the loss that a linear step could take away (1: a zero is near, 0: none)": (
            "Multiline",
            [RECOVERY_REMOVABLE],
        ),
    },
    "What the kernel prefers": {
        "decay exponent of its eigenvalues (a trend) and its spread": (
            "Multiline",
            everywhere(KERNEL_DECAY, KERNEL_DECAY_SPREAD),
        ),
        "directions that the examples pull in, and how sure": (
            "Multiline",
            everywhere(
                KERNEL_PARTICIPATION_RATIO,
                KERNEL_PARTICIPATION_RATIO_ERROR,
                KERNEL_EFFECTIVE_RANK,
                KERNEL_EFFECTIVE_RANK_ERROR,
            ),
        ),
        "alignment with the target (below the chance line: none; on a batch random labels align too)": (
            "Multiline",
            everywhere(KERNEL_ALIGNMENT, KERNEL_ALIGNMENT_CHANCE_HIGH),
        ),
        "how early the kernel's modes hold the target (.5: by chance)": (
            "Multiline",
            everywhere(KERNEL_POWER_AREA, KERNEL_POWER_AREA_CHANCE_HIGH),
        ),
        "share of the descent by block": ("Multiline", everywhere(KERNEL_BLOCK_SHARE)),
        "what each block surely gives of it (0: nothing is certain)": (
            "Multiline",
            everywhere(KERNEL_BLOCK_SHARE_LOW),
        ),
    },
    "Is the step size at its limit": {
        "ratio to the edge of stability with 95% interval (1: steps no longer settle)": (
            "Margin",
            [EDGE, EDGE_LOW, EDGE_HIGH],
        ),
        "sharpness: largest curvature of the loss, with 95% interval": (
            "Margin",
            [SHARPNESS, SHARPNESS_LOW, SHARPNESS_HIGH],
        ),
        "largest Gauss-Newton curvature with 95% interval": (
            "Margin",
            [GAUSS_NEWTON, GAUSS_NEWTON_LOW, GAUSS_NEWTON_HIGH],
        ),
        "the same ratio from the Gauss-Newton curvature": ("Multiline", [GAUSS_NEWTON_EDGE]),
    },
    "Would averages, batches or snapshots help against the noise": {
        "loss of the last weights less that of their average, with 95% interval (over 0: average them)": (
            "Margin",
            [AVERAGING_GAIN, AVERAGING_GAIN_LOW, AVERAGING_GAIN_HIGH],
        ),
        "loss of the probe: last weights, and their average": (
            "Multiline",
            [AVERAGING_LOSS_LAST, AVERAGING_LOSS_AVERAGE],
        ),
        "steps that the average covers, and age of the snapshot": (
            "Multiline",
            [AVERAGING_WINDOW, SNAPSHOT_AGE],
        ),
        "speed-up by twice the batch, with 95% interval (2: half the steps, 1: nothing)": (
            "Margin",
            [BATCH_SPEEDUP, BATCH_SPEEDUP_LOW, BATCH_SPEEDUP_HIGH],
        ),
        "gradient noise that SVRG would leave, with 95% interval (over 1: it adds noise)": (
            "Margin",
            [SVRG_RATIO, SVRG_RATIO_LOW, SVRG_RATIO_HIGH],
        ),
        "the same with the best coefficient": ("Multiline", [SVRG_BEST]),
    },
    "How far the parameters have come": {
        "training loss (compare runs at the same one only)": ("Multiline", [TRAJECTORY_LOSS]),
        "distance from the start": ("Multiline", [TRAJECTORY_DISTANCE]),
        "exponent of the distance's growth, of halves and whole (1: straight ahead, .5: random walk)": (
            "Margin",
            [TRAJECTORY_GROWTH, TRAJECTORY_GROWTH_LOW, TRAJECTORY_GROWTH_HIGH],
        ),
        "length of the spanning tree of 64 points of the path": ("Multiline", [TRAJECTORY_TREE]),
        "positive magnitude (1: all points together, 64: none near another)": (
            "Multiline",
            [TRAJECTORY_MAGNITUDE],
        ),
    },
    "Where does training stay": {
        "dwells and escapes so far": ("Multiline", [DWELL_COUNT, DWELL_ESCAPES]),
        "length of the present dwell (steps; 0: none)": ("Multiline", [DWELL_LENGTH]),
        "distance of the present dwell from the beginning": ("Multiline", [DWELL_DISTANCE]),
        "diffusion exponent (0: stays, 1: wanders, 2: drifts)": ("Multiline", [DIFFUSION_EXPONENT]),
        "one-point convexity and its standard error (over 0: the place pulls back)": (
            "Multiline",
            [ONE_POINT_CONVEXITY, ONE_POINT_CONVEXITY_ERROR],
        ),
    },
    "What it costs": {"share of the wall time": ("Multiline", [OVERHEAD])},
}


@dataclass(frozen=True)
class Curve:
    """What the documentation says of a tag, or of tags that are read together: one row of its table.

    Attributes:
        tags: The tags; empty where they depend on a band, a layer or the user's choice.
        says: What the number tells.
        advice: What to do with it.
        shown_as: Markdown of the first column; empty for the tag with the ends of its interval.
    """

    tags: tuple[str, ...]
    says: str
    advice: str
    shown_as: str = ""

    @property
    def row(self) -> str:
        """The row as Markdown.

        Example:
            >>> Curve((NOISE_SCALE, NOISE_SCALE_LOW), "how noisy", "take more").row
            '| `gradient/noise_scale`, `_low` | how noisy | take more |'
        """
        first, *ends = self.tags or ("",)
        shown = ", ".join([f"`{first}`", *(f"`{end.removeprefix(first)}`" for end in ends)])
        return f"| {self.shown_as or shown} | {self.says} | {self.advice} |"


# The tables of the documentation by name; README.md holds each between two comments, see `with_tables`.
CURVES: dict[str, tuple[Curve, ...]] = {
    "default": (
        Curve(
            (RESIDUAL_MEDIAN,),
            "complexity of what is still unlearned",
            (
                "rises as structure is learned; once it reaches .5, what is left looks like noise: stop, "
                "regularise, or check labels"
            ),
        ),
        Curve(
            (RESIDUAL_ENERGY,),
            "how much is still unlearned, per example",
            "still falling while the median is at .5: the network is memorising",
        ),
        Curve(
            (),
            "the same, by octave of complexity; 00 is the mean",
            "compare bands that share a chart in the custom-scalars tab",
            shown_as="`complexity/residual_band_00` …",
        ),
        Curve(
            (SPECTRAL_BIAS_INDEX,),
            (
                "1: everything learned by half-time was the simple part; 0: no preference; below 0: the complex "
                "part first"
            ),
            (
                "near 0 on real data: the features do not order the target (see below), or the architecture has "
                "no such bias (random Fourier features, for example)"
            ),
        ),
        Curve(
            (HIGH_COMPLEXITY_DOMINANCE,),
            "share of what was learned over the last five measurements that is complex",
            (
                "above .5, most of what is being fitted is the complex part; if the low bands no longer change, "
                "that is noise"
            ),
        ),
        Curve(
            (WHITENESS,),
            (
                "how far the residual is from white noise, in units of the distance that white noise stays below"
                " in 95% of cases"
            ),
            "up to 1: what is left cannot be distinguished from noise",
        ),
        Curve(
            (GRADIENT_MEDIAN,),
            "complexity of what this batch's gradient changes",
            "low: similar examples pull together; at .5, each example pulls for itself",
        ),
        Curve(
            (GRADIENT_MEDIAN_CHANCE_LOW,),
            "null: if examples are paired with gradients at random, the median is above this line 97.5% of the time",
            "a gradient median above it is no evidence of structure",
        ),
        Curve(
            (
                NOISE_SCALE,
                NOISE_SCALE_LOW,
                NOISE_SCALE_HIGH,
            ),
            "the batch size at which noise equals signal, pooled over 16 sampled batches, with its 95% interval",
            "well above your batch size: a larger batch gives nearly linear speed-up; well below: it gives little",
        ),
        Curve(
            (GRADIENT_SNR,),
            "squared mean gradient over the variance of one example's gradient; unbiased, so it can be negative",
            "falls by orders of magnitude during training; near 0, the gradient is all noise",
        ),
        Curve(
            (GRADIENT_NORM,),
            "norm of the batch gradient",
            "spikes: exploding gradients",
        ),
        Curve(
            (
                EXAMPLE_NORM_P05,
                EXAMPLE_NORM_P50,
                EXAMPLE_NORM_P95,
            ),
            "norms of single examples' gradients",
            "a p95 far above the median: few examples drive training; look for outliers and wrong labels",
            shown_as="`gradient/example_norm_p05`, `_p50`, `_p95` and histogram",
        ),
        Curve(
            (PARTICIPATION_RATIO,),
            "how many directions share the gradient's variation over the batch",
            "1: all examples pull along one line",
        ),
        Curve(
            (OVERHEAD,),
            "share of the wall time that the monitor used",
            (
                "should be at or below the budget; higher in the first seconds, when the first measurement is "
                "paid in advance"
            ),
        ),
    ),
    "on request": (
        Curve(
            (INTERFERENCE,),
            (
                "constructive interference index (CII): near 1, each strong mode of this batch's gradients is "
                "simpler than all that remains; 0: strength is unrelated to complexity; below 0: the complex "
                "modes are the strong ones"
            ),
            (
                "near 0 from the start: the network has no preference for simple functions of these inputs (or "
                "the features do not order them)"
            ),
        ),
        Curve(
            (INTERFERENCE_P,),
            "how often pairing strengths with modes at random gives a CII this large",
            "above .05: no evidence for the line above",
        ),
        Curve(
            (RANK_CORRELATION,),
            "Spearman's correlation of a mode's rank in strength with its complexity",
            "as the two above, over all modes instead of the strongest 20",
        ),
        Curve(
            (),
            "the same for one layer, with `Interference(per_layer=True)`",
            "shows which layer has lost its preference",
            shown_as="`gradient/interference_layers/<layer>` …",
        ),
        Curve(
            (PROBE_INTERFERENCE,),
            'the same on fixed examples, in eval mode, with `Interference(on="probe")`; needs extra passes',
            "can be compared from step to step",
            shown_as="`gradient/probe_interference` …",
        ),
        Curve(
            (),
            "fitted fraction of each band of the target, 0 to 1, with `SpectralBias(per_band=True)`",
            "low bands first is healthy",
            shown_as="`complexity/fitted_fraction_00` …",
        ),
        Curve(
            (),
            (
                "relative loss of a band's energy per step over the last 16 measurements, and the number of "
                "steps in which half of it goes (inf: no significant fall)"
            ),
            "a top band with a short half-life while the low ones no longer change: noise is being fitted",
            shown_as="`complexity/decay_rate_00` …, `half_life_00` …",
        ),
        Curve(
            (
                TAIL_INDEX,
                TAIL_INDEX_LOW,
                TAIL_INDEX_HIGH,
            ),
            (
                "with `TailIndex()`: how heavy the tail of single examples' gradient noise is, with its 95% "
                "interval: 2 is Gaussian, 1 is Cauchy; `nan` until 512 examples have been pooled (a short run "
                "needs `every_n_steps`)"
            ),
            "far below 2: a few examples have gradients of another order of magnitude than the rest; look at them",
        ),
        Curve(
            (
                TAIL_BATCH_INDEX,
                TAIL_BATCH_INDEX_LOW,
                TAIL_BATCH_INDEX_HIGH,
            ),
            "the same for sums over a whole batch; from 64 sampled batches on",
            (
                "at 2: your batches average the heaviness away, nothing to do; far below: larger batches will "
                "not help, clip"
            ),
        ),
        Curve(
            (TAIL_VERDICT,),
            (
                "0 Gaussian, 1 heavy but averaged away in a batch, 2 stable: batches are as heavy as examples, "
                "-1 undecided; a card on the text tab gives the reason"
            ),
            "see [Is my gradient noise heavy-tailed?](docs/heavy_tails.md)",
        ),
        Curve(
            (
                TAIL_NORM_XI,
                TAIL_NORM_XI_LOW,
                TAIL_NORM_XI_HIGH,
                TAIL_NORM_HILL,
            ),
            (
                "whether the largest tenth of the per-example gradients grows like a power law: if xi is "
                "significantly above 0, it does, and Hill's number is its exponent; a mixture of small and large"
                " gradients looks like that too"
            ),
            "ignore Hill's number while the interval of xi includes 0",
        ),
        Curve(
            (
                TAIL_TRAJECTORY_XI,
                TAIL_TRAJECTORY_XI_LOW,
                TAIL_TRAJECTORY_XI_HIGH,
                TAIL_TRAJECTORY_HILL,
            ),
            "the same for the steps of the parameters, from 128 sampled steps on",
            (
                "above 0 at a steady step size: training makes rare, huge jumps; lower the step size or clip (a "
                "schedule is removed as far as it is smooth or changes at few steps)"
            ),
        ),
        Curve(
            (),
            "each layer's own index, with `TailIndex(per_layer=True)`",
            "shows which layer the heavy gradients come from",
            shown_as="`tail/index_layers/<layer>` …",
        ),
        Curve(
            (
                TAIL_COORDINATE_INDEX,
                TAIL_COORDINATE_INDEX_CONTROL,
            ),
            (
                "with `TailIndex(coordinates=1000)`: what the common estimator, which pools coordinates, would "
                "report, beside Gaussian noise of the same scales"
            ),
            (
                "for comparison with papers only: if the two agree, unequal scales explain all of it; if not, "
                "coordinates are correlated or not Gaussian by themselves, which does not make the tail of the "
                "noise heavy either"
            ),
        ),
        Curve(
            (),
            ('with `control="shuffle"`, on an instrument or the whole monitor: the same number for shuffled examples'),
            "whatever the control shows is not in your data",
            shown_as="`<tag>_shuffled`",
        ),
    ),
    "stopping": (
        Curve(
            (
                STOPPING_RISK,
                STOPPING_RISK_LOW,
                STOPPING_RISK_HIGH,
            ),
            "estimated squared error on fresh targets, with the band of rises that noise alone would explain",
            "falling: continue. Level: more training gains nothing. Rising above the band: noise",
        ),
        Curve(
            (STOPPING_NOISE_FLOOR,),
            "how much of each target is noise (squared, summed over outputs): the risk cannot fall below it",
            "near 0 on clean data; high: look for wrong labels, or features that do not order the target",
        ),
        Curve(
            (STOPPING_FITTED_HIGH,),
            "share of the rough half of the targets that the network has fitted",
            "0: none of the noise; 1: all of it, memorised",
        ),
        Curve(
            (STOPPING_DOMINANCE,),
            "share of what was learned over the last five checks that is complex",
            "above .5, most of what is being fitted is the complex part",
        ),
        Curve(
            (STOPPING_WHITE_P,),
            "with `ResidualWhiteness`: how often pure noise would look as structured as what is left",
            "above .05, nothing is left to learn but noise",
        ),
    ),
}


def with_tables(text: str) -> str:
    """Return a page in which what stands between `<!-- curves: NAME -->` and its end is the table of that name."""
    end = "<!-- end of curves -->\n"
    for name, curves in CURVES.items():
        before, begin, rest = text.partition(f"<!-- curves: {name} -->\n")
        if begin:
            head = "| curve | what it says | what to do with it |\n|---|---|---|\n"
            rows = "".join(f"{curve.row}\n" for curve in curves)
            text = before + begin + head + rows + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":  # make tables
    for page in map(Path, sys.argv[1:]):
        page.write_text(with_tables(page.read_text()))
