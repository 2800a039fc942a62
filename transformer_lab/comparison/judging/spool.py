"""Taps kept on disk while others are computed: what several runs show is compared without holding any run in memory."""

from pathlib import Path

import numpy as np


class Spool:
    """A folder of taps, one NumPy file each. It can be written once and read in any order, an array at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def write(self, prompt: int, name: str, value: np.ndarray) -> None:
        np.save(self._path(prompt, name), value, allow_pickle=False)

    def read(self, prompt: int, name: str) -> np.ndarray | None:
        """What was written, or None."""
        path = self._path(prompt, name)
        found: np.ndarray | None = np.load(path, allow_pickle=False) if path.exists() else None
        return found

    def _path(self, prompt: int, name: str) -> Path:
        return self.folder / f"{prompt}.{name}.npy"
