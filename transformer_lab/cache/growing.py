"""The contiguous cache that grows with the text, by half each time. `cache=growing` builds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.cache.contiguous import Contiguous, ContiguousLayer
from transformer_lab.cache.layer import longer
from transformer_lab.cache.marked import Marked
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS, require_whole


@dataclass(frozen=True)
class Growing(Contiguous):
    """Room for `room` tokens at first, and half as much again whenever it is full: what is held is at most 1.5 times
    what is needed, save while it is copied. Where shapes are compiled it grows from bucket to bucket, each a
    compilation. For texts that mostly end long before the most they may have."""

    room: int = 64

    def __post_init__(self) -> None:
        require_whole("cache.room", self.room, LIMITS["context_length"])

    def begin(
        self, memory: Any, ops: Any, config: ModelConfig, rows: Sequence[Sequence[int]], capacity: int
    ) -> tuple[Any, list[int]]:
        return self.allocate(ops, config, len(rows), min(self.room, capacity)), [0] * len(rows)

    def ready(self, ops: Any, cache: Any, lengths: Sequence[int], reach: int, most: int) -> Any:
        return [self._grown(ops, layer, reach, most) for layer in cache]

    def _grown(self, ops: Any, layer: Any, length: int, most: int) -> Any:
        inner = layer.layer if isinstance(layer, Marked) else layer
        if length <= inner.capacity:
            return layer
        capacity = ops.bucket(min(max(length, inner.capacity + inner.capacity // 2), most), most)
        more = capacity - inner.capacity
        grown = ContiguousLayer(*(type(stored)(*(longer(ops, x, more, 2) for x in stored)) for stored in inner))
        return Marked(longer(ops, layer.chosen, more, 1), grown) if isinstance(layer, Marked) else grown
