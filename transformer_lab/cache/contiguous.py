"""The contiguous cache: two arrays per layer, allocated once and written by position. `cache=contiguous` builds it."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from transformer_lab.cache.layer import Fresh, Seen, filled
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.cache.stored import Whole, first, written
from transformer_lab.model.tokens import Tokens


class ContiguousLayer(NamedTuple):
    """keys and values: stored [B, K, capacity, N], slot s for position s. What lies behind a row's last token is never
    visible to it."""

    keys: Any
    values: Any

    @property
    def capacity(self) -> int:
        return int(self.keys[0].shape[2])

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["ContiguousLayer", Seen]:
        """Writes the keys and values of these tokens; where an array is written in place, attention reads no more of
        it than is there, and elsewhere all, since each new length would be compiled anew."""
        keys = written(ops, self.keys, fresh.key, tokens.start)
        values = written(ops, self.values, fresh.value, tokens.start)
        length = filled(ops, tokens.start, fresh.key.shape[2], self.capacity)
        seen = type(keys).seen(ops, first(keys, length), first(values, length), fresh.key.shape[2])
        return ContiguousLayer(keys, values), seen


@dataclass(frozen=True)
class Contiguous(CachePolicy):
    """Room for every token of a generation, allocated once."""

    stored: ClassVar[type[Any]] = Whole  # how numbers are kept

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        shape = (batch, attention.num_kv_heads, capacity, attention.head_size)
        return ContiguousLayer(self.stored.empty(ops, shape), self.stored.empty(ops, shape))
