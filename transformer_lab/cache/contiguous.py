"""The contiguous cache: two preallocated arrays per layer, written by position. `cache=contiguous` builds it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformer_lab.model.config import ModelConfig


class ContiguousLayer(NamedTuple):
    """keys and values [B, K, capacity, N] of one layer; what lies behind a row's last token is never visible to it."""

    keys: Any
    values: Any

    def update(self, ops: Any, keys: Any, values: Any, start: Any) -> tuple["ContiguousLayer", Any, Any]:
        """Writes keys and values [B, K, T, N] at positions start [B]; consumes this layer.

        Returns the new layer and all keys and values, [B, K, capacity, N].
        """
        layer = ContiguousLayer(
            ops.slice_update(self.keys, keys, start, axis=2), ops.slice_update(self.values, values, start, axis=2)
        )
        return layer, layer.keys, layer.values


@dataclass(frozen=True)
class Contiguous:
    """Room for every token of a generation, allocated once."""

    def allocate(self, ops: Any, config: ModelConfig, batch: int, capacity: int) -> list[ContiguousLayer]:
        parts = [block.attention for block in config.blocks]
        shapes = [(batch, part.num_kv_heads, capacity, part.head_size) for part in parts]
        return [ContiguousLayer(ops.zeros(shape), ops.zeros(shape)) for shape in shapes]

    def first(self, ops: Any, cache: list[ContiguousLayer], length: int) -> list[ContiguousLayer]:
        """The cache as far as `length` positions.

        Where updates are made in place this is a view, and attention reads no more than is there; where they are
        not, it is the whole cache, since each new length would be compiled anew.
        """
        if not ops.in_place:
            return cache
        return [ContiguousLayer(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache]
