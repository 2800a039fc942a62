"""What every policy of a cache is asked for, and what it promises."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_lab.cache.marked import marked
from transformer_lab.model.config import ModelConfig


class CachePolicy:
    """A policy is a frozen dataclass of this class; its file gives `layer`.

    contract: "exact" (attention reads what an uncached pass computes: in exact mode the same bits, else the same up to
    the rounding of other shapes), "bounded" (each stored number is off by at most what `rounding` says) or "lossy".
    epsilon: of a "bounded" one, how far a number may be off, relative to the largest of its vector.
    """

    @property
    def contract(self) -> str:
        return "exact"

    @property
    def epsilon(self) -> float:
        return 0.0

    @property
    def chunk(self) -> int | None:
        """At whose multiples prompts are cut into passes; None: a prompt is one pass. In such a pass a row that has
        come to its end is padding from position 0 on, which the policy must not write over what is there."""
        return None

    def rounding(self, x: np.ndarray) -> np.ndarray:
        """Of a "bounded" one: float64 [..., N] -> an array that broadcasts to it, how far each number may be off when
        it is read again."""
        return self.epsilon * np.max(np.abs(x), axis=-1, keepdims=True)

    def arrays(self, cache: Any) -> Any:
        """The arrays that it holds, nested in lists and tuples."""
        return cache

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        """The empty cache of one layer: a NamedTuple of arrays, whose `update(ops, fresh, tokens)` gives (the new
        layer, what is `Seen`), and consumes it. attention: that of the block. capacity: positions that may come."""
        raise NotImplementedError

    def of_block(self, ops: Any, block: Any, batch: int, capacity: int) -> Any:
        """The empty cache of this block."""
        return marked(ops, block, self.layer(ops, block.attention, batch, capacity), batch, capacity)

    def allocate(self, ops: Any, config: ModelConfig, batch: int, capacity: int) -> list[Any] | None:
        """The empty caches of all layers."""
        return [self.of_block(ops, block, batch, capacity) for block in config.blocks]

    # A generation is run by these. What `begin` gives is the policy's own; what `ready` gives is what a pass takes.

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> Any:
        """What outlives a generation, of one model with these parameters; None if nothing does. It has `close`."""
        return None

    def begin(
        self, memory: Any, ops: Any, config: ModelConfig, rows: Sequence[Sequence[int]], capacity: int
    ) -> tuple[Any, list[int]]:
        """(the cache of these rows of token ids, how many first tokens of each are in it already). None: no cache."""
        return self.allocate(ops, config, len(rows), capacity), [0] * len(rows)

    def ready(self, ops: Any, cache: Any, lengths: Sequence[int], reach: int, most: int) -> Any:
        """The caches of all layers for a pass that brings every row to so many tokens, and writes padding up to the
        position `reach`; it consumes them. most: the capacity that was asked for."""
        return cache

    def keep(self, cache: Any, written: Any) -> Any:
        """The cache after a pass, which left the layers like this."""
        return written

    def end(self, cache: Any, rows: Sequence[Sequence[int]]) -> None:
        """The generation is over. rows: the tokens of which keys and values are in the cache."""
