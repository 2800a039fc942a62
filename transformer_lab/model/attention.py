"""Self-attention of one block: project, turn, remember, attend, project back.

Which keys a query may see is the affair of the operation `attention`; where past keys are kept, of the cache.
B batch, T new tokens, D hidden size, H query heads, K key/value heads, N head size, S keys kept so far.
"""

from collections.abc import Callable
from typing import Any

from transformer_lab.model.config import ModelConfig


def self_attention(
    ops: Any,
    config: ModelConfig,
    layer: int,
    params: Any,
    x: Any,
    start: Any,
    angles: Any,
    cache: Any,
    tap: Callable[[str, Any], Any],
) -> tuple[Any, Any]:
    """x [B, T, D] -> ([B, T, D], the layer's cache). `angles`: rows of the rotary table [B, T, N / 2], or None."""
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_size
    batch, length, _ = x.shape
    qkv = ops.linear(x, params["qkv"]["kernel"], params["qkv"].get("bias"))  # [B, T, (H + 2 K) N]
    qkv = ops.xp.reshape(qkv, (batch, length, heads + 2 * kv_heads, size))
    qkv = ops.xp.permute_dims(qkv, (0, 2, 1, 3))  # [B, H + 2 K, T, N]
    last = heads + kv_heads
    query, key, value = qkv[:, :heads, ...], qkv[:, heads:last, ...], qkv[:, last:, ...]
    if angles is not None:
        query, key = ops.rotary(query, *angles), ops.rotary(key, *angles)
    query, key, value = tap("q", query), tap("k", key), tap("v", value)
    if cache is not None:
        cache, key, value = cache.update(ops, key, value, start)  # [B, K, S, N]
    mixed = ops.attention(query, key, value, start, config.score_scale(layer), tap)  # [B, H, T, N]
    mixed = ops.xp.reshape(ops.xp.permute_dims(mixed, (0, 2, 1, 3)), (batch, length, heads * size))
    out = ops.linear(mixed, params["out"]["kernel"], params["out"].get("bias"))  # [B, T, D]
    return tap("out", out), cache
