"""A paged cache that remembers finished texts: what begins alike is computed once. `cache=prefix` builds it.

As vLLM's automatic prefix caching (Kwon et al. 2023, arXiv 2309.06180, section 4.4), with a tree in place of hashes, so
that tokens are compared and never a hash of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformer_lab.cache.paged import Paged, PagedRows, Pool
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.causality import not_in_pieces
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS, require_whole

Ids = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """A full block of tokens after those of its parents. block: where in the pool their keys and values lie."""

    ids: Ids
    parent: "Node | None" = None
    block: int | None = None
    children: dict[Ids, "Node"] = field(default_factory=dict)


@dataclass
class PrefixCounts:
    """In tokens: of prompts that were begun, and of these what was there. forgotten: whose blocks were given away."""

    asked: int = 0
    found: int = 0
    kept: int = 0
    forgotten: int = 0


class PrefixPool(Pool):
    """A pool whose blocks stay known by their tokens after nobody holds them any more."""

    def __init__(self, ops: Any, config: ModelConfig, size: int, most_kept: int) -> None:
        super().__init__(ops, config, size, None, most_kept)
        self.root = Node(())
        self.counts = PrefixCounts()
        self._known: dict[int, Node] = {}  # by block

    @property
    def has_tiers(self) -> bool:
        """Whether what is given away here may be found below."""
        return False

    def longest(self, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest beginning of ids that is known. At least one token is left to be computed, because
        somebody wants its logits."""
        found, node = [], self.root
        for first in range(0, len(ids) - self.size, self.size):
            child = node.children.get(tuple(ids[first : first + self.size]))
            if child is None:
                break
            node = child
            assert node.block is not None
            found.append(node.block)
        self.counts.asked += len(ids)
        self.counts.found += len(found) * self.size
        return found

    def hold(self, ids: Sequence[int]) -> list[int]:
        """The same blocks for one holder more."""
        found = self.longest(ids)
        for block in found:
            self.blocks.share(block)
        return found

    def remember(self, ids: Sequence[int], table: Sequence[int]) -> None:
        """The full blocks of ids lie in these blocks. What is known already stays where it is."""
        node = self.root
        for first, block in zip(range(0, len(ids) - self.size + 1, self.size), table, strict=False):
            part = tuple(ids[first : first + self.size])
            if part not in node.children:
                node.children[part] = self._known[block] = Node(part, node, block)
                self.counts.kept += self.size
            node = node.children[part]

    def forget(self) -> None:
        """Nothing is found here any more: it is computed again, or comes from below. What texts under way hold stays
        theirs."""
        self.blocks.give_away_kept()
        self.root, self._known = Node(()), {}

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"prompt_tokens": asdict(self.counts)}

    def is_known(self, block: int) -> bool:
        return block in self._known

    def forgotten(self, block: int) -> None:
        node = self._known.pop(block)
        assert node.parent is not None
        del node.parent.children[node.ids]
        self.counts.forgotten += self.size


class PrefixRows(PagedRows):
    """Rows of which the beginning may be shared. canonical: of each row how many tokens come in the prompt's passes."""

    def __init__(self, pool: PrefixPool, rows: Sequence[Sequence[int]], capacity: int) -> None:
        super().__init__(pool, len(rows), capacity)
        try:
            for table, ids in zip(self.tables, rows, strict=True):
                table += pool.hold(ids)
        except BaseException:  # an interruption while blocks are read
            for table in self.tables:
                pool.blocks.let_go(reversed(table), pool.is_known)
            raise
        self.known = [len(table) * pool.size for table in self.tables]
        self.canonical = [len(ids) for ids in rows]


@dataclass(frozen=True)
class Prefix(Paged):
    """block: how many tokens a block holds; prompts are computed in passes of so many, cut at its multiples, whether
    their beginning is there or not: so a text that finds it is computed by the same passes as one that does not, and
    in float32 too its numbers are the same as far as a product of the same shape has the same bits.

    kept_tokens: of how many the blocks are kept when their texts have ended; those that were used last. decoded: blocks
    of decoded tokens are kept as well, which in float32 have other last bits than a prompt's pass. In exact mode they
    have the same and always are.
    """

    kept_tokens: int = 8192
    decoded: bool = False
    most_tokens: None = field(default=None, init=False)  # what is under way finds room

    def __post_init__(self) -> None:
        require_whole("cache.block", self.block, LIMITS["context_length"])
        require_whole("cache.kept_tokens", self.kept_tokens, LIMITS["context_length"] * 1000)
        if not isinstance(self.decoded, bool):
            message = f"cache.decoded is {self.decoded!r}; it must be true or false."
            raise ConfigurationError(message)

    @property
    def chunk(self) -> int:
        return self.block

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> PrefixPool:
        self.require_fitting(config)
        return PrefixPool(ops, config, self.size(config), self.kept_tokens)

    def require_fitting(self, config: ModelConfig) -> None:
        super().require_fitting(config)
        if (why := not_in_pieces(config)) is not None:
            message = f"{why} So nothing of it can be used again. Use cache=contiguous."
            raise ConfigurationError(message)

    def begin(
        self, memory: Pool, ops: Any, config: ModelConfig, rows: Sequence[Sequence[int]], capacity: int
    ) -> tuple[PrefixRows, list[int]]:
        assert isinstance(memory, PrefixPool)
        cache = PrefixRows(memory, rows, capacity)
        return cache, cache.known

    def end(self, cache: PagedRows, rows: Sequence[Sequence[int]]) -> None:
        assert isinstance(cache, PrefixRows)
        pool = cache.pool
        assert isinstance(pool, PrefixPool)
        every = self.decoded or pool.ops.precision == "exact"
        for table, ids, count in zip(cache.tables, rows, cache.canonical, strict=True):
            pool.remember(ids if every else ids[:count], table)
            # The end of a text is forgotten before its beginning.
            pool.blocks.let_go(reversed(table), pool.is_known)
            table.clear()
