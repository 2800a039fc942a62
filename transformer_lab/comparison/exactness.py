"""Whether exact mode gave the same bits to all, tap by tap, and its certificate: roundings, and doubtful ones.

The gradients of parameters are looked at as taps are, after them, under names of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from transformer_lab.comparison.spool import Spool

GRADIENT = "gradient of "  # before a parameter's name


@dataclass
class Exactness:
    """Collects the taps of participants in exact mode: the first one's go to disk, the others are held against them.

    differing: {participant: {tap: elements that are not equal to the first one's}}; certificate: {participant:
    {tap: (roundings, doubtful ones)}}.
    """

    folder: Path
    differing: dict[str, dict[str, int]] = field(default_factory=dict)
    certificate: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    first: Spool | None = None

    def begin(self, participant: str) -> None:
        self.differing[participant] = {}
        if len(self.differing) == 1:
            self.first = Spool(self.folder)

    def look_on(self, prompt: int, name: str, value: np.ndarray) -> None:
        """Takes a tap of the participant that was begun last."""
        assert self.first is not None
        participant = list(self.differing)[-1]
        counts = self.differing[participant]
        counts.setdefault(name, 0)
        if len(self.differing) == 1:
            self.first.write(prompt, name, value)
            return
        before = self.first.read(prompt, name)
        counts[name] += value.size if before is None else int(np.count_nonzero(_bits(before) != _bits(value)))

    @property
    def gradients(self) -> list[str]:
        """The names of the gradients that were looked at, in the order of the backward pass."""
        seen = dict.fromkeys(name for counts in self.differing.values() for name in counts)
        return [name for name in seen if name.startswith(GRADIENT)]

    @property
    def identical(self) -> bool:
        return not any(count for counts in self.differing.values() for count in counts.values())

    def first_difference(self, order: Sequence[str]) -> tuple[str, str, int] | None:
        """(tap, participant, elements) of the first tap that differs, or None. order: the taps; gradients follow."""
        for tap in (*order, *self.gradients):
            for participant, counts in self.differing.items():
                if counts.get(tap, 0):
                    return tap, participant, counts[tap]
        return None


def _bits(x: np.ndarray) -> np.ndarray:
    """The same numbers as whole numbers: 0 and -0 differ, and a NaN is equal to itself."""
    return np.ascontiguousarray(x).view(np.dtype(f"u{x.dtype.itemsize}"))
