"""A prefix cache with tiers below the device: host memory and files. `cache=tiered` builds it.

What the pool gives away is read back from there, and what an earlier process computed too, where its provenance is the
same (`provenance.py`, `tiers/key.py`). The pool is the hot tier; a text's blocks are put into the tiers when it ends.
"""

import math
import secrets
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.int8 import Int8
from transformer_lab.cache.prefix import Prefix, PrefixPool
from transformer_lab.cache.provenance import provenance
from transformer_lab.errors import ConfigurationError, TierWarning
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import require_choice
from transformer_lab.paths import expanded
from transformer_lab.tiers.block import Arrays
from transformer_lab.tiers.eviction import Eviction, FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.key import first_key, next_key
from transformer_lab.tiers.ledger import INERT_LOOKUPS
from transformer_lab.tiers.shadow import Shadow
from transformer_lab.tiers.tiers import Found, Tiers

# How numbers lie below the device, and what is promised of those that come back.
BELOW: dict[str, Contiguous] = {"whole": Contiguous(), "int8": Int8()}
EVICTIONS: dict[str, Callable[[], Eviction]] = {"lru": LeastRecentlyUsed, "lfu": FrequentlyUsed}
# How far a number that is computed again may be off, relative to the largest of its block, where a batch of another
# size is added up in another order. In exact mode it may not be off at all.
ADDED_OTHERWISE = 1e-3


class TieredPool(PrefixPool):
    """A prefix pool that asks its tiers for the blocks that it lacks."""

    def __init__(self, ops: Any, config: ModelConfig, params: Any, policy: "Tiered") -> None:
        super().__init__(ops, config, policy.size(config), policy.kept_tokens)
        self._folder = None if policy.cold_folder is None else Path(policy.cold_folder)
        self._require_room(policy)
        self.tiers = Tiers(policy.warm_bytes, self._folder, policy.cold_bytes, EVICTIONS[policy.eviction])
        # Others in each process: a short run may have fewer hits than come before the first of one fixed choice.
        self.shadow = Shadow(policy.shadow, seed=secrets.randbits(64))
        self.sound = True  # no block was found to be another than what is computed
        self._stored: Any = BELOW[policy.below].stored
        self._start = first_key(provenance(ops, config, params, policy.block, policy.below))
        self._doubted: dict[bytes, Found] = {}  # hits that are computed again
        self._from_below: set[int] = set()  # blocks whose numbers were read from the tiers
        self._most: int | None = None  # blocks that the last tier has room for, once one is there
        self._hits = 0
        self._inert: list[str] = []
        weakref.finalize(self, self.tiers.finish)  # at the end of the process too

    @property
    def has_tiers(self) -> bool:
        return self.sound and self.tiers.is_open

    def close(self) -> None:
        self.tiers.close()

    def _require_room(self, policy: "Tiered") -> None:
        """Raises ConfigurationError for a tier that could not hold one block."""
        numbers = sum(math.prod(pool.shape) // pool.shape[1] for _, pool in self._named())
        size = numbers * (1 if policy.below == "int8" else self.layers[0][0].dtype.itemsize)
        for name in ("warm_bytes", "cold_bytes"):
            if 0 < getattr(policy, name) < size:
                message = (
                    f"cache.{name} is {getattr(policy, name)}, and a block of {self.size} tokens takes {size:,} bytes. "
                    "Give it more, or 0 for none, or a smaller cache.block."
                )
                raise ConfigurationError(message)

    def hold(self, ids: Sequence[int]) -> list[int]:
        table = super().hold(ids)
        try:
            self._fetch(ids, table)
        except BaseException:  # an interruption while blocks are read
            self.blocks.let_go(reversed(table), self.is_known)
            raise
        return table

    def _fetch(self, ids: Sequence[int], table: list[int]) -> None:
        """Appends the blocks behind those of the table that the tiers have, from the last to the first: so a tier that
        needs room gives away the end of a text before its beginning, without which the end cannot be found."""
        asked = list(self._keys(ids[:-1]))[len(table) :] if self.has_tiers else []
        count = next((n for n, (key, _) in enumerate(asked) if not self.tiers.contains(key)), len(asked))
        if count < len(asked):
            self.tiers.get(*asked[count])  # the lookup that ends the search counts too
        fetched: list[Arrays] = []
        for key, part in reversed(asked[:count]):
            found = self._fetched(key, part)
            fetched = [] if found is None else [found.arrays, *fetched]
        for behind in range(len(fetched) - 1, -1, -1):
            table.append(self.take(table[-1] + 1 if table else 1, behind))
        if fetched:
            new = table[-len(fetched) :]
            self._write(new, fetched)
            self._from_below.update(new)
            super().remember(ids[: len(table) * self.size], table)
            self.counts.found += len(fetched) * self.size

    def take(self, near: int, and_more: int) -> int:
        block = super().take(near, and_more)
        self._from_below.discard(block)
        return block

    def remember(self, ids: Sequence[int], table: Sequence[int]) -> None:
        keyed = list(zip(self._keys(ids), table, strict=False))
        for (key, _), block in keyed:
            found = self._doubted.pop(key, None)
            if found is not None and self.sound:
                self._compare(found, self._read(block))
        if not self.sound and not self._from_below.isdisjoint(table):
            return  # what hangs on a tier that lied is not used again
        super().remember(ids, table)
        if keyed and self.has_tiers:
            self._put(keyed)
        for name in self.tiers.ledger.inert():
            if name not in self._inert:
                self._inert.append(name)
                message = (
                    f"The {name} tier of the cache was written {self.tiers.ledger.inert_after} times, and none of "
                    f"{INERT_LOOKUPS} lookups was answered by it. If texts begin alike, give it more bytes; else turn "
                    "it off."
                )
                warnings.warn(message, TierWarning, stacklevel=2)

    def _put(self, keyed: Sequence[tuple[tuple[bytes, tuple[int, ...]], int]]) -> None:
        """From the last to the first, as they are read; and of a text that is longer than the tiers, the beginning."""
        if self._most is None:
            (key, part), block = keyed[0]
            self._most = self.tiers.most_like(key, part, self._read(block))
        for (key, part), block in reversed(keyed[: self._most]):
            if not self.tiers.contains(key):
                self.tiers.put(key, part, self._read(block))

    def _keys(self, ids: Sequence[int]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """The key and the tokens of each full block."""
        key = self._start
        for first in range(0, len(ids) - self.size + 1, self.size):
            part = tuple(ids[first : first + self.size])
            key = next_key(key, part, [self.size])
            yield key, part

    def _fetched(self, key: bytes, part: tuple[int, ...]) -> Found | None:
        """From the tiers, unless it is to be computed again to see whether it is right."""
        found = self.tiers.get(key, part)
        if found is None:
            return None
        self._hits += 1
        if self.shadow.chosen(self._hits):
            self._doubted[key] = found
            return None
        return found

    def _read(self, block: int) -> Arrays:
        """Its keys and values of all layers, [K, Z, N] each, as they are stored below."""
        found = {}
        for name, pool in self._named():
            stored = self._stored.encode(self.ops, pool[:, block, ...])
            for part, array in stored._asdict().items():
                found[f"{name}.{part}"] = np.asarray(self.ops.to_numpy(array))
        return found

    def _named(self) -> Iterator[tuple[str, Any]]:
        """The pools of all layers."""
        for layer, pools in enumerate(self.layers):
            yield from zip((f"{layer}.keys", f"{layer}.values"), pools, strict=True)

    def _write(self, blocks: Sequence[int], fetched: Sequence[Arrays]) -> None:
        """Several at once: where arrays are immutable, each write copies the pool."""
        ops, at = self.ops, self.ops.asarray(np.array(blocks))

        def written(name: str, pool: Any) -> Any:
            parts = (
                np.stack([arrays[f"{name}.{part}"] for arrays in fetched], axis=1) for part in self._stored._fields
            )
            stored = self._stored(*map(ops.asarray, parts))  # [K, n, Z, N]
            return ops.put(pool, (slice(None), at), ops.cast(stored.decode(ops), pool.dtype))

        pools = [written(name, pool) for name, pool in self._named()]
        self.layers = list(zip(pools[::2], pools[1::2], strict=True))

    def _compare(self, found: Found, computed: Arrays) -> None:
        """A tier that gave something else than what is computed is not asked again, and whoever runs this is told."""
        exact = self.ops.precision == "exact"
        largest = max(float(np.max(np.abs(array), initial=0.0)) for array in computed.values())
        self.shadow.bounds = {} if exact else {found.tier: ADDED_OTHERWISE * largest}
        if not self.shadow.record(found.tier, found.arrays, computed):
            self.sound = False
            self.forget()
            off = self.shadow.outcomes[found.tier].largest
            message = (
                f"A block from the {found.tier} tier of the cache is off by up to {off:.3g} from what is computed, so "
                "texts of this run that began as earlier ones may be wrong. The tiers are not used any more in it. "
                f"Remove the files in {self._folder}, if there are any, and please report it."
            )
            warnings.warn(message, TierWarning, stacklevel=2)

    def to_dict(self) -> dict[str, Any]:
        """What was found, tier by tier, and what came of computing it again."""
        outcomes = {tier: asdict(outcome) for tier, outcome in self.shadow.outcomes.items()}
        return super().to_dict() | {"tiers": asdict(self.tiers.ledger), "shadow": outcomes}


@dataclass(frozen=True)
class Tiered(Prefix):
    """block, kept_tokens: as `Prefix` has them; kept_tokens is the budget of the hot tier, beside texts under way.

    warm_bytes, cold_bytes: budgets of host memory and of the files in cold_folder; 0, or no folder, turns a tier off.
    eviction: "lru" or "lfu" (`tiers/eviction.py`). below: "whole", or "int8", in which blocks take a quarter of the
    bytes below the device, and what comes back is bounded as `Int8` says and no longer exact. shadow: the share of hits
    that are computed again and compared; of whole blocks alone, for what comes behind a rounded block differs by more
    than its own rounding.

    In float32 blocks of decoded tokens stay in the pool's text alone, because they have other last bits.
    """

    decoded: bool = field(default=False, init=False)
    warm_bytes: int = 256 * 2**20
    cold_folder: str | Path | None = None
    cold_bytes: int = 4 * 2**30
    eviction: str = "lru"
    below: str = "whole"
    shadow: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("cache.eviction", self.eviction, tuple(EVICTIONS))
        if self.cold_folder is not None and not str(self.cold_folder).strip():
            message = "cache.cold_folder is empty. Name a folder, or leave it out for no files."
            raise ConfigurationError(message)
        if self.cold_folder is not None:  # the working folder of the process may change
            object.__setattr__(self, "cold_folder", expanded(self.cold_folder).absolute())
        require_choice("cache.below", self.below, tuple(BELOW))
        for name in ("warm_bytes", "cold_bytes"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                message = f"cache.{name} is {size!r}; it must be a whole number of bytes, or 0 for none."
                raise ConfigurationError(message)
        if isinstance(self.shadow, bool) or not isinstance(self.shadow, (int, float)) or not 0 <= self.shadow <= 1:
            message = f"cache.shadow is {self.shadow!r}; it must be a share of the hits, from 0 to 1."
            raise ConfigurationError(message)
        if self.shadow and self.below != "whole":
            message = (
                f"cache.shadow is {self.shadow} and cache.below {self.below}, but only whole blocks can be computed "
                "again and compared. Leave out one of them."
            )
            raise ConfigurationError(message)

    @property
    def contract(self) -> str:
        return BELOW[self.below].contract

    @property
    def epsilon(self) -> float:
        return BELOW[self.below].epsilon

    def rounding(self, x: np.ndarray) -> np.ndarray:
        return BELOW[self.below].rounding(x)

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        """By itself it is judged as if all had been below."""
        if self.below == "whole":
            return super().layer(ops, attention, batch, capacity)
        return BELOW[self.below].layer(ops, attention, batch, capacity)

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> TieredPool:
        self.require_fitting(config)
        return TieredPool(ops, config, params, self)
