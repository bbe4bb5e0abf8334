"""The interference principle of gradients: do simple functions get the large singular values, and why."""

from lightning_cx.functional.interference.gradient_spectrum import gradient_spectrum
from lightning_cx.functional.interference.profile import interference_profile

__all__ = [
    "gradient_spectrum",
    "interference_profile",
]
