"""Which block goes first when there is no room: the one of the lowest rank, and of equals the one used longest ago.

A rule is one pure function, so the same rule serves the blocks in memory (`order.py`) and those in files (`index.py`).
"""

from typing import Protocol


class Eviction(Protocol):
    """It knows numbers alone."""

    def rank(self, uses: int, age: int) -> int:
        """Of a block that was just used for the `uses`-th time; `age` is the rank of the block that went last."""


class LeastRecentlyUsed:
    """The block goes that was not used for the longest time."""

    def rank(self, uses: int, age: int) -> int:
        """All are equals."""
        return 0


class FrequentlyUsed:
    """LFU with dynamic ageing (Arlitt et al. 2000, "Evaluating content management techniques for Web proxy caches").

    What was used often, but long ago, goes at some time: what is new begins with the rank of what went last.
    """

    def rank(self, uses: int, age: int) -> int:
        """The uses, and the age of the tier at the last one."""
        return uses + age
