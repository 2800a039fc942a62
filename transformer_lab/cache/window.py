"""A ring for what a window still sees: older keys are written over. `cache=window` builds it.

A layer whose attention has a window of W keys (Beltagy et al. 2020, arXiv 2004.05150) needs no more than the last W.
The key of position p lies in slot p mod R of a ring of R > W, so which position a slot holds follows from how far the
text has come, and is stored nowhere.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.layer import NOWHERE, Fresh, Seen, last_place
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens


class RingLayer(NamedTuple):
    """keys, values [B, K, R, N]. narrow [0, size]: nothing, of as many columns as a query sees keys, if the policy says
    so and not the model; None if the model does."""

    keys: Any
    values: Any
    narrow: Any = None

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["RingLayer", Seen]:
        """One token is written into its slot. Several are seen beside what the ring held before them; then each slot
        gets the newest real token that belongs there."""
        xp, ring, length = ops.xp, self.keys.shape[2], fresh.key.shape[2]
        window = None if self.narrow is None else self.narrow.shape[1]
        last = last_place(ops, tokens)
        now = self._places(ops, last)
        if length == 1:
            # A token that is none lies then in the slot of position start - R, which no window of less than R sees.
            slot = tokens.start % ring
            keys = ops.slice_update(self.keys, fresh.key, slot, axis=2)
            values = ops.slice_update(self.values, fresh.value, slot, axis=2)
            return self._replace(keys=keys, values=values), Seen(keys, values, now, window)
        new = tokens.start[:, None] + xp.arange(length, dtype=tokens.start.dtype, device=ops.array_device)
        places = xp.concat([self._places(ops, tokens.start - 1), new], axis=1)
        keys = xp.concat([self.keys, fresh.key], axis=2)
        values = xp.concat([self.values, fresh.value], axis=2)
        slots = xp.arange(ring, dtype=tokens.start.dtype, device=ops.array_device)[None, :]
        # In which place of this pass the key of a slot came; below 0 if it was there before.
        came = xp.where(now == NOWHERE, -1, now) - tokens.start[:, None]
        index = xp.where(came >= 0, ring + came, slots)[:, None, :, None]
        index = xp.broadcast_to(index, (*self.keys.shape[:3], keys.shape[3]))
        kept = [xp.take_along_axis(array, index, axis=2) for array in (keys, values)]
        layer = self._replace(keys=kept[0], values=kept[1])
        if ops.in_place and not np.any(ops.to_numpy(tokens.start)):  # nothing was there before, and that is known
            return layer, Seen(fresh.key, fresh.value, window=window)
        return layer, Seen(keys, values, places, window)

    def _places(self, ops: Any, last: Any) -> Any:
        """[B, R], which position each slot holds when the newest is last [B]; NOWHERE if none."""
        ring = self.keys.shape[2]
        slots = ops.xp.arange(ring, dtype=last.dtype, device=ops.array_device)[None, :]
        places = last[:, None] - (last[:, None] - slots) % ring
        return ops.xp.where(places < 0, NOWHERE, places)


@dataclass(frozen=True)
class Window(Contiguous):
    """A ring for each layer with a window; all keys for a layer without one.

    slack: how many of the last tokens may be taken back, by passes that begin earlier, before the ring has lost what
    the window then sees. size: every layer sees no more than so many keys, whatever the model says: that is another
    computation than the model's own, and `lossy`.
    """

    slack: int = 1
    size: int | None = None

    def __post_init__(self) -> None:
        require_whole("cache.slack", self.slack, LIMITS["context_length"])
        if self.size is not None:
            require_whole("cache.size", self.size, LIMITS["context_length"])

    @property
    def contract(self) -> str:
        return "exact" if self.size is None else "lossy"

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Any:
        windows = [window for window in (attention.window, self.size) if window is not None]
        if not windows:
            return super().layer(ops, attention, batch, capacity)
        window = min(windows)
        shape = (batch, attention.num_kv_heads, min(window + self.slack, capacity), attention.head_size)
        narrow = None if window == attention.window else ops.zeros((0, window))
        return RingLayer(ops.zeros(shape), ops.zeros(shape), narrow)
