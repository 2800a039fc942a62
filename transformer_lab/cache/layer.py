"""What a layer's cache is given by attention, and what attention may then see. It knows no policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NOWHERE = 1 << 30  # the position of a slot that holds no key: no query comes so far


class Fresh(NamedTuple):
    """What the tokens of a pass bring: query [B, H, T, N], key and value [B, K, T, N].

    scale, cap: of the scores, as attention has them. turned: gives the query turned by other angles, (cos, sin), each
    [B, T, N / 2], instead; None if attention turns none.
    """

    query: Any
    key: Any
    value: Any
    scale: float = 1.0
    cap: float | None = None
    turned: Callable[[tuple[Any, Any]], Any] | None = None


class Seen(NamedTuple):
    """All that attention may read: keys and values [B, K, S, N], of slots at positions places [B, S].

    None: slot s holds the key of position s. The one rule of visible keys does the rest (`visible_keys`). window: how
    many of them a query sees, its own included, where the cache says so and not the model. places [B, T, S]: as the key
    of which position a slot counts for each query of this pass. scales: of keys and values,
    each [B, K, S, 1], by which they are yet to be multiplied; None: they are whole. rotation [N, N], symmetric and its
    own inverse: keys and values are multiplied by it, and so must be the queries, and what comes out. query: takes the
    place of the one that was brought; it may be wider, as keys and values then are, and the first N numbers of what
    comes out count.
    """

    keys: Any
    values: Any
    places: Any = None
    window: int | None = None
    scales: tuple[Any, Any] | None = None
    rotation: Any = None
    query: Any = None


def filled(ops: Any, start: Any, tokens: int, capacity: int) -> int:
    """How many slots from the first are in use after `tokens` more from start [B]: all, where shapes are compiled."""
    return min(int(np.max(ops.to_numpy(start))) + tokens, capacity) if ops.in_place else capacity


def last_place(ops: Any, tokens: Any) -> Any:
    """[B], the position of the last token of this pass that is no padding; start - 1 if there is none."""
    if tokens.real is None:
        return tokens.start + (tokens.positions.shape[1] - 1)
    return tokens.start + ops.xp.sum(ops.cast(tokens.real, tokens.start.dtype), axis=-1) - 1


def longer(ops: Any, array: Any, more: int, axis: int) -> Any:
    """The array and `more` empty places behind it along this axis."""
    before, length, behind = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    empty = ops.xp.zeros((*before, length + more, *behind), dtype=array.dtype, device=ops.array_device)
    return ops.put(empty, (*[slice(None)] * axis, slice(length)), array)  # empty memory need not be read to be copied
