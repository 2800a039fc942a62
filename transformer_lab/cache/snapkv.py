"""After a prompt each head keeps the keys that the prompt's last queries attend to most. `cache=snapkv` builds it.

SnapKV (Li et al. 2024, arXiv 2404.14469). Of a row and a key/value head, which G query heads g share, n keys are there,
of which the last w = min(observed, tokens of the pass) are those of the queries q that observe:

    a[g, q, s] = softmax, over the s that q sees, of the score of q and key s         [G, w, n]
    c[g, s] = sum over q of a[g, q, s], of the past alone, s < n - w                  [G, n - w]
    d[g, s] = max over r of the past, |r - s| <= (pooling - 1) / 2, of c[g, r]        [G, n - w]
    e[s] = mean over g of d[g, s]                                                     [n - w]

If n > budget there stay the budget - w keys of the past with the largest e, of equal ones the earlier, and the last w.
The authors' code gives each query head a copy of the keys of its own; the mean over those that share them, after
pooling, is that of NVIDIA's kvpress. A cap of scores counts. A learned sink does not: each query counts alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.cache.layer import Fresh, Seen, filled, longer
from transformer_lab.cache.marked import marked
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.cache.window import Window
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens


class SnapLayer(NamedTuple):
    """keys, values [B, K, S, N]: those of each head one behind the other, in the order of their positions. dropped,
    integers [B]: how many keys each head of a row has let go, so that the key of a later position p lies in slot
    p - dropped. rule [0, budget, observed, pooling]: nothing, in the shape of the policy's numbers."""

    keys: Any
    values: Any
    dropped: Any
    rule: Any

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["SnapLayer", Seen]:
        """The new keys are written behind those that are there, and all are seen; after a pass of several tokens each
        head keeps its budget. What it kept is older than any later query, so slot s counts as position s + dropped."""
        xp, slots, length = ops.xp, self.keys.shape[2], fresh.key.shape[2]
        brought = _brought(ops, tokens)
        # A row that brings nothing may be said to be at position 0; its padding goes where nothing lies.
        dropped = xp.where(brought > 0, self.dropped, 0)
        before = tokens.start - dropped  # [B], how many keys are there
        if length == 1:
            slot = xp.where(brought > 0, before, slots - 1)
            keys = ops.slice_update(self.keys, fresh.key, slot, axis=2)
            values = ops.slice_update(self.values, fresh.value, slot, axis=2)
            used = filled(ops, slot, 1, slots)
            seen = Seen(keys[:, :, :used, :], values[:, :, :used, :], _places(ops, dropped, used))
            return self._replace(keys=keys, values=values), seen
        if ops.in_place and not np.any(ops.to_numpy(tokens.start)):  # nothing is there, and that is known
            seen = Seen(fresh.key, fresh.value)
        else:
            first = xp.where(brought > 0, before, slots)
            keys = ops.slice_update(longer(ops, self.keys, length, 2), fresh.key, first, axis=2)
            values = ops.slice_update(longer(ops, self.values, length, 2), fresh.value, first, axis=2)
            seen = Seen(keys, values, _places(ops, dropped, slots + length))
        count = xp.where(brought > 0, before + brought, 0)
        index = self._kept(ops, fresh, seen.keys, before, count, brought)
        keys, values = (
            # What is kept never fills more than the slots before it.
            ops.slice_update(old, _at(ops, new, index), xp.zeros_like(count), axis=2)
            for old, new in ((self.keys, seen.keys), (self.values, seen.values))
        )
        more = xp.clip(count - self.rule.shape[1], 0, None)
        return self._replace(keys=keys, values=values, dropped=self.dropped + more), seen

    def _kept(self, ops: Any, fresh: Fresh, keys: Any, before: Any, count: Any, brought: Any) -> Any:
        """Which slots of keys [B, K, C, N] each head keeps: integers [B, K, at most budget], in ascending order.

        before, count, brought [B]: how many keys a row had, has, and was brought. Where there are fewer than the budget
        they are all, then slots that hold nothing; where nothing was brought, the first slots as they are.
        """
        xp, room, (_, budget, observed, pooling) = ops.xp, keys.shape[2], self.rule.shape
        slots = xp.arange(room, dtype=count.dtype, device=ops.array_device)[None, :]
        recent = xp.clip(brought, None, observed)
        past = (slots < (count - recent)[:, None])[:, None, :]  # [B, 1, C]
        there = (slots < count[:, None])[:, None, :]
        attended = _attended(ops, fresh, keys, before, brought, min(observed, fresh.key.shape[2]))  # [B, K, G, C]
        score = xp.sum(_pooled(ops, xp.where(past[:, :, None, :], attended, 0.0), pooling), axis=2)  # [B, K, C]
        score = xp.where(there, xp.where(past, score, xp.inf), -1.0)
        _, index = ops.top_k(score, min(budget, room, self.keys.shape[2]))
        return xp.sort(index, axis=-1)


def _brought(ops: Any, tokens: Tokens) -> Any:
    """[B], how many tokens of each row are no padding."""
    if tokens.real is None:
        return ops.xp.full_like(tokens.start, tokens.positions.shape[1])
    return ops.xp.sum(ops.cast(tokens.real, tokens.start.dtype), axis=-1)


def _places(ops: Any, dropped: Any, slots: int) -> Any:
    """[B, S], as which positions the slots count."""
    return dropped[:, None] + ops.xp.arange(slots, dtype=dropped.dtype, device=ops.array_device)


def _at(ops: Any, array: Any, index: Any) -> Any:
    """Along the third axis: array [B, K, S, N] at index [B, K, R] or [B, 1, R] -> [B, K, R, N]."""
    shape = (*array.shape[:2], index.shape[2], array.shape[3])
    return ops.xp.take_along_axis(array, ops.xp.broadcast_to(index[..., None], shape), axis=2)


def _attended(ops: Any, fresh: Fresh, keys: Any, before: Any, brought: Any, observed: int) -> Any:
    """How much the last `observed` queries of each row, or all if it brings fewer, attend to keys [B, K, C, N], in sum:
    [B, K, G, C]."""
    xp, (batch, heads), (kv_heads, room, size) = ops.xp, fresh.query.shape[:2], keys.shape[1:]
    numbers = brought[:, None] - observed + xp.arange(observed, dtype=brought.dtype, device=ops.array_device)  # [B, W]
    query = _at(ops, fresh.query, xp.clip(numbers, 0, None)[:, None, :])  # [B, H, W, N]
    rows = xp.reshape(query, (batch, kv_heads, -1, size))  # the G heads that share a key head are further rows of it
    scores = xp.matmul(rows, xp.matrix_transpose(keys)) * fresh.scale  # [B, K, G * W, C]
    if fresh.cap is not None:
        scores = xp.tanh(scores / fresh.cap) * fresh.cap
    scores = xp.reshape(scores, (batch, heads, observed, room))
    slots = xp.arange(room, dtype=brought.dtype, device=ops.array_device)
    visible = slots <= (before[:, None] + xp.clip(numbers, 0, None))[..., None]  # [B, W, C], the mask of this pass
    weights = ops.softmax(xp.where(visible[:, None, ...], scores, -xp.inf))
    weights = xp.where((numbers >= 0)[:, None, :, None], weights, 0.0)
    return xp.reshape(xp.sum(weights, axis=2), (batch, kv_heads, heads // kv_heads, room))


def _pooled(ops: Any, x: Any, width: int) -> Any:
    """The largest of `width` neighbours, of which each is the middle one: x [..., C], nowhere negative -> [..., C]."""
    xp, found = ops.xp, x
    side = ops.zeros((*x.shape[:-1], width // 2))
    wide = xp.concat([side, x, side], axis=-1)
    for first in range(width):
        found = xp.maximum(found, wide[..., first : first + x.shape[-1]])
    return found


@dataclass(frozen=True)
class SnapKV(CachePolicy):
    """observed: how many of a prompt's last queries say what stays; their own keys stay too. budget: how many keys in
    all a key/value head keeps of a prompt. pooling: over how many neighbouring positions the largest score is taken.

    Every pass of several tokens attends to all that is there, and then counts as the prompt: of a prompt in several
    passes those that come later choose among what the earlier left, and of a pass of fewer than `observed` tokens fewer
    observe. Tokens that come one by one are kept. They can be taken back, by a pass that begins earlier; a prompt
    cannot. A layer with a window keeps, in a ring, what it still sees (`cache/window.py`).

    What is allocated is the budget and room for the tokens after the longest prompt; where shapes are compiled, for a
    bucket of them.
    """

    observed: int = 32
    budget: int = 256
    pooling: int = 7

    def __post_init__(self) -> None:
        for name in ("observed", "budget", "pooling"):
            require_whole(f"cache.{name}", getattr(self, name), LIMITS["context_length"])
        if self.budget <= self.observed:
            message = (
                f"cache.budget is {self.budget} and cache.observed {self.observed}; of a budget that is not larger no "
                "key would be left to choose. Give a larger budget, or observe fewer queries."
            )
            raise ConfigurationError(message)
        if self.pooling % 2 == 0:
            message = f"cache.pooling is {self.pooling}; it must be odd, so that a position is the middle one."
            raise ConfigurationError(message)

    @property
    def contract(self) -> str:
        return "lossy"

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int, slots: int | None = None) -> Any:
        """slots: how many keys of a head there are at most after a pass; None is all that may come."""
        if hasattr(attention.position, "bias"):
            message = (
                f"attention.position is {type(attention.position).__name__}, which needs to know where each key stood, "
                "and cache=snapkv keeps other keys for each head. Use cache=contiguous."
            )
            raise ConfigurationError(message)
        if attention.window is not None:
            return Window().layer(ops, attention, batch, capacity)
        shape = (batch, attention.num_kv_heads, slots or capacity, attention.head_size)
        rule = ops.zeros((0, self.budget, self.observed, self.pooling))
        return SnapLayer(ops.zeros(shape), ops.zeros(shape), ops.asarray(np.zeros(batch, np.int64)), rule)

    def memory(self, ops: Any, config: ModelConfig, params: Any) -> None:
        """A model that cannot be served is refused before there is a text."""
        for block in config.blocks:
            self.layer(ops, block.attention, 1, 1)

    def begin(
        self, memory: None, ops: Any, config: ModelConfig, rows: Sequence[Sequence[int]], capacity: int
    ) -> tuple[list[Any], list[int]]:
        batch, after = len(rows), capacity - max(len(row) for row in rows)
        slots = min(self.budget + ops.bucket(after, capacity), capacity)
        layers = [
            marked(ops, block, self.layer(ops, block.attention, batch, capacity, slots), batch, capacity)
            for block in config.blocks
        ]
        return layers, [0] * batch
