"""What the residual of a fixed probe says about learning, followed from reading to reading."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from lightning_cx.functional import complexity, fitted_fraction, spectral_bias_index

WINDOW = 5  # readings back over which dominance is measured (THEORY 5 measured its rules so)


class Learning:
    """Spectral bias index, dominance and fitted fractions against the first residual that was seen.

    Attributes:
        spectral_bias: The index at the moment when half of the energy was gone; nan until then.
        dominance: Share of the energy removed over the last readings that was complex; nan until there are enough.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: what comes next is the first residual."""
        self.spectral_bias = torch.nan
        self.dominance = torch.nan
        self._initial: Tensor | None = None
        self._recent: deque[Tensor] = deque(maxlen=WINDOW + 1)
        self._first_coefficients: Tensor | None = None
        self._coefficients: Tensor | None = None

    def follow(self, energy: Tensor, coefficients: Tensor) -> None:
        """Take in one reading.

        Args:
            energy: ``[L]`` level energies of the residual, without the constant.
            coefficients: ``[K, C]`` its coefficients in the whole basis.
        """
        if self._initial is None:
            self._initial, self._first_coefficients = energy, coefficients
        elif self.spectral_bias != self.spectral_bias:  # the first crossing counts
            at_half = complexity.energies_at_half(self._initial, self._recent[-1], energy)
            if at_half is not None:
                self.spectral_bias = float(spectral_bias_index(self._initial, at_half))
        self._recent.append(energy)
        self._coefficients = coefficients
        self.dominance = torch.nan
        if len(self._recent) == self._recent.maxlen:
            self.dominance = float(complexity.high_complexity_dominance(self._initial, self._recent[0], energy))

    def fitted(self, level_of: Tensor, bands: list[tuple[int, int]]) -> Tensor:
        """Fitted fraction of each band ``[B]``; nan if outputs were added or left out since the start."""
        first, now = self._first_coefficients, self._coefficients
        if first is None or now is None or first.shape != now.shape:
            return torch.full((len(bands),), torch.nan, dtype=torch.float64)
        return fitted_fraction(first, now, level_of, bands)

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a checkpoint."""
        return {
            "index": self.spectral_bias,
            "initial": self._initial,
            "window": list(self._recent),
            "first_coefficients": self._first_coefficients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.reset()
        self.spectral_bias = state["index"]
        self._initial = state["initial"]
        self._recent.extend(state["window"])
        self._first_coefficients = state["first_coefficients"]
