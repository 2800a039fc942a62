"""What every policy of a cache is asked for, and what it promises."""

from typing import Any, ClassVar

from transformer_lab.cache.marked import Marked
from transformer_lab.model.config import ModelConfig


class CachePolicy:
    """A policy is a frozen dataclass of this class; its file gives `layer`.

    contract: "exact" (attention reads what an uncached pass computes: in exact mode the same bits, else the same up to
    the rounding of other shapes), "bounded" (each stored number is off by at most what `rounding` says) or "lossy".
    """

    contract: ClassVar[str] = "exact"

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        """The empty cache of one layer: a NamedTuple of arrays, whose `update(ops, fresh, tokens)` gives (the new
        layer, what is `Seen`), and consumes it. attention: that of the block. capacity: positions that may come."""
        raise NotImplementedError

    def of_block(self, ops: Any, block: Any, batch: int, capacity: int) -> Any:
        """The empty cache of this block."""
        layer = self.layer(ops, block.attention, batch, capacity)
        return Marked(ops.zeros((batch, capacity)), layer) if getattr(block, "chooses_tokens", False) else layer

    def allocate(self, ops: Any, config: ModelConfig, batch: int, capacity: int) -> list[Any] | None:
        """The empty caches of all layers."""
        return [self.of_block(ops, block, batch, capacity) for block in config.blocks]

    def ready(self, ops: Any, cache: Any, length: int, most: int) -> Any:
        """The cache with room for positions below `length`, before a pass that writes so far; `cache` is consumed.
        most: the capacity that was asked for."""
        return cache
