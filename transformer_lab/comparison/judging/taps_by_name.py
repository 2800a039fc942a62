"""Taps of a participant, handed out by name while they come: nobody's order has to be another's within one block."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from transformer_lab.comparison.participants.participant import AFTER, block_of


class TapsByName:
    """taps: (name, value) pairs, block by block. What is held at a time are the taps of one block."""

    def __init__(self, taps: Iterable[tuple[str, Any]], participant: str) -> None:
        self._blocks = groupby(taps, lambda tap: block_of(tap[0], participant))
        self._participant, self._read = participant, -2
        self._here: dict[str, Any] = {}

    def take(self, name: str) -> Any:
        """The value of a tap, which is then forgotten; None if it is not shown."""
        while self._read < block_of(name, self._participant):
            self._read, taps = next(self._blocks, (AFTER, ()))
            self._here |= taps
        return self._here.pop(name, None)

    def left(self) -> list[str]:
        """The names of what nobody asked for."""
        return [*self._here, *(name for _, taps in self._blocks for name, _ in taps)]
