"""Taps of a participant, handed out by name while they come: nobody's order has to be another's within one block."""

from collections.abc import Iterable, Iterator
from typing import Any


class Shelf:
    """taps: (name, value) pairs, block by block. What is held at a time are the taps of one block."""

    def __init__(self, taps: Iterable[tuple[str, Any]]) -> None:
        self._coming: Iterator[tuple[str, Any]] = iter(taps)
        self._here: dict[str, Any] = {}
        self._next: tuple[str, Any] | None = next(self._coming, None)

    def take(self, name: str) -> Any:
        """The value of a tap, which is then forgotten; None if it is not shown."""
        while self._next is not None and _block(self._next[0]) <= _block(name):
            key, value = self._next
            self._here[key] = value
            self._next = next(self._coming, None)
        return self._here.pop(name, None)

    def left(self) -> list[str]:
        """The names of what nobody asked for."""
        rest = [*self._here, *([self._next[0]] if self._next else []), *(name for name, _ in self._coming)]
        self._here, self._next = {}, None
        return rest


def _block(name: str) -> float:
    """Where a tap belongs: before the blocks, in one of them, or behind them."""
    if name.startswith("blocks."):
        number = name.split(".", 2)[1]
        return float(number) if number.isdecimal() else float("inf")
    return -1.0 if name == "embed" else float("inf")
