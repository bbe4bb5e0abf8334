"""Put pictures, histograms and the layout into a TensorBoard event file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx.instruments import Picture, Reading
from lightning_cx.tensorboard.figures import draw
from lightning_cx.tensorboard.layout import custom_scalars_layout
from lightning_cx.tensorboard.sheet import pixels

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
