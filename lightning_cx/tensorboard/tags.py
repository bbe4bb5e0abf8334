"""Every name that lightning_cx logs, one constant each."""

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

GRADIENT_MEDIAN = "complexity/gradient_median"
GRADIENT_MEDIAN_CHANCE_LOW = "complexity/gradient_median_chance_low"
RESIDUAL_ENERGY = "complexity/residual_energy"
RESIDUAL_MEDIAN = "complexity/residual_median"
SPECTRAL_BIAS_INDEX = "complexity/spectral_bias_index"
RESIDUAL_SPECTROGRAM = "complexity/residual_spectrogram"


def residual_band(number: int) -> str:
    """Tag of the residual energy in octave band `number`; band 0 is the mean."""
    return f"complexity/residual_band_{number:02d}"
