"""Stop strings on a stream of text: what may be shown now, and whether the end has come."""

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of a text as long as it may be the beginning of a stop string.

    The text ends before the stop string that is complete first, the longest of those that end at one place. That is
    the same however the text is cut into pieces.

    >>> stop = StopStrings(["###"])
    >>> stop.push("Hi #"), stop.push("# no"), stop.push("w ### gone")
    ('Hi ', '## no', 'w ')
    >>> stop.found
    True
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = list(strings)
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """Takes further text; returns what can be shown. Nothing from the first stop string on is ever shown."""
        if self.found:
            return ""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self.strings if (place := text.find(stop)) >= 0]
        if found:
            self.found = True
            self._held = ""
            return text[: min(found)[1]]
        held = max((self._beginning(text, stop) for stop in self.strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """The length of the longest end of text that is a beginning of stop."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
