"""The paged cache: keys and values in blocks of a pool that all rows share, found by tables. `cache=paged` builds it.

Kwon et al. 2023, arXiv 2309.06180. A row takes a block when it needs one and gives all back when it ends, so nothing is
reserved for text that never comes. P blocks of Z tokens are in a pool, M in a row's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.cache.blocks import SCRATCH, Blocks
from transformer_lab.cache.layer import Fresh, Seen, filled, longer
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens


class PagedLayer(NamedTuple):
    """keys, values: the pool [K, P, Z, N]. table [B, M]: in which of the P blocks the M-th Z positions of a row lie;
    SCRATCH where it has none yet. runs: where the rows lie, if that is known outside of arrays (`_even_runs`)."""

    keys: Any
    values: Any
    table: Any
    runs: tuple[int, int] | None = None

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["PagedLayer", Seen]:
        blocks, places = self._slots(ops, tokens)
        keys = self._written(ops, self.keys, fresh.key, blocks, places)
        values = self._written(ops, self.values, fresh.value, blocks, places)
        length = filled(ops, tokens.start, fresh.key.shape[2], self.table.shape[1] * self.keys.shape[2])
        layer, reading = self._replace(keys=keys, values=values), self._reading(ops, length)
        return layer, Seen(reading(keys), reading(values))

    def _slots(self, ops: Any, tokens: Tokens) -> tuple[Any, Any]:
        """Of every token its block and its place in it, each [B * T]. Padding goes where nobody reads."""
        xp, most, size = ops.xp, self.table.shape[1], self.keys.shape[2]
        index = tokens.positions // size
        index = xp.where(index < most, index, most - 1)  # padding may lie behind the table
        block = xp.take_along_axis(self.table, index, axis=1)
        if tokens.real is not None:
            block = xp.where(tokens.real, block, SCRATCH)
        return xp.reshape(block, (-1,)), xp.reshape(tokens.positions % size, (-1,))

    def _written(self, ops: Any, pool: Any, x: Any, blocks: Any, places: Any) -> Any:
        """x [B, K, T, N] at (blocks, places) [B * T] of the pool, which is consumed."""
        rows = ops.xp.reshape(ops.xp.permute_dims(x, (1, 0, 2, 3)), (x.shape[1], -1, x.shape[3]))
        return ops.put(pool, (slice(None), blocks, places), rows)

    def _reading(self, ops: Any, length: int) -> Any:
        """The way from a pool to the first `length` positions of all rows, [B, K, length, N]: a view where the blocks
        of each row lie one behind the other and the rows equally far apart; elsewhere, and where it is compiled, a
        copy."""
        xp, (rows, _), (heads, _, size, width) = ops.xp, self.table.shape, self.keys.shape
        used, found = -(-length // size), self.runs

        def copied(pool: Any) -> Any:
            picked = xp.take(pool, xp.reshape(self.table[:, :used], (-1,)), axis=1)  # [K, B * M, Z, N]
            picked = xp.reshape(picked, (heads, rows, used * size, width))
            return xp.permute_dims(picked, (1, 0, 2, 3))[:, :, :length, :]

        def seen(pool: Any) -> Any:
            assert found is not None
            first, apart = found
            some = xp.reshape(pool[:, first : first + rows * apart, ...], (heads, rows, apart * size, width))
            return xp.permute_dims(some, (1, 0, 2, 3))[:, :, :length, :]

        return copied if found is None else seen


def _even_runs(table: np.ndarray, count: int) -> tuple[int, int] | None:
    """table [B, M] -> (the first block of the first row, how many blocks the rows lie apart), if the blocks of each row
    lie one behind the other, and all rows equally far apart, within `count` blocks; else None."""
    rows, used = table.shape
    first = table[:, 0]
    apart = int(first[1] - first[0]) if rows > 1 else used
    runs = (table == SCRATCH) | (table == first[:, None] + np.arange(used))
    even = (first == first[0] + apart * np.arange(rows)).all()
    fits = apart >= used and first[0] + rows * apart <= count
    return (int(first[0]), apart) if even and fits and runs.all() and SCRATCH not in first else None


class Pool:
    """The arrays of all layers and who holds their blocks. It outlives a generation, and grows when it is full.

    most: how many tokens it may hold, or None. most_kept: up to how many it grows before a kept block is given away.
    """

    def __init__(self, ops: Any, config: ModelConfig, size: int, most: int | None, most_kept: int = 0) -> None:
        self.ops, self.size, self.most, self.most_kept = ops, size, most, most_kept
        self.blocks = Blocks(forgotten=self.forgotten)
        self.layers = [
            tuple(ops.zeros((part.num_kv_heads, 1, size, part.head_size)) for _ in range(2))
            for part in (block.attention for block in config.blocks)
        ]

    def forgotten(self, block: int) -> None:
        """What was kept in this block is about to be written over."""

    def close(self) -> None:
        """Nobody will ask it any more; texts under way come to their end."""

    def to_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"blocks": self.blocks.count, "tokens_of_a_block": self.size}

    def take(self, near: int, and_more: int) -> int:
        """A block for one holder. and_more: how many will be asked for after it, so that the pool grows but once."""
        blocks = self.blocks
        if not blocks.free and (not blocks.kept or blocks.count * self.size < self.most_kept):
            self._grow(1 + and_more)
        return self.blocks.take(near)

    def _grow(self, more: int) -> None:
        """By the blocks that are wanted, or a half of what is there, so that texts are copied seldom."""
        more = max(more, self.blocks.count // 2)
        if self.most is not None:
            more = min(more, self.most // self.size - self.blocks.count)
        if more <= 0:
            held = self.blocks.held * self.size
            message = (
                f"The cache is full: its blocks hold {held} tokens of texts under way, and cache.most_tokens is "
                f"{self.most}. Give it more, or run fewer or shorter texts at a time."
            )
            raise ConfigurationError(message)
        self.layers = [tuple(longer(self.ops, pool, more, 1) for pool in layer) for layer in self.layers]
        self.blocks.add(more)


class PagedRows:
    """The rows of one generation in a pool. tables: the blocks of each row, in the order of its positions."""

    def __init__(self, pool: Pool, rows: int, capacity: int) -> None:
        self.pool, self.per_row = pool, -(-capacity // pool.size)
        self.tables: list[list[int]] = [[] for _ in range(rows)]
        self._placed: Any = None  # the tables as an array, until they change
        self._runs: tuple[int, int] | None = None

    def layers(self, lengths: Sequence[int]) -> list[PagedLayer]:
        """The caches of all layers, with blocks for so many tokens of each row."""
        pool, missing = self.pool, [self._missing(row, length) for row, length in enumerate(lengths)]
        for row, count in enumerate(missing):
            table = self.tables[row]
            for _ in range(count):
                near = table[-1] + 1 if table else self._far_from(row)
                table.append(pool.take(near, sum(missing[row:]) - 1))
        if any(missing) or self._placed is None:
            self._placed = np.full((len(self.tables), self.per_row), SCRATCH)
            for row, table in enumerate(self.tables):
                self._placed[row, : len(table)] = table
            if pool.ops.in_place:
                used = max(map(len, self.tables))
                self._runs = _even_runs(self._placed[:, :used], pool.blocks.count + 1)
                self._placed = pool.ops.asarray(self._placed)
        if pool.ops.in_place:
            return [PagedLayer(keys, values, self._placed, self._runs) for keys, values in pool.layers]
        # Each layer's table is consumed with it.
        return [PagedLayer(keys, values, pool.ops.asarray(self._placed)) for keys, values in pool.layers]

    def _missing(self, row: int, length: int) -> int:
        return max(0, -(-length // self.pool.size) - len(self.tables[row]))

    def _far_from(self, row: int) -> int:
        """A first block that leaves the row before it room to grow without a gap."""
        before = self.tables[row - 1] if row else []
        return before[0] + self.per_row if before else 1

    def keep(self, layers: Sequence[PagedLayer]) -> None:
        """The arrays of the pool as a pass left them."""
        self.pool.layers = [(layer.keys, layer.values) for layer in layers]

    def end(self) -> None:
        for table in self.tables:
            self.pool.blocks.let_go(reversed(table))
            table.clear()


@dataclass(frozen=True)
class Paged(CachePolicy):
    """block: how many tokens a block holds. most_tokens: how many the pool may hold in all; None is no limit."""

    block: int = 64
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        require_whole("cache.block", self.block, LIMITS["context_length"])
        if self.most_tokens is not None:
            require_whole("cache.most_tokens", self.most_tokens, LIMITS["context_length"] * 1000)

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> PagedLayer:
        """A layer with a pool of its own, in which no two blocks of a row lie one behind the other in order."""
        per_row = -(-capacity // self.block)
        shape = (attention.num_kv_heads, batch * per_row + 1, self.block, attention.head_size)
        table = np.arange(batch * per_row, 0, -1).reshape(per_row, batch).T
        return PagedLayer(ops.zeros(shape), ops.zeros(shape), ops.asarray(np.ascontiguousarray(table)))

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> Pool:
        self.require_fitting(config)
        return Pool(ops, config, self.size(config), self.most_tokens)

    def size(self, config: ModelConfig) -> int:
        """Of a block, in tokens: no text is longer than the context, so more would be room for nothing."""
        return min(self.block, config.context_length)

    def require_fitting(self, config: ModelConfig) -> None:
        """Raises ConfigurationError for a model of which a pool cannot hold the keys."""
        for layer, block in enumerate(config.blocks):
            if getattr(block, "chooses_tokens", False):
                message = (
                    f"Block {layer} chooses which tokens go through it, and a pool of blocks does not keep which. Use "
                    "cache=contiguous."
                )
                raise ConfigurationError(message)

    def begin(
        self, memory: Pool, ops: Any, config: ModelConfig, rows: Sequence[Sequence[int]], capacity: int
    ) -> tuple[PagedRows, list[int]]:
        return PagedRows(memory, len(rows), capacity), [0] * len(rows)

    def ready(self, ops: Any, cache: PagedRows, lengths: Sequence[int], reach: int, most: int) -> list[PagedLayer]:
        return cache.layers(lengths)

    def keep(self, cache: PagedRows, written: Sequence[PagedLayer]) -> PagedRows:
        cache.keep(written)
        return cache

    def arrays(self, cache: PagedRows) -> Any:
        return cache.pool.layers

    def end(self, cache: PagedRows, rows: Sequence[Sequence[int]]) -> None:
        cache.end()
