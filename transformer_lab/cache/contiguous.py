"""The contiguous cache: two preallocated arrays per layer, written by position. `cache=contiguous` builds it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformer_lab.model.config import ModelConfig


class ContiguousLayer(NamedTuple):
    """keys and values [B, K, capacity, N] of one layer; what lies behind a row's last token is never visible to it.

    chosen [B, capacity]: of a block that not all tokens go through, by position 1 for those that do. Their keys and
    values lie one behind the other, without gaps. None: all tokens do.
    """

    keys: Any
    values: Any
    chosen: Any = None

    def update(self, ops: Any, keys: Any, values: Any, start: Any) -> tuple["ContiguousLayer", Any, Any]:
        """Writes keys and values [B, K, T, N] at positions start [B]; consumes this layer.

        Returns the new layer and all keys and values, [B, K, capacity, N].
        """
        keys = ops.slice_update(self.keys, keys, start, axis=2)
        values = ops.slice_update(self.values, values, start, axis=2)
        return self._replace(keys=keys, values=values), keys, values

    def choose(self, ops: Any, chosen: Any, start: Any) -> tuple["ContiguousLayer", Any]:
        """Marks which of the tokens at positions start [B] onward are chosen, booleans [B, T]; consumes this layer.

        Returns the new layer and [B], how many tokens before `start` are.
        """
        places = ops.xp.arange(self.chosen.shape[1], dtype=start.dtype, device=ops.array_device)
        earlier = (self.chosen > 0.0) & (places < start[:, None])
        count = ops.xp.sum(ops.cast(earlier, ops.index_dtype), axis=-1)
        marks = ops.slice_update(self.chosen, ops.cast(chosen, self.chosen.dtype), start, axis=1)
        return self._replace(chosen=marks), count


@dataclass(frozen=True)
class Contiguous:
    """Room for every token of a generation, allocated once."""

    def allocate(self, ops: Any, config: ModelConfig, batch: int, capacity: int) -> list[ContiguousLayer]:
        layers = []
        for block in config.blocks:
            shape = (batch, block.attention.num_kv_heads, capacity, block.attention.head_size)
            chosen = ops.zeros((batch, capacity)) if getattr(block, "chooses_tokens", False) else None
            layers.append(ContiguousLayer(ops.zeros(shape), ops.zeros(shape), chosen))
        return layers

    def first(self, ops: Any, cache: list[ContiguousLayer], length: int) -> list[ContiguousLayer]:
        """The cache as far as `length` positions.

        Where updates are made in place this is a view, and attention reads no more than is there; where they are
        not, it is the whole cache, since each new length would be compiled anew.
        """
        if not ops.in_place:
            return cache
        return [
            ContiguousLayer(
                layer.keys[:, :, :length],
                layer.values[:, :, :length],
                None if layer.chosen is None else layer.chosen[:, :length],
            )
            for layer in cache
        ]
