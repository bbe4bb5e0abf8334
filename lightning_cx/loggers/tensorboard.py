"""Put pictures, histograms and the layout into a TensorBoard event file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_cx.figures import draw, pixels
from lightning_cx.instruments import Picture, Reading, quantities

_LAID_OUT: WeakKeyDictionary[SummaryWriter, set[str]] = WeakKeyDictionary()


def write_reading(experiment: SummaryWriter, reading: Reading, step: int, pictures: bool = False) -> None:
    """Write all of a reading, in a loop of one's own; values that are nan are left out, `reading.refusals` says why.

    Args:
        experiment: The writer of a TensorBoard run.
        reading: What an instrument measured, or a `ResidualStopper` saw.
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


def custom_scalars_layout(there: Iterable[str]) -> dict[str, dict[str, list]]:
    """Lay out the custom-scalars tab for the tags that are there, as `SummaryWriter.add_custom_scalars` takes it.

    A chart lists only tags that are there, and is left out where none is. A margin chart needs all three of its tags.

    Example:
        >>> custom_scalars_layout(["complexity/overhead", "train_loss"])
        {'What it costs': {'share of the wall time': ['Multiline', ['complexity/overhead']]}}
    """
    logged = set(there)
    charts = {category: dict(of_category) for category, of_category in quantities.CHARTS.items()}
    names = _names_of_others(logged, [tag for of in charts.values() for _, wanted in of.values() for tag in wanted])
    others = tuple(f"-{name}" for name in names)
    for of_category in charts.values():
        for title, (kind, wanted) in list(of_category.items()):
            begins = tuple(f"{tag}/" for tag in wanted if tag in quantities.PER_BLOCK)
            blocks = [tag for tag in sorted(logged) if tag.startswith(begins) and not tag.endswith(others)]
            wanted = [*wanted, *blocks]
            of_others = {name: [quantities.suffixed(tag, name) for tag in wanted] for name in names}
            if kind == "Multiline":  # the control belongs beside what it controls, one optimizer beside the other
                beside = [*map(quantities.shuffled, wanted), *(tag for tags in of_others.values() for tag in tags)]
                of_category[title] = (kind, [*wanted, *beside])
            else:
                of_category |= {f"{title}, {name}": (kind, tags) for name, tags in of_others.items()}
    layout: dict[str, dict[str, list]] = {}
    for category, of_category in charts.items():
        for title, (kind, wanted) in of_category.items():
            kept = [tag for tag in wanted if tag in logged]
            if kept and (kind != "Margin" or len(kept) == len(wanted)):
                layout.setdefault(category, {})[title] = [kind, kept]
    return layout


def _names_of_others(logged: set[str], tags: list[str]) -> list[str]:
    """Return what tags end in that belong to another optimizer, backward, instrument or callback."""
    named = {tag.removeprefix(f"{one}-") for one in tags for tag in logged if tag.startswith(f"{one}-")}
    return sorted(named | {f"optimizer_{tag.partition('-optimizer_')[2]}" for tag in logged if "-optimizer_" in tag})
