"""What several tests need and what is dear to make: once for a whole run, by whichever worker needs it first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class Once:
    """Folders that all workers of a run share, each filled once.

    Args:
        root: Of all of them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, fill: Callable[[Path], object]) -> Path:
        """The folder of this name; another worker that is just filling it is waited for."""
        folder = self.root / name
        with FileLock(self.root / f"{name}.lock"):
            if not folder.exists():
                fresh = self.root / f"{name}.part"
                fresh.mkdir(exist_ok=True)
                fill(fresh)
                fresh.rename(folder)
        return folder
