"""Which documents of a corpus are held out for validation: decided by the seed and a document's number alone.

A corpus of one document is cut instead, at the beginning of a line. Knows nothing of tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from transformer_lab.training.documents import Piece
from transformer_lab.training.permutation import mixed, random_number

_AT_ONCE = 2**16
_SPLIT = 3  # what the random number is for


@dataclass(frozen=True)
class HeldOut:
    """Each document has a random number from 0 to 1, and is held out if it is below `share`.

    Whatever the numbers are, the document with the lowest is held out and the one with the highest is not, so that no
    side is empty.
    """

    lowest: int
    highest: int
    share: float
    key: int

    def __contains__(self, document: int) -> bool:
        if document in (self.lowest, self.highest):
            return document == self.lowest
        return int(_numbers(self.key, document, document + 1)[0]) < self.share * 2.0**64


def held_out(documents: int, share: float, seed: int) -> HeldOut:
    """The choice among so many documents, two at least."""
    key = random_number(seed, _SPLIT)
    lowest, highest = (2**64, -1), (-1, -1)  # (number, document)
    for first in range(0, documents, _AT_ONCE):
        numbers = _numbers(key, first, min(first + _AT_ONCE, documents))
        low, high = int(np.argmin(numbers)), int(np.argmax(numbers))
        lowest = min(lowest, (int(numbers[low]), first + low))
        highest = max(highest, (int(numbers[high]), first + high))
    return HeldOut(lowest[1], highest[1], share, key)


def _numbers(key: int, first: int, last: int) -> np.ndarray:
    return mixed(np.arange(first, last, dtype=np.uint64) ^ np.array([key], np.uint64))


def cut_in_two(pieces: Iterable[Piece], first_bytes: int) -> Iterator[Piece]:
    """Of one document makes two: number 1 begins with the first line that starts `first_bytes` or more behind the
    document's start. If no line does, number 0 is all there is."""
    done = 0
    second_begun = False
    cut_found = False
    for piece in pieces:
        before, behind = piece.text, ""
        if cut_found:
            before, behind = "", piece.text
        else:
            size = len(before.encode("utf-8"))
            if done + size > first_bytes:
                # As many bytes as `first_bytes` leaves; a character that they cut goes to the second part.
                passed = len(before.encode("utf-8")[: max(first_bytes - done, 0)].decode("utf-8", "ignore"))
                line_end = before.find("\n", passed)
                if line_end >= 0:
                    cut_found = True
                    before, behind = before[:line_end].rstrip("\r"), before[line_end + 1 :]
            done += size
        if before:
            yield Piece(0, before)
        behind = behind if second_begun else behind.lstrip()
        if behind:
            second_begun = True
            yield Piece(1, behind)
