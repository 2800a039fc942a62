"""The first positions and the last ones, counted anew inside the cache. `cache=sinks` builds it.

StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): trained models attend much to the first few tokens, whatever these
say. With them kept beside a window, a text can run on in a fixed memory. Of n = sinks + recent keys that a query at
position t may see, its own included, there are those at p < sinks and those at p > t - recent. Positions are counted
without the gap between the two: the query is at min(t, n - 1), and so many positions nearer to each sink,

    shift = max(0, t - (n - 1)),

while the recent keys are as far off as they were. So a sink p counts as the key at p + shift; where attention turns
queries, the sinks are met by one turned as at t - shift. Both are one product if the query is twice as wide: (turned as
ever, turned anew), recent keys are (k, 0), and sinks (0, k). While t < n, nothing differs from a text without a policy.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformer_lab.cache.layer import NOWHERE, Fresh, Seen, last_place
from transformer_lab.cache.marked import marked
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.cache.window import RingLayer, Window
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens


class SinksLayer(NamedTuple):
    """keys, values [B, K, sinks, N], slot s for position s. ring: the recent ones, of which it is narrowed to `recent`.
    table: (cos, sin), each [positions, N / 2], by which queries are turned for the sinks; None if none are."""

    keys: Any
    values: Any
    ring: RingLayer
    table: tuple[Any, Any] | None

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["SinksLayer", Seen]:
        """The sinks, then what the ring shows, in which the sinks are seen no more."""
        xp, sinks, recent = ops.xp, self.keys.shape[2], self.ring.narrow.shape[1]
        layer = self._replace(
            keys=self._with_first(ops, self.keys, fresh.key, tokens),
            values=self._with_first(ops, self.values, fresh.value, tokens),
        )
        ring, seen = self.ring.update(ops, fresh, tokens)
        layer = layer._replace(ring=ring)

        def numbers(count: int) -> Any:
            return xp.arange(count, dtype=tokens.start.dtype, device=ops.array_device)[None, :]

        at = (tokens.start[:, None] + numbers(fresh.key.shape[2]))[..., None]  # [B, T, 1], where each query stands
        shift = xp.clip(at - (sinks + recent - 1), 0, None)
        places = (numbers(seen.keys.shape[2]) if seen.places is None else seen.places)[:, None, :]
        places = xp.where((places >= sinks) & (places > at - recent), places, NOWHERE)  # [B, T, S]
        places = xp.concat([numbers(sinks)[:, None, :] + shift, places], axis=2)
        parts = (layer.keys, seen.keys), (layer.values, seen.values)
        if self.table is None:
            keys, values = (xp.concat(list(pair), axis=2) for pair in parts)
            return layer, Seen(keys, values, places)
        if fresh.turned is None:
            message = (
                "cache=sinks turns queries anew, and this attention does not tell a cache how (it gives no `turned`). "
                "Use cache=contiguous."
            )
            raise ConfigurationError(message)
        nearer = xp.clip(tokens.positions - shift[..., 0], 0, self.table[0].shape[0] - 1)
        anew = fresh.turned(tuple(ops.embed(rows, nearer) for rows in self.table))
        (first, other), pair = parts
        keys = xp.concat([_wider(ops, first, in_front=True), _wider(ops, other)], axis=2)
        values = _wider(ops, xp.concat(list(pair), axis=2))
        return layer, Seen(keys, values, places, query=xp.concat([fresh.query, anew], axis=-1))

    def _with_first(self, ops: Any, kept: Any, new: Any, tokens: Tokens) -> Any:
        """The sinks [B, K, sinks, N], with those among new [B, K, T, N] that are some."""
        xp, slots = ops.xp, ops.xp.arange(kept.shape[2], dtype=tokens.start.dtype, device=ops.array_device)[None, :]
        came = slots - tokens.start[:, None]  # [B, sinks], in which place of this pass
        index = xp.clip(came, 0, new.shape[2] - 1)[:, None, :, None]
        brought = xp.take_along_axis(new, xp.broadcast_to(index, kept.shape), axis=2)
        real = (came >= 0) & (slots <= last_place(ops, tokens)[:, None])
        return xp.where(real[:, None, :, None], brought, kept)


def _wider(ops: Any, x: Any, in_front: bool = False) -> Any:
    """x [..., N] with as many zeros behind or in front of it."""
    zeros = ops.xp.zeros_like(x)
    return ops.xp.concat([zeros, x] if in_front else [x, zeros], axis=-1)


@dataclass(frozen=True)
class Sinks(CachePolicy):
    """sinks: how many first positions stay. recent: how many keys a query sees of the last ones, its own included.
    slack: how many of the last tokens may be taken back, by passes that begin earlier.

    A text goes on in the memory of sinks + recent + slack tokens. It ends with the model's context as ever, for
    recent keys stay turned by their own positions. A layer with a window of its own keeps, in a ring, what that sees
    (`cache/window.py`). In a block that chooses its tokens, those that it chose are counted; a query is turned nearer
    to the sinks by as many positions as keys are gone.
    """

    sinks: int = 4
    recent: int = 252
    slack: int = 1

    def __post_init__(self) -> None:
        for name in ("sinks", "recent", "slack"):
            require_whole(f"cache.{name}", getattr(self, name), LIMITS["context_length"])

    @property
    def contract(self) -> str:
        return "lossy"

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int, turns: int | None = None) -> Any:
        """turns: to how many positions a query may be turned; None is as many as it sees keys."""
        if attention.window is not None:
            return Window(self.slack).layer(ops, attention, batch, capacity)
        shape = (batch, attention.num_kv_heads, min(self.sinks, capacity), attention.head_size)
        ring = (*shape[:2], min(self.recent + self.slack, capacity), shape[3])
        position, table = attention.position, None
        if hasattr(position, "turn"):
            turns = turns or min(self.sinks + self.recent, capacity)
            rows = ops.turn_table(position.table(turns), position.angles(turns))
            table = rows["cos"], rows["sin"]
        recent = RingLayer(ops.zeros(ring), ops.zeros(ring), ops.zeros((0, self.recent)))
        return SinksLayer(ops.zeros(shape), ops.zeros(shape), recent, table)

    def of_block(self, ops: Any, block: Any, batch: int, capacity: int) -> Any:
        turns = capacity if getattr(block, "chooses_tokens", False) else None
        return marked(ops, block, self.layer(ops, block.attention, batch, capacity, turns), batch, capacity)

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> None:
        """A model that cannot be served is refused before there is a text."""
        if config.position is not None:
            message = (
                f"position is {type(config.position).__name__}, which is added to the embedding, where cache=sinks "
                "cannot count positions anew. Use cache=contiguous, or cache=window with a cache.size."
            )
            raise ConfigurationError(message)
