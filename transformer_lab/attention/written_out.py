"""Attention step by step, for what changes its scores: a cap, a bias by position, sinks, scales of a cache.

The operation `attention` knows none of them, so that every backend's fast version stays what it is.
"""

from collections.abc import Callable
from typing import Any

from transformer_lab.backends.plain.manual import NEGATIVE_INFINITY, visible_keys


def written_out(
    ops: Any,
    part: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    window: int | None,
    sinks: Any,
    tap: Callable[[str, Any], Any],
    places: Any = None,
    scales: tuple[Any, Any] | None = None,
) -> Any:
    """Shapes as in the operation: query [B, H, T, N], key and value [B, K, S, N], start [B] -> [B, H, T, N].

    part: a `SoftmaxAttention`, for its scale, cap and position. window: how many keys a query sees, or None. sinks: [H]
    or None. places: the position of each key [B, S], if it is not s. scales: of keys and values, each [B, K, S, 1], if
    they are stored as multiples of them.
    """
    xp = ops.xp
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    rows = xp.reshape(query, (batch, kv_heads, -1, size))  # the G heads that share a key head are further rows of it
    if scales is not None:
        key, value = ops.cast(key, ops.float_dtype), ops.cast(value, ops.float_dtype)
    scores = xp.matmul(rows, xp.matrix_transpose(key)) * part.scale  # [B, K, G * T, S]
    if scales is not None:
        scores = scores * xp.matrix_transpose(scales[0])
    scores = xp.reshape(scores, (batch, heads, queries, keys))
    if part.cap is not None:
        scores = xp.tanh(scores / part.cap) * part.cap
    if hasattr(part.position, "bias"):
        scores = scores + part.position.bias(ops, heads, keys, places)
    visible = visible_keys(ops, start, queries, keys, window, places)[:, None, ...]  # [B, 1, T, S]
    scores = tap("scores", xp.where(visible, scores, NEGATIVE_INFINITY))
    if sinks is None:
        pattern = ops.softmax(scores)
    else:
        column = xp.broadcast_to(sinks[None, :, None, None], (batch, heads, queries, 1))
        pattern = ops.softmax(xp.concat([scores, column], axis=-1))[..., :keys]
    pattern = tap("pattern", pattern)
    pattern = xp.reshape(pattern, (batch, kv_heads, -1, keys))
    if scales is not None:
        pattern = pattern * xp.matrix_transpose(scales[1])
    mixed = xp.matmul(pattern, value)  # [B, K, G * T, N]
    return xp.reshape(mixed, (batch, heads, queries, size))
