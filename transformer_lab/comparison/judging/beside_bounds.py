"""Numbers beside what is expected of them: how far off they are, in bounds and in likely errors."""

from dataclasses import dataclass

import numpy as np

from transformer_lab.backends.readings.bounded.units import LARGEST


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b in float64; 0 where both are the same infinity, infinite where one alone is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):
        found = np.where(a == b, 0.0, a - b)
    return np.where(np.isnan(found), np.inf, found)


def ratios(off: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """|off| / bound of every element; infinite where there is a difference and nothing may be rounded."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(off == 0.0, 0.0, np.abs(off) / bound)
    return np.where(np.isnan(found), np.inf, found)


@dataclass
class Likelihood:
    """An operation's errors beside what is likely, over all elements seen (`backends/readings/bounded/units.py`).

    largest: the largest error, in likely ones. squares, likely: sums of the squares of both. rows: how many rows of
    elements were seen, which may share what they are rounded with.
    """

    largest: float = 0.0
    squares: float = 0.0
    likely: float = 0.0
    rows: int = 0

    def take(self, off: np.ndarray, likely: np.ndarray) -> None:
        usable = np.isfinite(likely) & np.isfinite(off) & (likely > 0.0)
        if usable.any():
            error, unit = np.abs(off[usable]), likely[usable]
            self.largest = max(self.largest, float((error / unit).max()))
            self.squares += float(np.sum(error * error))
            self.likely += float(np.sum(unit * unit))
            self.rows += max(1, off.size // max(1, off.shape[-1] if off.ndim else 1))

    @property
    def mean_square(self) -> float:
        """The root of the mean square, in likely ones, less what a small sample may be above 1."""
        if not self.likely:
            return 0.0
        return float(np.sqrt(self.squares / self.likely)) / (1.0 + LARGEST / float(np.sqrt(self.rows)))

    @property
    def implausible(self) -> bool:
        return self.largest > LARGEST or self.mean_square > 1.0
