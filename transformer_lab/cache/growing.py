"""The contiguous cache that grows with the text, by half each time. `cache=growing` builds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.cache.contiguous import Contiguous, ContiguousLayer
from transformer_lab.cache.marked import Marked
from transformer_lab.model.limits import LIMITS, require_whole


@dataclass(frozen=True)
class Growing(Contiguous):
    """Room for `room` tokens at first, and half as much again whenever it is full: what is held is at most 1.5 times
    what is needed, save while it is copied. Where shapes are compiled it grows from bucket to bucket, each a
    compilation. For texts that mostly end long before the most they may have."""

    room: int = 64

    def __post_init__(self) -> None:
        require_whole("cache.room", self.room, LIMITS["context_length"])

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        return super().layer(ops, attention, batch, min(self.room, capacity))

    def ready(self, ops: Any, cache: Any, lengths: Sequence[int], reach: int, most: int) -> Any:
        return [self._grown(ops, layer, reach, most) for layer in cache]

    def _grown(self, ops: Any, layer: Any, length: int, most: int) -> Any:
        if isinstance(layer, Marked):
            return layer._replace(layer=self._grown(ops, layer.layer, length, most))
        if length <= layer.capacity:
            return layer
        capacity = ops.bucket(min(max(length, layer.capacity + layer.capacity // 2), most), most)

        def longer(array: Any) -> Any:
            shape = (*array.shape[:2], capacity - array.shape[2], *array.shape[3:])
            return ops.xp.concat([array, ops.xp.zeros(shape, dtype=array.dtype, device=ops.array_device)], axis=2)

        return ContiguousLayer(*(type(stored)(*map(longer, stored)) for stored in layer))
