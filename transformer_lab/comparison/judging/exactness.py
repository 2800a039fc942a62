"""Whether exact mode gave the same bits to all, tap by tap, and its certificate: roundings, and doubtful ones.

A tap that one participant shows and another does not is a difference too: nothing says that its bits are the same.
The gradients of parameters are looked at as taps are, after them, under names of their own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer_lab.comparison.judging.spool import Spool

GRADIENT = "gradient of "  # before a parameter's name


class Difference(NamedTuple):
    """Where a participant leaves the bits of the first one: so many elements differ, or were not shown at all."""

    tap: str
    participant: str
    elements: int
    missing: bool = False


@dataclass
class Exactness:
    """Collects the taps of participants in exact mode: the first one's go to disk, the others are held against them.

    differing: {participant: {tap: elements that are not equal to the first one's}}. sizes: what each has shown,
    {participant: {(prompt, tap): elements}}. certificate: {participant: {tap: (roundings, doubtful ones)}}.
    """

    folder: Path
    differing: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: dict[str, dict[tuple[int, str], int]] = field(default_factory=dict)
    certificate: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    first: Spool | None = None

    def begin(self, participant: str) -> None:
        self.differing[participant], self.sizes[participant] = Counter(), {}
        if len(self.differing) == 1:
            self.first = Spool(self.folder)

    def look_on(self, prompt: int, name: str, value: np.ndarray) -> None:
        """Takes a tap of the participant that was begun last."""
        assert self.first is not None
        participant = list(self.differing)[-1]
        self.sizes[participant][prompt, name] = value.size
        before = self.first.read(prompt, name) if len(self.differing) > 1 else None
        differing = 0 if before is None else int(np.count_nonzero(_bits(before) != _bits(value)))
        self.differing[participant][name] += differing
        if len(self.differing) == 1:
            self.first.write(prompt, name, value)

    def equal(self, participant: str) -> bool:
        """Whether it showed the very taps that the first one did, bit for bit."""
        shown, others = self.sizes[participant], next(iter(self.sizes.values()))
        return shown.keys() == others.keys() and not any(self.differing[participant].values())

    @property
    def missing(self) -> dict[str, Counter[str]]:
        """{participant: {tap: elements that another one showed for some prompt and this one did not}}."""
        everything = {shown: size for sizes in self.sizes.values() for shown, size in sizes.items()}
        found: dict[str, Counter[str]] = {participant: Counter() for participant in self.sizes}
        for participant, sizes in self.sizes.items():
            for prompt, tap in everything.keys() - sizes.keys():
                found[participant][tap] += everything[prompt, tap]
        return found

    @property
    def gradients(self) -> list[str]:
        """The names of the gradients that were looked at, in the order of the backward pass."""
        seen = dict.fromkeys(name for counts in self.differing.values() for name in counts)
        return [name for name in seen if name.startswith(GRADIENT)]

    @property
    def identical(self) -> bool:
        return not any(any(counts.values()) for of in (self.differing, self.missing) for counts in of.values())

    def taps(self, order: Sequence[str]) -> list[str]:
        """The names of all that was shown by anyone: those in `order` first, and as there."""
        shown = dict.fromkeys(tap for counts in self.differing.values() for tap in counts)
        return [*(tap for tap in order if tap in shown), *(tap for tap in shown if tap not in order)]

    def first_difference(self, order: Sequence[str]) -> Difference | None:
        """That of the first tap that differs or that somebody does not show, or None."""
        missing = self.missing
        for tap in self.taps(order):
            for participant, counts in self.differing.items():
                if counts[tap]:
                    return Difference(tap, participant, counts[tap])
                if missing[participant][tap]:
                    return Difference(tap, participant, missing[participant][tap], missing=True)
        return None


def _bits(x: np.ndarray) -> np.ndarray:
    """The same numbers as whole numbers: 0 and -0 differ, and a NaN is equal to itself."""
    return np.ascontiguousarray(x).view(np.dtype(f"u{x.dtype.itemsize}"))
