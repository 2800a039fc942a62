"""Blocks in host memory under a budget in bytes. It knows no files and no threads: its owner holds the lock."""

from transformer_lab.tiers.block import Block
from transformer_lab.tiers.eviction import Eviction
from transformer_lab.tiers.ledger import TierCounts
from transformer_lab.tiers.order import Order


class Warm:
    """`put` gives back what had to go for it, so that the owner can write it elsewhere."""

    def __init__(self, budget: int, eviction: Eviction, counts: TierCounts) -> None:
        self._budget, self._order, self._counts = budget, Order(eviction), counts
        self._blocks: dict[bytes, Block] = {}

    def get(self, key: bytes, token_ids: tuple[int, ...]) -> Block | None:
        """The block, or None; a block of other tokens is a miss, counted as a collision."""
        block = self._blocks.get(key)
        if block is not None and block.token_ids != token_ids:
            self._counts.collisions += 1
            block = None
        if block is not None:
            self._order.used(key)
        self._counts.looked_up(block)
        return block

    def most_like(self, block: Block) -> int:
        """How many of its size there is room for."""
        return self._budget // block.bytes

    def takes(self, block: Block) -> bool:
        """Whether it fits into the whole budget."""
        return block.bytes <= self._budget

    def put(self, key: bytes, block: Block) -> list[tuple[bytes, Block]]:
        """Keeps a block that it `takes`, and gives what went for it."""
        self.remove(key, block)
        gone = []
        while self._counts.resident.bytes + block.bytes > self._budget:
            first = self._order.pop()
            gone.append((first, self._evict(first, "budget")))
        self._blocks[key] = block
        self._order.used(key)
        self._counts.put.add(block)
        self._counts.resident.add(block)
        return gone

    def remove(self, key: bytes, successor: Block) -> None:
        """What is under the key, if something is, makes way for another block."""
        if key in self._blocks:
            same = self._blocks[key].token_ids == successor.token_ids
            self._evict(key, "replaced" if same else "collision")

    def close(self) -> None:
        """Everything goes."""
        for key in list(self._blocks):
            self._evict(key, "closed")

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def blocks(self) -> list[tuple[bytes, Block]]:
        """What is there now."""
        return list(self._blocks.items())

    def _evict(self, key: bytes, reason: str) -> Block:
        block = self._blocks.pop(key)
        self._order.forget(key)
        self._counts.evicted[reason].add(block)
        self._counts.resident.take(block)
        return block
