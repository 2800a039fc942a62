"""The plain version of every operation of the decoder, written once, for every backend.

This is the textbook and the judge of the faster versions. It uses the backend's `xp` (the array API standard) and its
primitives, and knows no framework. Shape letters: B batch, T query positions, S key positions, D hidden size,
H query heads, K key/value heads (H = K * G), N head size, V vocabulary.

Half-precision inputs are widened to float32 in norms, softmax and losses, and the results narrowed again.
"""

import math
from typing import Any

OPERATIONS = (
    "linear",
    "embed",
    "layer_norm",
    "rms_norm",
    "gelu_tanh",
    "gelu_erf",
    "relu",
    "silu",
    "sigmoid",
    "softmax",
    "logsumexp",
    "rotary",
    "attention",
    "cross_entropy",
)
NEGATIVE_INFINITY = -math.inf
HIDDEN = {"scores": NEGATIVE_INFINITY, "pattern": 0.0}  # what the taps of attention hold where a key is not visible


def identity(name: str, x: Any) -> Any:
    """The tap that only passes things on."""
    return x


def widen(ops: Any, x: Any) -> Any:
    """x in float32 at least."""
    return x if x.dtype in (ops.xp.float32, ops.xp.float64) else ops.cast(x, ops.xp.float32)


def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x [..., in] @ kernel [in, out] + bias [out] -> [..., out]."""
    rows = ops.xp.reshape(x, (-1, x.shape[-1]))  # one product of two matrices, whatever the batch
    y = ops.xp.reshape(ops.xp.matmul(rows, kernel), (*x.shape[:-1], kernel.shape[-1]))
    return y if bias is None else y + bias


def embed(ops: Any, table: Any, ids: Any) -> Any:
    """Rows of table [V, D] for integer ids [...] -> [..., D]."""
    rows = ops.xp.take(table, ops.xp.reshape(ids, (-1,)), axis=0)
    return ops.xp.reshape(rows, (*ids.shape, table.shape[1]))


def layer_norm(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis (Ba et al. 2016, arXiv 1607.06450).

    The variance is that of the population (divided by D, not D - 1).
    """
    xp, wide = ops.xp, widen(ops, x)
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    normal = centred / xp.sqrt(variance + epsilon)
    return ops.cast(normal * weight + bias, x.dtype)


def rms_norm(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    xp, wide = ops.xp, widen(ops, x)
    normal = wide / xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return ops.cast(normal * weight, x.dtype)


def gelu_tanh(ops: Any, x: Any) -> Any:
    """0.5 x (1 + tanh z) with z = sqrt(2 / pi) (x + 0.044715 x^3), the GELU of GPT-2 (arXiv 1606.08415).

    Written as x / (1 + exp(-2 z)): the same function, but 1 + tanh z cancels for negative z and this does not.
    """
    xp = ops.xp
    exponent = (-2.0 * math.sqrt(2.0 / math.pi)) * (x + 0.044715 * (x * x * x))
    # Above 80 the quotient is below 1e-33 of x, and the exponential stays finite in float32.
    return x / (1.0 + xp.exp(xp.clip(exponent, None, 80.0)))


def gelu_erf(ops: Any, x: Any) -> Any:
    """0.5 x (1 + erf(x / sqrt 2)), the exact GELU (arXiv 1606.08415).

    Written with erfc(-x / sqrt 2), which does not cancel for negative x.
    """
    return 0.5 * x * ops.erfc(x * -math.sqrt(0.5))


def relu(ops: Any, x: Any) -> Any:
    """max(x, 0)."""
    return ops.xp.clip(x, 0.0, None)


def silu(ops: Any, x: Any) -> Any:
    """x / (1 + exp(-x)) (arXiv 1702.03118)."""
    return x / (1.0 + ops.xp.exp(ops.xp.clip(-x, None, 80.0)))


def sigmoid(ops: Any, x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + ops.xp.exp(ops.xp.clip(-x, None, 80.0)))


def softmax(ops: Any, x: Any) -> Any:
    """exp(x) / sum(exp(x)) over the last axis; the largest element is taken off first, so that nothing overflows."""
    xp, wide = ops.xp, widen(ops, x)
    powers = xp.exp(wide - xp.max(wide, axis=-1, keepdims=True))
    return ops.cast(powers / xp.sum(powers, axis=-1, keepdims=True), x.dtype)


def logsumexp(ops: Any, x: Any) -> Any:
    """log(sum(exp(x))) over the last axis: [..., D] -> [...]."""
    xp, wide = ops.xp, widen(ops, x)
    largest = xp.max(wide, axis=-1, keepdims=True)
    total = xp.log(xp.sum(xp.exp(wide - largest), axis=-1))
    return ops.cast(total + largest[..., 0], x.dtype)


def visible_keys(ops: Any, start: Any, queries: int, keys: int, window: int | None = None, places: Any = None) -> Any:
    """Which keys a query may see: key s is visible to query t of row b if s <= start[b] + t -> bool [B, T, S].

    With a window W it is, if besides s > start[b] + t - W: a query sees W keys, the last of which is its own. Where a
    cache keeps keys in another order, or not all, key s is the one at position places[b, s] (integers [B, S]); where it
    counts the positions anew, query t takes it for the one at places[b, t, s] (integers [B, T, S]).

    This one rule covers prefill (start 0), decoding, prefill in pieces, and rows of unequal lengths padded on the
    right: what lies behind a row's last token is never visible to it.
    """
    xp = ops.xp
    query_positions = start[:, None] + xp.arange(queries, dtype=start.dtype, device=ops.array_device)
    key_positions = xp.arange(keys, dtype=start.dtype, device=ops.array_device)
    key_positions = key_positions[None, None, :] if places is None else by_query(places)
    query_positions = query_positions[:, :, None]
    visible = key_positions <= query_positions
    return visible if window is None else visible & (key_positions > query_positions - window)


def by_query(places: Any) -> Any:
    """The positions of keys, [B, S] or [B, T, S], as [B, 1, S] or [B, T, S]."""
    return places[:, None, :] if places.ndim == 2 else places


def of_queries(places: Any, first: int, count: int) -> Any:
    """What `count` queries from `first` on take of the positions of keys, [B, S] or [B, T, S]."""
    return places if places is None or places.ndim == 2 else places[:, first : first + count, :]


def rotary(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Turns the pairs (x[i], x[i + N / 2]) of every head: x [B, H, T, N], cos and sin [B, T, N / 2] -> [B, H, T, N]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, ...], sin[:, None, ...]  # the same for every head
    return ops.xp.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    ops: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = identity,
    places: Any = None,
) -> Any:
    """softmax(scale * query key^T + mask) value (Vaswani et al. 2017, arXiv 1706.03762).

    query [B, H, T, N], key and value [B, K, S, N], start integers [B]: the position of each row's first query, window:
    how many keys a query sees, or None, places [B, S]: the position of each key, if it is not s, or [B, T, S], if it
    differs by query -> [B, H, T, N].
    Taps: `scores` [B, H, T, S] scaled, -inf where not visible; `pattern` [B, H, T, S].
    """
    xp = ops.xp
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    # The G query heads that share a key head become further rows of it: no copy of the keys.
    rows = xp.reshape(query, (batch, kv_heads, -1, size))  # [B, K, G * T, N]
    scores = xp.matmul(rows, xp.matrix_transpose(key)) * scale  # [B, K, G * T, S]
    scores = xp.reshape(scores, (batch, heads, queries, keys))
    visible = visible_keys(ops, start, queries, keys, window, places)[:, None, ...]  # [B, 1, T, S]
    scores = tap("scores", xp.where(visible, scores, NEGATIVE_INFINITY))
    pattern = tap("pattern", ops.softmax(scores))
    mixed = xp.matmul(xp.reshape(pattern, (batch, kv_heads, -1, keys)), value)  # [B, K, G * T, N]
    return xp.reshape(mixed, (batch, heads, queries, size))


def cross_entropy(ops: Any, logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[target] in nats: logits [..., V], integer targets [...] -> [...]."""
    xp, wide = ops.xp, widen(ops, logits)
    shifted = wide - xp.max(wide, axis=-1, keepdims=True)
    total = xp.log(xp.sum(xp.exp(shifted), axis=-1))
    chosen = xp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return total - chosen
