"""The residual's bands over time: their pictures and their rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import complexity, decay_rates
from lightning_cx.instruments.reading import BandDecay, Picture, Spectrogram
from lightning_cx.tensorboard import tags

MAX_COLUMNS = 1024  # past this every other one is dropped
RATE_READINGS = 16  # a rate is that of the present; more readings would span phases that differ


class BandHistory:
    """Energies of the bands at the readings so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all readings."""
        self._steps: list[int] = []
        self._columns: list[Tensor] = []
        self._recent: list[tuple[int, Tensor]] = []

    def add(self, step: int, bands: Tensor) -> None:
        """Take in the energies ``[B]`` of one reading."""
        self._steps.append(step)
        self._columns.append(bands)
        self._recent = [*self._recent, (step, bands)][-RATE_READINGS:]
        if len(self._steps) > MAX_COLUMNS:
            self._steps, self._columns = self._steps[::2], self._columns[::2]

    def rates(self) -> complexity.DecayRates:
        """How fast each band falls at present."""
        steps = torch.tensor([step for step, _ in self._recent])
        return decay_rates(steps, torch.stack([bands for _, bands in self._recent]))

    def pictures(self, bands: list[tuple[int, int]]) -> dict[str, Picture]:
        """The pictures of all readings so far; bands are half-open ranges of levels."""
        labels = ["mean", *(f"{start}" if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in bands[1:])]
        values = torch.stack(self._columns)
        spectrogram = Spectrogram(
            steps=tuple(self._steps),
            values=values,
            bands=labels,
            title="What is still unlearned: residual energy on the probe by complexity",
            reading="Simple functions of the data at the bottom, complex ones on top. A healthy run darkens from the "
            "bottom up; once only the top still darkens, the network is fitting noise.",
        )
        decay = BandDecay(
            steps=tuple(self._steps),
            values=values,
            bands=labels,
            half_lives=self.rates().half_life.tolist(),
            title="How fast each band is learned: residual energy on the probe",
            reading="One line for each band of complexity, dark for simple and light for complex. In a healthy run the "
            "dark lines fall first; when they have levelled off and the light ones still fall, noise is being fitted.",
        )
        return {tags.RESIDUAL_SPECTROGRAM: spectrogram, tags.BAND_DECAY: decay}

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {"steps": self._steps, "columns": self._columns, "recent": self._recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._steps, self._columns = list(state["steps"]), list(state["columns"])
        self._recent = [tuple(entry) for entry in state["recent"]]
