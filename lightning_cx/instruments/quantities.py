"""Every name that lightning_cx logs, one constant each."""

from typing import NamedTuple

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
