"""A cache of 4 bits for each number but those of the last tokens: a fifth of the bytes. `cache=int4` builds it.

Keys and values are multiplied by a Hadamard matrix first, so that a few large numbers do not take the levels from the
others (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; llama.cpp, pull request 21038). The last tokens, to which most
attention goes, stay whole (KIVI, Liu et al. 2024, arXiv 2402.02750).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.hadamard import hadamard
from transformer_lab.cache.layer import NOWHERE, Fresh, Seen, filled
from transformer_lab.cache.stored import first, written
from transformer_lab.cache.window import RingLayer
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens

GROUP = 32  # so many numbers share a step, or as many below as divide the size of a head
LEVELS = 15  # the largest of 4 bits


def group(size: int) -> int:
    return next(count for count in range(min(GROUP, size), 0, -1) if size % count == 0)


class Int4Rows(NamedTuple):
    """pairs uint8 [B, K, S, N / 2]: number n in the lower half of byte n, number N / 2 + n in the upper one. lowest and
    steps float32 [B, K, S, N / group]: of a group; the number is lowest + steps * what is in the four bits."""

    pairs: Any
    lowest: Any
    steps: Any

    @classmethod
    def empty(cls, ops: Any, shape: tuple[int, ...]) -> "Int4Rows":
        groups = (*shape[:-1], shape[-1] // group(shape[-1]))
        pairs = ops.xp.zeros((*shape[:-1], shape[-1] // 2), dtype=ops.xp.uint8, device=ops.array_device)
        return cls(pairs, ops.zeros(groups), ops.zeros(groups))

    @classmethod
    def encode(cls, ops: Any, x: Any) -> "Int4Rows":
        """Each number to the nearest level between the lowest and the largest of its group. One number that is not
        finite makes the whole group so."""
        xp, size = ops.xp, x.shape[-1]
        grouped = xp.reshape(x, (*x.shape[:-1], -1, group(size)))
        lowest = xp.min(grouped, axis=-1, keepdims=True)
        steps = (xp.max(grouped, axis=-1, keepdims=True) - lowest) / float(LEVELS)
        levels = xp.round((grouped - lowest) / xp.where(steps == 0.0, 1.0, steps))
        levels = xp.clip(xp.where(levels == levels, levels, 0.0), 0.0, float(LEVELS))
        levels = xp.reshape(levels, x.shape)
        pairs = ops.cast(levels[..., : size // 2] + 16.0 * levels[..., size // 2 :], xp.uint8)
        return cls(pairs, lowest[..., 0], steps[..., 0])

    def decode(self, ops: Any) -> Any:
        xp, (*shape, half) = ops.xp, self.pairs.shape
        levels = ops.cast(xp.concat([self.pairs & LEVELS, self.pairs >> 4], axis=-1), ops.float_dtype)
        grouped = xp.reshape(levels, (*shape, -1, group(2 * half)))
        return xp.reshape(self.lowest[..., None] + self.steps[..., None] * grouped, (*shape, 2 * half))


class Int4Layer(NamedTuple):
    """keys, values: stored [B, K, capacity, N], slot s for position s, of every token. ring: the last of them, whole.
    recent [0, recent]: nothing, of as many columns as there are tokens before a pass that it sees whole."""

    keys: Any
    values: Any
    ring: RingLayer
    recent: Any

    def update(self, ops: Any, fresh: Fresh, tokens: Tokens) -> tuple["Int4Layer", Seen]:
        """The new tokens and the `recent` ones before them are seen whole, older ones in 4 bits: a position is on one
        side, and which one follows from `start`. A token is rounded when it comes, so its bits hang on nothing else."""
        xp, start, recent = ops.xp, tokens.start, self.recent.shape[1]
        rotation = ops.asarray(hadamard(fresh.key.shape[3]))
        key, value = xp.matmul(fresh.key, rotation), xp.matmul(fresh.value, rotation)
        ring, seen = self.ring.update(ops, fresh._replace(key=key, value=value), tokens)
        keys, values = written(ops, self.keys, key, start), written(ops, self.values, value, start)
        layer = Int4Layer(keys, values, ring, self.recent)
        if seen.places is None:  # nothing was there before
            return layer, seen._replace(rotation=rotation)
        border = start[:, None] - recent  # the first position that is seen whole
        places = xp.where(seen.places >= border, seen.places, NOWHERE)
        length = max(0, filled(ops, start, 0, self.keys.pairs.shape[2]) - recent)
        if length == 0:
            return layer, seen._replace(places=places, rotation=rotation)
        old = xp.arange(length, dtype=start.dtype, device=ops.array_device)[None, :]
        places = xp.concat([xp.where(old < border, old, NOWHERE), places], axis=1)
        old_keys, old_values = (first(stored, length).decode(ops) for stored in (keys, values))
        keys, values = xp.concat([old_keys, seen.keys], axis=2), xp.concat([old_values, seen.values], axis=2)
        return layer, Seen(keys, values, places, rotation=rotation)


@dataclass(frozen=True)
class Int4(Contiguous):
    """recent: how many tokens before those of a pass are whole. slack: how many of the last tokens may be taken back,
    by passes that begin earlier, before the ring has lost what is then read whole."""

    recent: int = 64
    slack: int = 1

    def __post_init__(self) -> None:
        require_whole("cache.recent", self.recent, LIMITS["context_length"])
        require_whole("cache.slack", self.slack, LIMITS["context_length"])

    @property
    def contract(self) -> str:
        return "lossy"

    def layer(self, ops: Any, attention: Any, batch: int, capacity: int) -> Int4Layer:
        if attention.head_size % 2:
            message = (
                f"head_size {attention.head_size} is odd; cache=int4 stores two numbers to a byte. Use cache=int8."
            )
            raise ConfigurationError(message)
        heads, size = attention.num_kv_heads, attention.head_size
        shape = (batch, heads, capacity, size)
        ring = (batch, heads, min(self.recent + self.slack, capacity), size)
        return Int4Layer(
            Int4Rows.empty(ops, shape),
            Int4Rows.empty(ops, shape),
            RingLayer(ops.zeros(ring), ops.zeros(ring)),
            ops.zeros((0, self.recent)),
        )
