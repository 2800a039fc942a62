"""What a layer's cache is given by attention, and what attention may then see. It knows no policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NOWHERE = 1 << 30  # the position of a slot that holds no key: no query comes so far


class Fresh(NamedTuple):
    """What the tokens of a pass bring: query [B, H, T, N], key and value [B, K, T, N].

    turned_by: turns what stands at positions by their angles, x, (cos, sin) -> x, where a key is turned (rotary
    positions); else None. unturned: the keys before that. scale, cap: of the scores, as attention has them.
    """

    query: Any
    key: Any
    value: Any
    unturned: Any
    turned_by: Callable[[Any, tuple[Any, Any]], Any] | None = None
    scale: float = 1.0
    cap: float | None = None


class Seen(NamedTuple):
    """All that attention may read: keys and values [B, K, S, N], of slots at positions places [B, S].

    None: slot s holds the key of position s. The one rule of visible keys does the rest (`visible_keys`). window: how
    many of them a query sees, its own included, where the cache says so and not the model. scales: of keys and values,
    each [B, K, S, 1], by which they are yet to be multiplied; None: they are whole. rotation [N, N], symmetric and its
    own inverse: keys and values are multiplied by it, and so must be the queries, and what comes out.
    """

    keys: Any
    values: Any
    places: Any = None
    window: int | None = None
    scales: tuple[Any, Any] | None = None
    rotation: Any = None


def filled(ops: Any, start: Any, tokens: int, capacity: int) -> int:
    """How many slots from the first are in use after `tokens` more from start [B]: all, where shapes are compiled."""
    return min(int(np.max(ops.to_numpy(start))) + tokens, capacity) if ops.in_place else capacity


def last_place(ops: Any, tokens: Any) -> Any:
    """[B], the position of the last token of this pass that is no padding; start - 1 if there is none."""
    if tokens.real is None:
        return tokens.start + (tokens.positions.shape[1] - 1)
    return tokens.start + ops.xp.sum(ops.cast(tokens.real, tokens.start.dtype), axis=-1) - 1


def read_by_attention(ops: Any, seen: Seen, length: int) -> list[np.ndarray]:
    """Keys and values of the first `length` positions, float64 [B, K, length, N]; NaN for what is nowhere."""
    places, found = None if seen.places is None else np.asarray(ops.to_numpy(seen.places)), []
    for part, scales in zip((seen.keys, seen.values), seen.scales or (None, None), strict=True):
        numbers = np.asarray(ops.to_numpy(part), np.float64)
        numbers = numbers if scales is None else numbers * np.asarray(ops.to_numpy(scales), np.float64)
        if places is None:
            found.append(numbers[:, :, :length])
            continue
        ordered = np.full((*numbers.shape[:2], length, numbers.shape[3]), np.nan)
        for row, place in enumerate(places):
            ordered[row][:, place[place < length]] = numbers[row][:, place < length]
        found.append(ordered)
    return found
