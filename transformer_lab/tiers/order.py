"""The order in which blocks in memory go: a heap by rank, in which outdated places stay until they come to the top."""

import heapq

from transformer_lab.tiers.eviction import Eviction


class Order:
    """It knows keys and nothing of what they stand for. Each method takes O(log n) on average."""

    def __init__(self, eviction: Eviction) -> None:
        self._eviction = eviction
        self._uses: dict[bytes, int] = {}
        self._places: dict[bytes, tuple[int, int, bytes]] = {}  # rank, when used, key
        self._heap: list[tuple[int, int, bytes]] = []
        self._clock = self._age = 0

    def used(self, key: bytes) -> None:
        """The block was put or read."""
        self._clock += 1
        self._uses[key] = self._uses.get(key, 0) + 1
        self._places[key] = (self._eviction.rank(self._uses[key], self._age), self._clock, key)
        heapq.heappush(self._heap, self._places[key])
        if len(self._heap) > 2 * len(self._places) + 64:
            self._heap = sorted(self._places.values())  # a sorted list is a heap

    def forget(self, key: bytes) -> None:
        """The block has gone for a reason of its own."""
        self._uses.pop(key, None)
        self._places.pop(key, None)

    def pop(self) -> bytes:
        """Takes out the key of the block that goes first. Raises IndexError if there is none."""
        while True:
            place = heapq.heappop(self._heap)
            rank, _, key = place
            if self._places.get(key) == place:
                self._age = max(self._age, rank)
                self.forget(key)
                return key
