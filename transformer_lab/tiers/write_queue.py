"""Blocks on their way to the files, in the order in which they came. It knows no threads: its owner holds the lock.

A block stays here, and is found here, until its file is there. One that is being written may be replaced meanwhile by
another block of its key: that one is then written after it.
"""

from transformer_lab.tiers.block import Block
from transformer_lab.tiers.ledger import TierCounts

_MOST_BLOCKS = 64
_MOST_BYTES = 1 << 28


class WriteQueue:
    """`full` is for those who can wait: what comes all the same is taken."""

    def __init__(self, counts: TierCounts) -> None:
        self._counts = counts
        self._blocks: dict[bytes, tuple[int, Block]] = {}  # with a number that says when it came
        self._came = 0

    def get(self, key: bytes, token_ids: tuple[int, ...]) -> Block | None:
        """The block, or None; a block of other tokens is a miss, counted as a collision."""
        block = self._block(key)
        if block is not None and block.token_ids != token_ids:
            self._counts.collisions += 1
            block = None
        self._counts.looked_up(block)
        return block

    def put(self, key: bytes, block: Block) -> bool:
        """Takes its place at the end; False if it is on its way already, under this key with these tokens."""
        there = self._block(key)
        if there is not None:
            if there.token_ids == block.token_ids:
                return False
            self.remove(key, there, "collision")
        self._came += 1
        self._blocks[key] = (self._came, block)
        self._counts.put.add(block)
        self._counts.resident.add(block)
        return True

    def first(self) -> tuple[bytes, Block]:
        """The one to be written next. Raises StopIteration if there is none."""
        key, (_, block) = next(iter(self._blocks.items()))
        return key, block

    def remove(self, key: bytes, block: Block, reason: str) -> None:
        """Takes it out, if it is still this block."""
        if self._block(key) is block:
            del self._blocks[key]
            self._counts.evicted[reason].add(block)
            self._counts.resident.take(block)

    @property
    def full(self) -> bool:
        """Whether whoever brings more should wait."""
        return len(self._blocks) >= _MOST_BLOCKS or self._counts.resident.bytes >= _MOST_BYTES

    @property
    def came(self) -> int:
        """The number of the block that came last."""
        return self._came

    def has_left(self, number: int) -> bool:
        """Whether all blocks up to this number are gone."""
        return next((came > number for came, _ in self._blocks.values()), True)

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def _block(self, key: bytes) -> Block | None:
        return self._blocks[key][1] if key in self._blocks else None
