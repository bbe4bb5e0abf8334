"""The numbers of `lightning_cx.functional` as torchmetrics: gathered over batches and processes, logged, plotted.

They are used like any other torchmetrics.Metric, in any loop, in a MetricCollection or with Lightning's ``self.log``:

>>> import torch
>>> x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
>>> residual = x[:, 0] - 0.2                       # something simple is still unlearned
>>> position, bands = MedianComplexity(), ResidualSpectrum()
>>> for part in torch.arange(120).split(32):       # batches
...     position.update(x[part], residual[part])
...     bands.update(x[part], residual[part])
>>> print(f"median at {float(position.compute()):.2f} of the complexity range; noise has it at .5")
median at 0.01 of the complexity range; noise has it at .5
>>> torch.allclose(bands.compute().sum(), residual.double().square().mean())
True
"""

from lightning_cx.metrics.examples import MedianComplexity, ResidualSpectrum
from lightning_cx.metrics.noise_scale import GradientNoiseScale
from lightning_cx.metrics.tail_index import MIN_BATCH, TailIndex

__all__ = [
    "MIN_BATCH",
    "GradientNoiseScale",
    "MedianComplexity",
    "ResidualSpectrum",
    "TailIndex",
]
