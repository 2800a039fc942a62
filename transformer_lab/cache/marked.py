"""The cache of a block that not all tokens go through: beside keys and values, which tokens did."""

from typing import Any, NamedTuple


class Marked(NamedTuple):
    """chosen [B, capacity]: by position 1 for the tokens that went through the block. layer: the cache of its
    attention, in which their keys and values lie one behind the other, without gaps."""

    chosen: Any
    layer: Any

    def choose(self, ops: Any, chosen: Any, start: Any) -> tuple["Marked", Any]:
        """Marks which of the tokens at positions start [B] onward are chosen, booleans [B, T]; consumes this one.

        Returns the new one and [B], how many tokens before `start` are.
        """
        places = ops.xp.arange(self.chosen.shape[1], dtype=start.dtype, device=ops.array_device)
        earlier = (self.chosen > 0.0) & (places < start[:, None])
        count = ops.xp.sum(ops.cast(earlier, ops.index_dtype), axis=-1)
        marks = ops.slice_update(self.chosen, ops.cast(chosen, self.chosen.dtype), start, axis=1)
        return self._replace(chosen=marks), count


def marked(ops: Any, block: Any, layer: Any, batch: int, capacity: int) -> Any:
    """The cache of this block, if `layer` is that of its attention: with marks, if it chooses its tokens."""
    return Marked(ops.zeros((batch, capacity)), layer) if getattr(block, "chooses_tokens", False) else layer
