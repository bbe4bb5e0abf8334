"""Pictures: from the data that an instrument or a stopping rule gives to a matplotlib figure.

`draw` turns any `Picture` into a figure, `pixels` turns a figure into an array. The modules hold one idea each: `bands`
(energy by band over the steps), `modes` (singular functions of the gradients), `tails` (how heavy), `stopping` (what a
stopping rule measured), `dwelling` (where training stayed), on the common `sheet`.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from lightning_cx.figures.sheet import pixels

__all__ = ["draw", "pixels"]

from lightning_cx.figures.bands import draw_band_decay, draw_spectrogram
from lightning_cx.figures.dwelling import draw_dwell_timeline
from lightning_cx.figures.modes import draw_mode_scatter
from lightning_cx.figures.stopping import draw_stopping_curve
from lightning_cx.figures.tails import draw_quantile_plot, draw_survival_plot
from lightning_cx.instruments import (
    BandDecay,
    DwellTimeline,
    ModeScatter,
    Picture,
    QuantilePlot,
    Spectrogram,
    StoppingCurve,
    SurvivalPlot,
)

_DRAW = {
    Spectrogram: draw_spectrogram,
    ModeScatter: draw_mode_scatter,
    BandDecay: draw_band_decay,
    QuantilePlot: draw_quantile_plot,
    SurvivalPlot: draw_survival_plot,
    StoppingCurve: draw_stopping_curve,
    DwellTimeline: draw_dwell_timeline,
}


def draw(picture: Picture) -> Figure:
    """Draw a picture, 800 pixels wide, with its title above and the sentence that says how to read it below.

    Neither pyplot nor rcParams are touched or asked: the figure is nobody's current one, needs no closing, and looks
    the same under every style.

    Args:
        picture: Data of the picture; zeros, nan and empty data are drawn as what they are.

    Returns:
        A figure with an Agg canvas: show it in a notebook, `savefig` it, or turn it into an array with
        `pixels`.

    Raises:
        TypeError: If there is no rule for the type of the picture.

    Example:
        >>> import torch
        >>> from lightning_cx.instruments import Spectrogram
        >>> energy = torch.tensor([[4.0, 4.0], [1.0, 4.0]])
        >>> figure = draw(Spectrogram([0, 100], energy, ["low", "high"], "Residual", "Low bands go first."))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['low', 'high']
    """
    rule = _DRAW.get(type(picture))
    if rule is None:
        raise TypeError(f"no rule to draw a {type(picture).__name__}; known are {[kind.__name__ for kind in _DRAW]}.")
    return rule(picture)  # pyright: ignore[reportArgumentType]  # each rule takes the type it is filed under
