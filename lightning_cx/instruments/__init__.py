"""Instruments: each turns what happens at a training step into named numbers.

Instruments know nothing of a Trainer. In any loop:

    >>> import torch
    >>> from lightning_cx.gradients import GradientTap
    >>> from lightning_cx.instruments import GradientNoise
    >>> _ = torch.manual_seed(0)
    >>> net, x, y = torch.nn.Linear(4, 1), torch.randn(32, 4), torch.randn(32, 1)
    >>> tap, loss = GradientTap(net.named_parameters(), batch_size=32), (net(x) - y).square().mean()
    >>> with tap(loss):
    ...     loss.backward()
    >>> reading = GradientNoise().on_gradients(0, tap.sample)
    >>> sorted(reading.scalars)[:3]
    ['gradient/example_norm_p05', 'gradient/example_norm_p50', 'gradient/example_norm_p95']
"""

from lightning_cx.instruments.averaging import Averaging
from lightning_cx.instruments.base import (
    METHODS,
    BandDecay,
    BatchView,
    DwellTimeline,
    Instrument,
    Method,
    ModeScatter,
    Needs,
    ParameterStep,
    Picture,
    QuantilePlot,
    Reading,
    Series,
    Spectrogram,
    StoppingCurve,
    SurvivalPlot,
    keyed,
    needs_of,
)
from lightning_cx.instruments.control import Control
from lightning_cx.instruments.dwelling import Dwelling
from lightning_cx.instruments.gradient_noise import GradientNoise
from lightning_cx.instruments.gradient_spectrum import GradientSpectrum
from lightning_cx.instruments.histories import Thinned
from lightning_cx.instruments.interference import Interference
from lightning_cx.instruments.kernel import Kernel
from lightning_cx.instruments.local_recovery import LocalRecovery
from lightning_cx.instruments.neurons import Neurons
from lightning_cx.instruments.spectral_bias import SpectralBias
from lightning_cx.instruments.step_size import StepSize
from lightning_cx.instruments.tail_index import TailIndex
from lightning_cx.instruments.trajectory_geometry import TrajectoryGeometry
from lightning_cx.instruments.variance_reduction import VarianceReduction

__all__ = [
    "METHODS",
    "Averaging",
    "BandDecay",
    "BatchView",
    "Control",
    "DwellTimeline",
    "Dwelling",
    "GradientNoise",
    "GradientSpectrum",
    "Instrument",
    "Interference",
    "Kernel",
    "LocalRecovery",
    "Method",
    "ModeScatter",
    "Needs",
    "Neurons",
    "ParameterStep",
    "Picture",
    "QuantilePlot",
    "Reading",
    "Series",
    "SpectralBias",
    "Spectrogram",
    "StepSize",
    "StoppingCurve",
    "SurvivalPlot",
    "TailIndex",
    "Thinned",
    "TrajectoryGeometry",
    "VarianceReduction",
    "keyed",
    "needs_of",
]
