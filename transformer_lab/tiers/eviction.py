"""Which block goes first when there is no room. Both rules are deterministic: of equals, the older one goes."""

from typing import Protocol


class Eviction(Protocol):
    """The methods of a rule; it knows keys and nothing of what they stand for."""

    def used(self, key: bytes) -> None:
        """The block was put or read."""

    def forget(self, key: bytes) -> None:
        """The block has gone."""

    def next(self) -> bytes:
        """The key of the block that goes first. Raises ValueError if there is none."""


class LeastRecentlyUsed:
    """The block goes that was not used for the longest time."""

    def __init__(self) -> None:
        self._order: dict[bytes, None] = {}

    def used(self, key: bytes) -> None:
        """Puts it at the end."""
        self._order.pop(key, None)
        self._order[key] = None

    def forget(self, key: bytes) -> None:
        """Takes it out."""
        self._order.pop(key, None)

    def next(self) -> bytes:
        """The one at the front."""
        return min(self._order, key=lambda _: 0)


class FrequentlyUsed:
    """LFU with dynamic ageing (Arlitt et al. 2000, "Evaluating content management techniques for Web proxy caches").

    A block's rank is the number of its uses plus the age of the cache at its last use; the age is the rank of the block
    that went last. So what was used often, but long ago, goes at some time.
    """

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}
        self._rank: dict[bytes, int] = {}
        self._age = 0

    def used(self, key: bytes) -> None:
        """Counts the use."""
        self._uses[key] = self._uses.get(key, 0) + 1
        self._rank[key] = self._uses[key] + self._age

    def forget(self, key: bytes) -> None:
        """Takes it out; if it was the next to go, the cache grows older."""
        rank = self._rank.pop(key, None)
        self._uses.pop(key, None)
        if rank is not None and all(rank <= other for other in self._rank.values()):
            self._age = max(self._age, rank)

    def next(self) -> bytes:
        """The lowest rank."""
        return min(self._rank, key=lambda key: self._rank[key])
