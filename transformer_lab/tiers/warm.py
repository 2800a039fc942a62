"""Blocks in host memory under a budget in bytes. It knows no files and no threads: its owner holds the lock."""

from collections.abc import Sequence

from transformer_lab.tiers.block import Block
from transformer_lab.tiers.eviction import Eviction
from transformer_lab.tiers.ledger import TierCounts


class Warm:
    """`put` gives back what had to go for it, so that the owner can write it elsewhere."""

    def __init__(self, budget: int, eviction: Eviction, counts: TierCounts) -> None:
        self._budget, self._eviction, self._counts = budget, eviction, counts
        self._blocks: dict[bytes, Block] = {}

    def get(self, key: bytes, token_ids: Sequence[int]) -> Block | None:
        """The block, or None; a block of other tokens is a miss, counted as a collision."""
        self._counts.lookups += 1
        block = self._blocks.get(key)
        if block is None or block.token_ids != tuple(token_ids):
            self._counts.collisions += block is not None
            self._counts.misses += 1
            return None
        self._eviction.used(key)
        self._counts.hits.add(len(block.token_ids), block.bytes)
        return block

    def put(self, key: bytes, block: Block) -> list[tuple[bytes, Block]]:
        """Keeps it and gives what went: the block itself, if it is larger than the whole budget."""
        if key in self._blocks:
            same = self._blocks[key].token_ids == block.token_ids
            self.evict(key, "replaced" if same else "collision")
        if block.bytes > self._budget:
            return [(key, block)]
        gone = []
        while self._counts.resident.bytes + block.bytes > self._budget:
            oldest = self._eviction.next()
            gone.append((oldest, self.evict(oldest, "budget")))
        self._blocks[key] = block
        self._eviction.used(key)
        self._counts.put.add(len(block.token_ids), block.bytes)
        self._counts.resident.add(len(block.token_ids), block.bytes)
        return gone

    def evict(self, key: bytes, reason: str) -> Block:
        """Takes it out. Raises KeyError if it is not there."""
        block = self._blocks.pop(key)
        self._eviction.forget(key)
        self._counts.evicted[reason].add(len(block.token_ids), block.bytes)
        self._counts.resident.add(-len(block.token_ids), -block.bytes, -1)
        return block

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def keys(self) -> list[bytes]:
        """What is there now."""
        return list(self._blocks)

    def blocks(self) -> list[tuple[bytes, Block]]:
        """The same with the blocks."""
        return list(self._blocks.items())
