"""The interference principle of gradients: do simple functions get the large singular values, and why."""

from lightning_cx.functional.interference.coherence import Coherence
from lightning_cx.functional.interference.gradient_spectrum import GradientModes, gradient_spectrum
from lightning_cx.functional.interference.profile import InterferenceProfile, interference_profile

__all__ = [
    "Coherence",
    "GradientModes",
    "InterferenceProfile",
    "gradient_spectrum",
    "interference_profile",
]
